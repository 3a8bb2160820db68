"""Pretraining methods, one per file, with their settings in ``settings``. A method is found by its file's name."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from typing import TYPE_CHECKING

from ssl_dist.errors import ConfigError
from ssl_dist.lazy import importer
from ssl_dist.methods import settings
from ssl_dist.methods.settings import MethodConfig

if TYPE_CHECKING:
    from ssl_dist.methods.base import Method, TrainingProgress, Views

__all__ = ["Method", "MethodConfig", "TrainingProgress", "Views", "config_of", "load", "names"]
__getattr__ = importer(__name__, base=("Method", "TrainingProgress", "Views"))


def names() -> list[str]:
    """Return all methods' names, sorted; base classes and files that begin with ``_`` are left out."""
    modules = (module.name for module in pkgutil.iter_modules(__path__))
    return sorted(name for name in modules if name not in ("base", "projection", "settings") and name[0] != "_")


def config_of(name: str) -> type[MethodConfig]:
    """Return the class of a method's settings: without torch from ``settings``, or else ``load(name).Config``.

    Raises:
        ConfigError: there is no such method.
    """
    known = (found for _, found in inspect.getmembers(settings, inspect.isclass) if issubclass(found, MethodConfig))
    return next((found for found in known if found.model_fields["name"].default == name), None) or load(name).Config


def load(name: str) -> type[Method]:
    """Import the method's class.

    Raises:
        ConfigError: there is no such method.
    """
    if name not in names():
        raise ConfigError(f"method {name!r}: it is one of {', '.join(names())}")
    from ssl_dist.methods.base import Method

    module = importlib.import_module(f"{__name__}.{name}")
    classes = [
        member
        for _, member in inspect.getmembers(module, inspect.isclass)
        if issubclass(member, Method) and member.__module__ == module.__name__
    ]
    assert len(classes) == 1, f"{module.__file__} has {len(classes)} methods: a file has one"
    return classes[0]
