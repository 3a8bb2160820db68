"""Pretraining methods, one per file. A method is found by its file's name; nothing has to be registered."""

from __future__ import annotations

import importlib
import inspect
import pkgutil

from ssl_dist.errors import ConfigError
from ssl_dist.methods.base import Method, MethodConfig, TrainingProgress, Views

__all__ = ["Method", "MethodConfig", "TrainingProgress", "Views", "load", "names"]


def names() -> list[str]:
    """Return all methods' names, sorted; base classes and files that begin with ``_`` are left out."""
    modules = (module.name for module in pkgutil.iter_modules(__path__))
    return sorted(name for name in modules if name not in ("base", "projection") and not name.startswith("_"))


def load(name: str) -> type[Method]:
    """Import the method's class; its settings are ``load(name).Config``.

    Raises:
        ConfigError: there is no such method.
    """
    if name not in names():
        raise ConfigError(f"method {name!r}: it is one of {', '.join(names())}")
    module = importlib.import_module(f"{__name__}.{name}")
    classes = [
        member
        for _, member in inspect.getmembers(module, inspect.isclass)
        if issubclass(member, Method) and member.__module__ == module.__name__
    ]
    assert len(classes) == 1, f"{module.__file__} has {len(classes)} methods: a file has one"
    return classes[0]
