"""A second place for a run's checkpoints, wherever ``pyarrow.fs`` reaches: ``s3://bucket/folder``, ``gs://``, ``file://``.

    MIRROR/RUN/step-00000500/     as in the run's directory; its checkpoint.json is put last

Nothing there is renamed, since object stores cannot: a directory without its last file is not a checkpoint.
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

_PARALLEL = 8 << 20  # bytes in flight a file


class Mirror:
    """Directories named ``step-*`` under a URI. Every method but the constructor raises OSError where it cannot reach
    them; credentials are those that the AWS and Google libraries find."""

    def __init__(self, uri: str) -> None:
        """
        Raises:
            ConfigError: not a URI of a kind that is known.
        """
        self.uri = without_secrets(uri)
        try:
            self._system, self._base = fs.FileSystem.from_uri(uri)
        except (OSError, ValueError, pyarrow.ArrowException) as error:
            raise ConfigError(
                f"{self.uri} is not a place for checkpoints ({reason_of(error, uri)}): e.g. s3://bucket/folder"
            ) from None

    def expect_writable(self) -> None:
        """
        Raises:
            ConfigError: it is not.
        """
        try:
            self._system.create_dir(self._base)
        except OSError as error:
            raise ConfigError(f"checkpoints cannot be written to {self.uri} ({error})") from None

    def names(self) -> list[str]:
        """Of all directories, whole or not, newest first."""
        there = self._system.get_file_info(fs.FileSelector(self._base, allow_not_found=True))
        found = [info.base_name for info in there if info.type == fs.FileType.Directory]
        return sorted((name for name in found if name.startswith("step-")), reverse=True)

    def put(self, folder: Path, last: str) -> None:
        """Copy a directory's files, ``last`` when the others are there; what had its name is gone first."""
        self.delete(folder.name)
        for file in sorted(folder.iterdir(), key=lambda file: file.name == last):
            self._system.create_dir(f"{self._base}/{folder.name}")
            fs.copy_files(
                str(file),
                f"{self._base}/{folder.name}/{file.name}",
                fs.LocalFileSystem(),
                self._system,
                chunk_size=_PARALLEL,
            )

    @contextlib.contextmanager
    def fetched(self, name: str, beside: Path) -> Iterator[Path]:
        """A copy of a directory in the folder ``beside``, gone afterwards unless it was moved."""
        beside.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{name}.", suffix=".tmp", dir=beside) as folder:
            copy = Path(folder) / name
            copy.mkdir()
            fs.copy_files(f"{self._base}/{name}", str(copy), self._system, fs.LocalFileSystem(), chunk_size=_PARALLEL)
            yield copy

    def read(self, name: str, file: str) -> bytes:
        """A small file of a directory, empty where it is not there."""
        try:
            with self._system.open_input_stream(f"{self._base}/{name}/{file}") as stream:
                content: bytes = stream.read()
        except FileNotFoundError:
            return b""
        return content

    def delete(self, name: str) -> None:
        """A directory, if it is there."""
        with contextlib.suppress(FileNotFoundError):
            self._system.delete_dir(f"{self._base}/{name}")
