"""The sharded Arrow image store: ``build`` one, read it with ``ImageStore``."""

from ssl_dist.store.read import Damage, ImageStore
from ssl_dist.store.schema import Manifest
from ssl_dist.store.write import build

__all__ = ["Damage", "ImageStore", "Manifest", "build"]
