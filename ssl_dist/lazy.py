"""Names of a package that are imported when they are first asked for, so that settings are checked without torch."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Collection
from typing import Any


def importer(package: str, **modules: Collection[str]) -> Callable[[str], Any]:
    """Return the ``__getattr__`` of a package that takes names from those of its modules that are slow to import.

    Args:
        modules: the names that each module has.
    """

    def get(name: str) -> Any:
        for module, names in modules.items():
            if name in names:
                return getattr(importlib.import_module(f"{package}.{module}"), name)
        raise AttributeError(f"module {package!r} has no attribute {name!r}")

    return get
