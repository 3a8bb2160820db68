"""Read one shard file: as a memory map in a store small enough to stay in memory, otherwise with plain reads.

Record batches are located by the manifest's offsets and parsed with the manifest's schema, so a checksum covers every
byte that is trusted. The header and footer of the Arrow file are there for other readers.
"""

from __future__ import annotations

import contextlib
import io
import mmap
import os
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

import numpy as np
import pyarrow as pa
import xxhash

from ssl_dist.errors import StoreDamaged, StoreError
from ssl_dist.store.schema import NO_BATCH, Manifest, ShardEntry, checksum, parse_record_batch, shard_schema

RecordBatch: TypeAlias = pa.RecordBatch  # for modules that do not import Arrow

_CHUNK_BYTES = 16 << 20  # read at a time while a whole file is verified


class ShardReader:
    """A shard file, opened when it is first read. Any thread may call any method at any time.

    Args:
        store: name of the store, for messages.
        num_classes: labels in the shard are less than this.
        open_file: opens the shard's file.
        mapped: whether to read through a memory map that stays. The pages of a map count as the process' memory, and
            the system maps up to 2 MiB around each page that is touched.

    Attributes:
        entry: the shard's entry in the manifest.
        path: the shard's path or URI, for messages.
    """

    def __init__(
        self,
        store: str,
        entry: ShardEntry,
        manifest: Manifest,
        num_classes: int,
        open_file: Callable[[], io.FileIO],
        *,
        mapped: bool,
    ) -> None:
        self.entry, self.path = entry, f"{store}/{entry.file}"
        self._schema = shard_schema(manifest.encoding, manifest.image_shape)
        self._num_classes = num_classes
        self._open_file, self._mapped = open_file, mapped
        self._file: io.FileIO | None = None
        self._map: mmap.mmap | None = None
        self._contents: np.ndarray | None = None

    @property
    def contents(self) -> np.ndarray:
        """The bytes of the file as a memory map, uint8 ``[n]``, read-only; raises StoreError if it cannot be opened."""
        if (contents := self._contents) is None:
            mapping = self._map = self._new_map()
            contents = self._contents = np.frombuffer(mapping or b"", dtype=np.uint8)
        return contents

    def _open(self) -> io.FileIO:
        """Return the open file. Two threads may open it at once: a lock would block others during a download."""
        if (file := self._file) is None:
            try:
                file = self._file = self._open_file()
            except OSError as error:
                raise _unreadable(self.path, error) from None
        return file

    def _new_map(self) -> mmap.mmap | None:
        file = self._open()  # this reference keeps the file open if another thread calls ``release``
        try:
            mapping = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
        except ValueError:  # an empty file cannot be mapped
            return None
        except OSError as error:
            raise _unreadable(self.path, error) from None
        with contextlib.suppress(OSError, AttributeError):  # not every system has large pages
            mapping.madvise(mmap.MADV_HUGEPAGE)
        return mapping

    def read_message(self, index: int) -> np.ndarray:
        """Read the bytes of a record batch, uint8 ``[n]``: fewer than the manifest says if the file has been cut."""
        batch = self.entry.batches[index]
        return self._read_available(batch.offset, batch.length)

    def is_intact(self, index: int, message: np.ndarray) -> bool:
        """Return whether the ``message`` of a record batch has the checksum of the manifest."""
        return checksum(message) == self.entry.batches[index].xxh3

    def damaged_batches(self) -> list[int]:
        """Return the numbers of the record batches that differ from their checksums.

        The list is ``[NO_BATCH]`` if only bytes outside the record batches differ.
        """
        if damaged := [i for i in range(len(self.entry.batches)) if not self.is_intact(i, self.read_message(i))]:
            return damaged
        whole, start = xxhash.xxh3_64(), 0
        while len(chunk := self._read_available(start, _CHUNK_BYTES)):
            whole.update(chunk.data)
            start += len(chunk)
        return [] if whole.hexdigest() == self.entry.xxh3 else [NO_BATCH]

    def parse(self, index: int, message: np.ndarray) -> RecordBatch:
        """Parse the ``message`` of a record batch.

        Raises:
            StoreDamaged: it is not a record batch of this store's schema, or has another number of rows.
        """
        try:
            # even with a right checksum: anyone may have written both
            batch = parse_record_batch(message, self._schema, self._num_classes)
        except (pa.ArrowException, OSError, EOFError, ValueError) as error:
            raise StoreDamaged(f"{self.path}: record batch {index} cannot be read ({error})") from None
        if batch.num_rows != (expected := self.entry.batches[index].rows):
            raise StoreDamaged(
                f"{self.path}: record batch {index} has {batch.num_rows} rows where the manifest has {expected}"
            )
        return batch

    def buffer_offsets(self, index: int, message: np.ndarray, batch: RecordBatch) -> list[int]:
        """Return the offsets in the file of the buffers of a record batch's images.

        Raw images have one buffer, their pixels; JPEG images have two: int32 offsets, and the files.
        """
        column = batch.column("image")
        column = column.storage.flatten() if isinstance(column, pa.ExtensionArray) else column
        memory_to_file = self.entry.batches[index].offset - message.ctypes.data
        return [memory_to_file + buffer.address for buffer in column.buffers()[1:]]

    def read(self, start: int, length: int) -> np.ndarray:
        """Read ``length`` bytes from ``start`` on, uint8 ``[length]``.

        Raises:
            StoreDamaged: the file ends before that.
            StoreError: it cannot be read.
        """
        content = self._read_available(start, length)
        if len(content) != length:
            raise self._cut()
        return content

    def _read_available(self, start: int, length: int) -> np.ndarray:
        """Read as ``read`` does, but return what there is if the file ends before that."""
        if self._mapped:
            return self.contents[start : start + length]
        file = self._open()
        available = os.fstat(file.fileno()).st_size - start  # never allocate what a wrong manifest promises
        content = np.empty(max(0, min(length, available)), dtype=np.uint8)
        return content[: self._fill(content.data, start)]

    def read_into(self, target: memoryview, start: int) -> None:
        """Fill ``target`` from a file that is not mapped; raise as ``read`` does."""
        if self._fill(target, start) != len(target):
            raise self._cut()

    def _fill(self, target: memoryview, start: int) -> int:
        """Read into ``target`` until it is full or the file ends; return the number of bytes."""
        file, done = self._open(), 0  # the reference keeps the file open if another thread calls ``release``
        try:
            while done < len(target) and (count := os.preadv(file.fileno(), (target[done:],), start + done)):
                done += count
        except OSError as error:
            raise _unreadable(self.path, error) from None
        return done

    def expect_whole(self) -> None:
        """Check that the file is as long as its map: reading a map beyond the file's end would kill the process.

        Raises:
            StoreDamaged: the file has been cut since it was mapped.
        """
        mapping = self._map
        if mapping and mapping.size() < len(mapping):
            raise self._cut()

    def _cut(self) -> StoreDamaged:
        return StoreDamaged(f"{self.path} has been cut: restore the file")

    def release(self) -> None:
        """Drop the open file and its map until the next read. Threads that read now keep their own references."""
        self._contents = self._map = self._file = None


def local_opener(path: Path) -> Callable[[], io.FileIO]:
    """Return a function that opens a file of this machine.

    Raises:
        StoreError: the file is missing.
    """
    try:
        path.stat()
    except OSError as error:
        raise _unreadable(str(path), error) from None
    return lambda: io.FileIO(path)


def _unreadable(path: str, error: OSError) -> StoreError:
    return StoreError(f"{path}: {error.strerror}; restore the file or build the store again")
