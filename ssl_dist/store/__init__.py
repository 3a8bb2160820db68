"""The sharded Arrow image store: ``build`` writes one, ``ImageStore`` reads it."""

from ssl_dist.store.building.builder import append, build, merge
from ssl_dist.store.building.labelling import count_labels, label
from ssl_dist.store.image_store import ImageStore
from ssl_dist.store.record_batches import Damage
from ssl_dist.store.remote import manifest_at
from ssl_dist.store.schema import Manifest

__all__ = ["Damage", "ImageStore", "Manifest", "append", "build", "count_labels", "label", "manifest_at", "merge"]
