"""A store's folder in a bucket: read its manifest, download its shards, verify them where they are.

``pyarrow.fs`` does the transfers, so a bucket is any URI that it knows: ``s3://bucket/store``, ``gs://``, ``file://``.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from pathlib import Path
from typing import IO

import pyarrow as pa
import xxhash
from pyarrow import fs

from ssl_dist.errors import StoreDamaged, StoreError
from ssl_dist.store.schema import MANIFEST, NO_BATCH, LabelsEntry, Manifest, ShardEntry
from ssl_dist.uris import is_remote, reason_of, without_secrets

_CHUNK_BYTES = 8 << 20
_ATTEMPTS = 2  # downloads of a shard when the connection fails; in each, Arrow itself retries S3 for minutes
_PAUSE_S = 1.0

log = logging.getLogger(__name__)


class Stopped(Exception):
    """A download ended early because the caller asked it to stop."""


def manifest_at(path: str | os.PathLike[str]) -> Manifest:
    """Return the manifest of the store in a folder or at a URI.

    Raises:
        StoreError: there is no store, it cannot be reached, or this version cannot read its manifest.
    """
    return Bucket(os.fspath(path)).manifest() if is_remote(path) else Manifest.read(Path(path))


class Bucket:
    """The folder of a store at a URI.

    Attributes:
        name: the URI without secrets.
    """

    def __init__(self, uri: str) -> None:
        """Open the file system of a URI.

        Raises:
            StoreError: the URI is not valid, or of an unknown kind.
        """
        self.name = without_secrets(uri).rstrip("/")
        try:
            self._system, base = fs.FileSystem.from_uri(uri)
        except (OSError, ValueError, pa.ArrowException) as error:
            raise StoreError(
                f"{self.name} is not the URI of a store ({reason_of(error, uri)}): write it like s3://bucket/store"
            ) from None
        self._base = base.rstrip("/")

    def manifest(self) -> Manifest:
        """Read and validate the manifest.

        Raises:
            StoreError: the bucket cannot be reached, has no manifest, or has one that this version cannot read.
        """
        try:
            content = self._read(MANIFEST)
        except FileNotFoundError:
            raise StoreError(
                f"{self.name} is not a store (no {MANIFEST}): build one on a disk and copy it there, {MANIFEST} last"
            ) from None
        return Manifest.parse(content, f"{self.name}/{MANIFEST}")

    def holds_store(self) -> bool:
        """Return whether there is a manifest.

        Raises:
            StoreError: the bucket cannot be reached.
        """
        try:
            return bool(self._system.get_file_info(f"{self._base}/{MANIFEST}").type == fs.FileType.File)
        except (OSError, ValueError, pa.ArrowException) as error:
            raise StoreError(self._unreachable(error)) from None

    def read_labels(self, entry: LabelsEntry) -> bytes | None:
        """Read the file of a store's labels; None: there is none. Raises StoreError if the bucket cannot be reached."""
        try:
            return self._read(entry.file, entry.bytes + 1)
        except FileNotFoundError:
            return None

    def _read(self, file: str, max_bytes: int | None = None) -> bytes:
        """Read a file, or its first bytes; raise StoreError if the bucket cannot be reached, or FileNotFoundError."""
        try:
            with self._system.open_input_stream(f"{self._base}/{file}") as stream:
                content: bytes = stream.read(max_bytes)
                return content
        except FileNotFoundError:
            raise
        except (OSError, pa.ArrowException) as error:
            raise StoreError(self._unreachable(error)) from None

    def download(self, entry: ShardEntry, file: IO[bytes], stop: threading.Event | None = None) -> None:
        """Write a shard's bytes to ``file``, and compare them with the checksum in the manifest.

        Raises:
            Stopped: ``stop`` was set.
            StoreError: the shard is missing, or the bucket cannot be reached.
            StoreDamaged: the shard differed from its checksum in two downloads.
            OSError: ``file`` cannot be written.
        """
        failures, mismatches = 0, 0
        while True:
            try:
                found = self._copy(entry, file, stop)
            except FileNotFoundError:
                raise StoreError(
                    f"{self.name}/{entry.file} is missing: copy the store again, its {MANIFEST} last"
                ) from None
            except _Unreachable as error:
                failures += 1
                if failures == _ATTEMPTS:
                    raise StoreError(f"{entry.file}: {self._unreachable(error)}") from None
                log.warning("%s/%s: attempt %d of %d failed (%s)", self.name, entry.file, failures, _ATTEMPTS, error)
                time.sleep(_PAUSE_S)
                continue
            if found == entry.xxh3:
                return
            mismatches += 1
            if mismatches == 2:
                raise StoreDamaged(
                    f"{self.name}/{entry.file} differs from its checksum, downloaded twice: copy the file there again"
                )
            log.warning("%s/%s arrived with another checksum: it is downloaded again", self.name, entry.file)

    def damaged_batches(self, entry: ShardEntry) -> list[int]:
        """Return the numbers of the record batches that differ from their checksums, without keeping a copy.

        The list is ``[NO_BATCH]`` if only bytes outside the record batches differ. A missing shard lists all of them.

        Raises:
            StoreError: the bucket cannot be reached.
        """
        whole, position, damaged = xxhash.xxh3_64(), 0, []
        try:
            with self._system.open_input_stream(f"{self._base}/{entry.file}") as stream:
                for index, batch in enumerate(entry.batches):
                    if batch.offset < position or batch.offset + batch.length > entry.bytes:
                        damaged.append(index)  # a foreign manifest may overlap batches or exceed the file
                        continue
                    between, content = stream.read(batch.offset - position), stream.read(batch.length)
                    position = batch.offset + batch.length
                    whole.update(between)
                    whole.update(content)
                    if xxhash.xxh3_64_hexdigest(content) != batch.xxh3:
                        damaged.append(index)
                while rest := stream.read(_CHUNK_BYTES):
                    whole.update(rest)
        except FileNotFoundError:
            return list(range(len(entry.batches)))
        except (OSError, ValueError, pa.ArrowException) as error:
            raise StoreError(f"{entry.file}: {self._unreachable(error)}") from None
        return damaged or ([] if whole.hexdigest() == entry.xxh3 else [NO_BATCH])

    def _copy(self, entry: ShardEntry, file: IO[bytes], stop: threading.Event | None) -> str:
        """Overwrite ``file`` from its beginning; return the checksum of the bytes, or text if their number is wrong.

        No more than the manifest's number of bytes is written, so that the file cannot outgrow its room in the cache.
        """
        digest, left = xxhash.xxh3_64(), entry.bytes
        file.seek(0)
        try:
            stream = self._system.open_input_stream(f"{self._base}/{entry.file}")
        except FileNotFoundError:
            raise
        except (OSError, pa.ArrowException) as error:
            raise _Unreachable(error) from None
        with stream:
            while chunk := _read(stream, min(_CHUNK_BYTES, left + 1)):
                if stop and stop.is_set():
                    raise Stopped
                digest.update(chunk)
                left -= len(chunk)
                if left < 0:
                    break
                file.write(chunk)
        return digest.hexdigest() if left == 0 else f"{entry.bytes - left} bytes"

    def _unreachable(self, error: Exception) -> str:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        return (
            f"{self.name} cannot be reached ({reason}): check the network and the credentials, which are those that"
            " the AWS and Google libraries find (environment, ~/.aws, ~/.config/gcloud)"
        )


class _Unreachable(Exception):
    """Reading from the bucket failed; another attempt may succeed."""


def _read(stream: pa.NativeFile, count: int) -> bytes:
    try:
        content: bytes = stream.read(count)
    except (OSError, pa.ArrowException) as error:
        raise _Unreachable(error) from None
    return content
