"""Names of a package that are imported when they are first asked for, so that settings are checked without torch."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Collection
from typing import Any


def importer(package: str, module: str, names: Collection[str]) -> Callable[[str], Any]:
    """Return the ``__getattr__`` of a package that takes these names from a module which is slow to import."""

    def get(name: str) -> Any:
        if name not in names:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(importlib.import_module(module), name)

    return get
