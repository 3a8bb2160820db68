"""Atomic writes: a reader finds a file's old content or its new content, never a part of it; and locks of files."""

from __future__ import annotations

import contextlib
import fcntl
import json
import math
import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from ssl_dist.errors import ConfigError, RunError

RUN_LOCK = "lock"  # in a run's directory: the process that drives the run has locked it
RUN_RECIPE = "recipe.txt"  # there too: the name or path of the recipe that the run began with


def expect_folder(folder: Path) -> None:
    """Refuse a folder that cannot be made or written, before work begins.

    Raises:
        RunError: it cannot.
    """
    there = next(parent for parent in (folder.absolute(), *folder.absolute().parents) if parent.exists())
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        raise RunError(f"{folder} cannot be made: {there} is no folder that can be written")


def free_folder(folder: Path, what: str, mend: str) -> Path:
    """Return the absolute path of a folder for ``new_folder``, before work begins.

    Args:
        what, mend: words for the message: where the name comes from, and what to do.

    Raises:
        ConfigError: it is there and not an empty folder, or it is a link.
        RunError: it cannot be made.
    """
    path = Path(os.path.abspath(folder))  # resolve would follow a link
    if path.is_symlink() or (path.exists() and (not path.is_dir() or any(path.iterdir()))):
        raise ConfigError(f"{what} {path}: it is there already, and not empty: {mend}, or delete this one")
    expect_folder(path)
    return path


@contextlib.contextmanager
def replacing(path: Path, *, durable: bool = False) -> Iterator[Path]:
    """Yield a temporary name beside ``path``, and rename to ``path`` what the block wrote there.

    The block writes a file, or a directory of files. If it raises, what it wrote is removed and ``path`` stays as it
    was; a kill leaves a hidden file ``.NAME.*.tmp``, which nothing reads. An older directory is deleted just before the
    rename: a kill between the two leaves neither, but never a part.

    Args:
        durable: sync the content to the disk before the rename and the rename after it, so that a power failure does
            not lose them.
    """
    aside = _aside(path)
    try:
        yield aside
        if durable:
            for written in (*aside.glob("*"), aside):
                _sync(written)
        if aside.is_dir():
            shutil.rmtree(path, ignore_errors=True)  # a rename replaces a file, but no directory
        aside.replace(path)
    except BaseException:
        if aside.is_dir():
            shutil.rmtree(aside, ignore_errors=True)
        else:
            aside.unlink(missing_ok=True)
        raise
    if durable:
        _sync(path.parent)


@contextlib.contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Yield a temporary folder beside ``path``, and rename it to ``path``, which is not there, or an empty folder.

    If the block raises, neither folder is there.

    Raises:
        OSError: something is in ``path`` by then; it stays.
    """
    aside = _aside(path)
    try:
        aside.mkdir(parents=True)
        yield aside
        aside.rename(path)  # which replaces an empty folder, and refuses any other
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _aside(path: Path) -> Path:
    if path.name in ("", ".."):  # "new/.." is the current folder, which is not ours to delete
        raise RunError(f"{path} has no name of its own: give the folder's name")
    return path.with_name(f".{path.name.lstrip('.')}.{uuid.uuid4().hex}.tmp")  # no other machine takes this name


def write_text(path: Path, text: str, *, durable: bool = False) -> None:
    """Write a UTF-8 file, whole or not at all; ``durable`` as in ``replacing``."""
    with replacing(path, durable=durable) as aside:
        aside.write_text(text, encoding="utf-8")


def to_json(value: Any) -> str:
    """Return JSON that every parser reads: numbers that are not finite become null."""
    return json.dumps(_finite(value))


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def lock(path: Path) -> IO[str] | None:
    """Open a file, made if it is missing, and lock it until it is closed; None where another process has locked it."""
    file = path.open("a")  # what another process has written there stays
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        return None
    return file


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
