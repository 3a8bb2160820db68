"""The sharded Arrow image store: ``build`` writes one, ``ImageStore`` reads it."""

from ssl_dist.store.building.builder import append, build, merge
from ssl_dist.store.building.labelling import count_labels, label, stored_keys
from ssl_dist.store.building.sources.base import key_form
from ssl_dist.store.image_store import ImageStore
from ssl_dist.store.record_batches import Damage
from ssl_dist.store.remote import manifest_at
from ssl_dist.store.schema import Manifest

__all__ = [
    "Damage",
    "ImageStore",
    "Manifest",
    "append",
    "build",
    "count_labels",
    "key_form",
    "label",
    "manifest_at",
    "merge",
    "stored_keys",
]
