"""Checkpoints of a run: its whole state, which any number of workers can write and resume.

``Checkpoints`` lists, saves, finds and deletes those of one run, ``Writer`` saves them behind the training steps.
``locating`` finds the one that a person names, also in a ``mirror`` on a remote store. ``pretrained`` reads weights for
a new run to begin with.
"""

from ssl_dist.checkpoint.checkpoints import Checkpoints
from ssl_dist.checkpoint.files import Checkpoint, State, checksum, verify
from ssl_dist.checkpoint.locating import fetched, locate, locate_all, run_directory
from ssl_dist.checkpoint.writer import Writer

__all__ = [
    "Checkpoint",
    "Checkpoints",
    "State",
    "Writer",
    "checksum",
    "fetched",
    "locate",
    "locate_all",
    "run_directory",
    "verify",
]
