"""Pretraining methods, one file each, found by name: a new file is a new method, nothing to register."""

from __future__ import annotations

import importlib
import inspect
import pkgutil

from ssl_dist.errors import ConfigError
from ssl_dist.methods.base import Method, MethodConfig, Progress, Views

__all__ = ["Method", "MethodConfig", "Progress", "Views", "load", "names"]


def names() -> list[str]:
    """Every method there is, sorted; a file that begins with ``_`` is none."""
    found = (module.name for module in pkgutil.iter_modules(__path__))
    return sorted(name for name in found if name != "base" and not name.startswith("_"))


def load(name: str) -> type[Method]:
    """The method's class; its settings are ``load(name).Config``.

    Raises:
        ConfigError: no such method.
    """
    if name not in names():
        raise ConfigError(f"method {name!r}: it is one of {', '.join(names())}")
    module = importlib.import_module(f"{__name__}.{name}")
    made = [
        found
        for _, found in inspect.getmembers(module, inspect.isclass)
        if issubclass(found, Method) and found.__module__ == module.__name__
    ]
    assert len(made) == 1, f"{module.__file__} has {len(made)} methods: a file is one"
    return made[0]
