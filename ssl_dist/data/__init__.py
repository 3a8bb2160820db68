"""The data of a run: which images each training step uses, in which order, with which labels."""

from ssl_dist.data.images import Images, open_store, read_labels
from ssl_dist.data.permutation import sample_ids
from ssl_dist.data.resolve import Data, resolve
from ssl_dist.data.sample_plan import SamplePlan

__all__ = ["Data", "Images", "SamplePlan", "open_store", "read_labels", "resolve", "sample_ids"]
