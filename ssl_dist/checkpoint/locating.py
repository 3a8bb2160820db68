"""Where a person's words for a checkpoint lead: a run's directory, its folder of checkpoints, one of them, a mirror."""

from __future__ import annotations

import contextlib
import logging
import os
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from ssl_dist.checkpoint.checkpoints import FOLDER, Checkpoints
from ssl_dist.checkpoint.files import META, Checkpoint, verify
from ssl_dist.checkpoint.mirror import Mirror
from ssl_dist.errors import CheckpointError, RunError
from ssl_dist.settings import CheckpointChoice
from ssl_dist.uris import is_remote, split_uri, without_secrets

log = logging.getLogger(__name__)


def locate(path: Path, choice: CheckpointChoice = "newest") -> Checkpoint:
    """Return one checkpoint of a run.

    Args:
        path: the run's directory, its folder of checkpoints, or one checkpoint.
        choice: which one, where ``path`` has several.

    Raises:
        RunError: there is no such checkpoint, or ``path`` is one and another is chosen.
        CheckpointError: it is damaged.
    """
    if is_one(path):
        if choice != "newest":
            raise RunError(f"{path} is one checkpoint, and {choice} chooses among a run's: give the run's directory")
        return verify(path)
    return Checkpoints(run_directory(path)).choose(choice)


@contextlib.contextmanager
def fetched(source: str | os.PathLike[str], choice: CheckpointChoice = "newest") -> Iterator[Checkpoint]:
    """Yield one checkpoint of a run; of a mirror a copy, which is deleted at the end.

    Args:
        source: the run's directory, its folder of checkpoints, one checkpoint, or the URI of a run or of one checkpoint
            in a mirror.
        choice: which one, where ``source`` has several.

    Raises:
        ConfigError: the URI is of no known kind.
        RunError: there is no such checkpoint, or the mirror cannot be read.
        CheckpointError: it is damaged.
    """
    if not is_remote(source):
        yield locate(Path(source), choice)
        return
    with tempfile.TemporaryDirectory(prefix="ssl-dist-") as folder:
        uri = os.fspath(source)
        place, last = split_uri(uri)
        if not last.startswith("step-"):
            yield Checkpoints(Path(folder), Mirror(uri)).choose(choice)
            return
        if choice != "newest":
            one = without_secrets(uri)
            raise RunError(f"{one} is one checkpoint, and {choice} chooses among a run's: give the run's URI")
        yield Checkpoints(Path(folder), Mirror(place)).fetch(last)


def locate_all(path: Path) -> Sequence[Checkpoint]:
    """Return all checkpoints of a run that verify, oldest first; at least one. Name damaged ones in the log.

    Args:
        path: the run's directory, its folder of checkpoints, or one checkpoint.

    Raises:
        RunError: there are none.
        CheckpointError: there are some, and none verifies.
    """
    if is_one(path):
        return [verify(path)]
    found, paths = [], Checkpoints(run_directory(path)).list()
    for one in reversed(paths):
        try:
            found.append(verify(one))
        except CheckpointError as error:
            log.warning("%s: passed over", error)
    if not paths:
        raise RunError(f"{path} holds no checkpoint: give a run's directory, or wait for one")
    if not found:
        raise CheckpointError(f"none of the {len(paths)} checkpoints of {path} verifies")
    return found


def run_directory(path: Path) -> Path:
    """Return the run's directory of ``path``, which is that directory, its folder of checkpoints, or one of these.

    Of a checkpoint that is in no run it is the folder that the checkpoint is in.

    Raises:
        RunError: ``path`` is no directory.
    """
    folder = path.absolute().parent if is_one(path) else path
    is_inside = folder.absolute().name == FOLDER and not (folder / FOLDER).is_dir()
    return folder.absolute().parent if is_inside else folder


def is_one(path: Path) -> bool:
    """Return whether a path is one checkpoint and not a run.

    Raises:
        RunError: it is no directory.
    """
    if not path.is_dir():
        raise RunError(f"{path} is not a run directory: give the directory that `ssl-dist pretrain` printed")
    return (path / META).exists() or path.absolute().name.startswith("step-")
