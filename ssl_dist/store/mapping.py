"""One shard file on a memory map.

Record batches are found by the manifest's offsets and read with the manifest's schema, so every byte that is trusted
lies under a checksum; the Arrow file's own header and footer serve other readers.
"""

from __future__ import annotations

import io
import mmap
import os
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa

from ssl_dist.errors import StoreDamaged, StoreError
from ssl_dist.store.schema import Manifest, ShardEntry, checksum, record_batch, shard_schema


class MappedShard:
    """A shard file, mapped when it is first read.

    Raises:
        StoreError: there is no such file.
    """

    def __init__(self, store: Path, entry: ShardEntry, manifest: Manifest) -> None:
        self.entry, self.path = entry, store / entry.file
        self._schema = shard_schema(manifest.encoding, manifest.image_shape)
        self._num_classes = len(manifest.class_names)
        try:
            self.path.stat()
        except OSError as error:
            raise self._missing(error) from None

    @cached_property
    def _file(self) -> io.FileIO:
        try:
            return io.FileIO(self.path)
        except OSError as error:
            raise self._missing(error) from None

    @cached_property
    def _map(self) -> mmap.mmap | None:
        try:
            return mmap.mmap(self._file.fileno(), 0, prot=mmap.PROT_READ)
        except ValueError:  # an empty file cannot be mapped
            return None

    @cached_property
    def contents(self) -> np.ndarray:
        """uint8 ``[n]``, read-only: the file's bytes."""
        return np.frombuffer(self._map or b"", dtype=np.uint8)

    def is_intact(self, index: int | None = None) -> bool:
        """Does this record batch (None: the whole file) match its checksum?"""
        if index is None:
            return checksum(self.contents) == self.entry.xxh3
        return checksum(self._message(index)) == self.entry.batches[index].xxh3

    def batch(self, index: int) -> pa.RecordBatch:
        """A record batch on the map.

        Raises:
            StoreDamaged: it is none, or not of this schema.
        """
        try:
            # its checksum says that it is what was written, not who wrote it
            batch = record_batch(self._message(index), self._schema, self._num_classes)
        except (pa.ArrowException, OSError, EOFError, ValueError) as error:
            raise StoreDamaged(f"{self.path}: record batch {index} cannot be read ({error})") from None
        if batch.num_rows != self.entry.batches[index].rows:
            raise StoreDamaged(
                f"{self.path}: record batch {index} has {batch.num_rows} rows, not those of the manifest"
            )
        return batch

    def image_buffers(self, index: int) -> list[int]:
        """Where the bytes of a record batch's images are in ``contents``: raw [pixels], JPEG [int32 offsets, files].

        Raises:
            StoreDamaged: as ``batch``.
        """
        column = self.batch(index).column("image")
        column = column.storage.flatten() if isinstance(column, pa.ExtensionArray) else column
        base = self.contents.ctypes.data
        return [buffer.address - base for buffer in column.buffers()[1:]]

    def read_into(self, target: memoryview, start: int) -> None:
        """Bytes from ``start`` on, as many as the target has, past the map.

        Raises:
            StoreDamaged: the file has been cut since it was opened.
            StoreError: it cannot be read.
        """
        try:
            done = os.preadv(self._file.fileno(), (target,), start)
        except OSError as error:
            raise self._missing(error) from None
        if done != len(target):
            self.expect_whole()
            raise StoreDamaged(f"{self.path}: {done} bytes where {len(target)} were asked for, from byte {start} on")

    def expect_whole(self) -> None:
        """Reading what was mapped of a file that has been cut since would end the process.

        Raises:
            StoreDamaged: it has been.
        """
        if self._map and self._map.size() < len(self._map):
            raise StoreDamaged(f"{self.path} has been cut since it was opened: restore the file")

    def release(self) -> None:
        """Let go of the pages that are mapped; the system still caches what it has room for."""
        if self._map:
            self._map.madvise(mmap.MADV_DONTNEED)

    def _message(self, index: int) -> np.ndarray:
        batch = self.entry.batches[index]
        return self.contents[batch.offset : batch.offset + batch.length]

    def _missing(self, error: OSError) -> StoreError:
        return StoreError(f"{self.path}: {error.strerror}; restore the file or build the store again")
