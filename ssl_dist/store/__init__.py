"""The sharded Arrow image store: ``build`` one, read it with ``ImageStore``."""

from ssl_dist.store.read import ImageStore
from ssl_dist.store.record_batches import Damage
from ssl_dist.store.remote import manifest_at
from ssl_dist.store.schema import Manifest
from ssl_dist.store.write import append, build, merge

__all__ = ["Damage", "ImageStore", "Manifest", "append", "build", "manifest_at", "merge"]
