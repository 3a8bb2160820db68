"""Copies of a run's checkpoints on a remote store: ``s3://bucket/folder``, ``gs://`` or ``file://``.

    MIRROR/RUN/step-00000500/     the same files as in the run directory; checkpoint.json is copied last

Object stores cannot rename, so a directory that lacks its last file is not a checkpoint.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pyarrow
from pyarrow import fs

from ssl_dist.errors import ConfigError
from ssl_dist.uris import reason_of, without_secrets

_CHUNK_BYTES = 8 << 20  # copied at a time


class Mirror:
    """The mirror of one run: directories ``step-*`` under a URI.

    The AWS and Google libraries find the credentials. Every method raises OSError if it cannot reach the store.

    Raises:
        ConfigError: ``uri`` is not a URI of a known kind.
    """

    def __init__(self, uri: str) -> None:
        self.uri = without_secrets(uri)
        try:
            self._system, self._base = fs.FileSystem.from_uri(uri)
        except (OSError, ValueError, pyarrow.ArrowException) as error:
            raise ConfigError(
                f"{self.uri} cannot hold checkpoints ({reason_of(error, uri)}): give a URI like s3://bucket/folder"
            ) from None

    def expect_writable(self) -> None:
        """Refuse a store that cannot be written to, before a run starts.

        Raises:
            ConfigError: the folder cannot be made.
        """
        try:
            self._system.create_dir(self._base)
        except OSError as error:
            raise ConfigError(f"checkpoints cannot be written to {self.uri} ({error})") from None

    def names(self) -> list[str]:
        """Return the names of all directories, whole or damaged, newest first."""
        there = self._system.get_file_info(fs.FileSelector(self._base, allow_not_found=True))
        found = [info.base_name for info in there if info.type == fs.FileType.Directory]
        return sorted((name for name in found if name.startswith("step-")), reverse=True)

    def put(self, folder: Path, last: str) -> None:
        """Replace the directory of this name by a copy of ``folder``; copy the file ``last`` after the others."""
        self.delete(folder.name)
        there, here = f"{self._base}/{folder.name}", fs.LocalFileSystem()
        self._system.create_dir(there)
        for file in sorted(folder.iterdir(), key=lambda file: file.name == last):
            fs.copy_files(str(file), f"{there}/{file.name}", here, self._system, chunk_size=_CHUNK_BYTES)

    @contextlib.contextmanager
    def fetched(self, name: str, beside: Path) -> Iterator[Path]:
        """Yield a copy of a directory, in a temporary folder in ``beside``; the block may move it elsewhere."""
        beside.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{name}.", suffix=".tmp", dir=beside) as folder:
            there, copy = f"{self._base}/{name}", Path(folder) / name
            copy.mkdir()
            fs.copy_files(there, str(copy), self._system, fs.LocalFileSystem(), chunk_size=_CHUNK_BYTES)
            yield copy

    def read(self, name: str, file: str) -> bytes:
        """Return the content of a small file; empty if it is missing."""
        try:
            with self._system.open_input_stream(f"{self._base}/{name}/{file}") as stream:
                return bytes(stream.read())
        except FileNotFoundError:
            return b""

    def delete(self, name: str) -> None:
        """Delete a directory, if there is one."""
        with contextlib.suppress(FileNotFoundError):
            self._system.delete_dir(f"{self._base}/{name}")
