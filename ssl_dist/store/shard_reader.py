"""One shard file: of a store that may stay in memory mapped, of a larger one read.

Record batches are found by the manifest's offsets and read with the manifest's schema, so every byte that is trusted
lies under a checksum; the Arrow file's own header and footer serve other readers.
"""

from __future__ import annotations

import contextlib
import io
import mmap
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeAlias

import numpy as np
import pyarrow as pa
import xxhash

from ssl_dist.errors import StoreDamaged, StoreError
from ssl_dist.store.schema import NO_BATCH, Manifest, ShardEntry, checksum, record_batch, shard_schema

RecordBatch: TypeAlias = pa.RecordBatch  # as others call it, who do not know Arrow

_PART_BYTES = 16 << 20  # of a file that is read as a whole
_LARGEST = sys.maxsize  # bytes of an array, as NumPy has it


class ShardFile:
    """A shard file, opened when it is first read.

    Args:
        store: name of the store.
        opened: opens the file.
        mapped: whether it is mapped, and stays so. Mapped pages count as the process' memory, and so do those that the
            system maps with one that is touched, of up to 2 MiB.
    """

    def __init__(
        self, store: str, entry: ShardEntry, manifest: Manifest, opened: Callable[[], io.FileIO], *, mapped: bool
    ) -> None:
        self.entry, self.path = entry, f"{store}/{entry.file}"
        self._schema = shard_schema(manifest.encoding, manifest.image_shape)
        self._num_classes = len(manifest.class_names)
        self._opened, self._is_mapped = opened, mapped
        self._file: io.FileIO | None = None
        self._map: mmap.mmap | None = None
        self._contents: np.ndarray | None = None

    @property
    def contents(self) -> np.ndarray:
        """uint8 ``[n]``, read-only: the file's bytes, mapped.

        Raises:
            StoreError: the file cannot be opened.
        """
        if (there := self._contents) is None:
            found = self._map = self._mapped()
            there = self._contents = np.frombuffer(found or b"", dtype=np.uint8)
        return there

    def _open(self) -> io.FileIO:
        """The file; two threads may open it at once. No lock is held, since it may be fetched, and wait for room."""
        if (there := self._file) is None:
            try:
                there = self._file = self._opened()
            except OSError as error:
                raise missing(self.path, error) from None
        return there

    def _mapped(self) -> mmap.mmap | None:
        file = self._open()  # which another thread may ``forget`` meanwhile: then its descriptor would be another's
        try:
            found = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
        except ValueError:  # an empty file cannot be mapped
            return None
        except OSError as error:
            raise missing(self.path, error) from None
        with contextlib.suppress(OSError, AttributeError):  # of a system without large pages
            found.madvise(mmap.MADV_HUGEPAGE)
        return found

    def message(self, index: int) -> np.ndarray:
        """uint8 ``[n]``: a record batch as it lies there, which is less than all of it where the file has been cut."""
        batch = self.entry.batches[index]
        return self._bytes(batch.offset, batch.length)

    def matches(self, index: int, message: np.ndarray) -> bool:
        """Has the record batch's ``message`` its checksum?"""
        return checksum(message) == self.entry.batches[index].xxh3

    def damaged(self) -> list[int]:
        """Record batches that differ from their checksums; NO_BATCH alone where what is around them differs."""
        found = [index for index in range(len(self.entry.batches)) if not self.matches(index, self.message(index))]
        if found:
            return found
        whole, start = xxhash.xxh3_64(), 0
        while len(part := self._bytes(start, _PART_BYTES)):
            whole.update(part.data)
            start += len(part)
        return [] if whole.hexdigest() == self.entry.xxh3 else [NO_BATCH]

    def batch(self, index: int, message: np.ndarray) -> RecordBatch:
        """The record batch of a ``message``.

        Raises:
            StoreDamaged: it is none, or not of this schema.
        """
        try:
            # its checksum says that it is what was written, not who wrote it
            batch = record_batch(message, self._schema, self._num_classes)
        except (pa.ArrowException, OSError, EOFError, ValueError) as error:
            raise StoreDamaged(f"{self.path}: record batch {index} cannot be read ({error})") from None
        if batch.num_rows != self.entry.batches[index].rows:
            raise StoreDamaged(
                f"{self.path}: record batch {index} has {batch.num_rows} rows, not those of the manifest"
            )
        return batch

    def image_buffers(self, index: int, message: np.ndarray, batch: RecordBatch) -> list[int]:
        """Where the bytes of a ``batch``'s images are in the file: raw [pixels], JPEG [int32 offsets, files]."""
        column = batch.column("image")
        column = column.storage.flatten() if isinstance(column, pa.ExtensionArray) else column
        first = self.entry.batches[index].offset - message.ctypes.data
        return [first + buffer.address for buffer in column.buffers()[1:]]

    def part(self, start: int, length: int) -> np.ndarray:
        """uint8 ``[length]``: bytes from ``start`` on.

        Raises:
            StoreDamaged: the file ends before.
            StoreError: it cannot be read.
        """
        found = self._bytes(start, length)
        if len(found) != length:
            raise self._cut()
        return found

    def _bytes(self, start: int, length: int) -> np.ndarray:
        """As ``part``, or what there is of it."""
        if self._is_mapped:
            return self.contents[start : start + length]
        file = self._open()
        there = os.fstat(file.fileno()).st_size - start  # a manifest may promise anything
        found = np.empty(max(0, min(length, there)), dtype=np.uint8)
        return found[: self._read(found.data, start)]

    def read_into(self, target: memoryview, start: int) -> None:
        """As ``part``, into ``target``, of a file that is not mapped."""
        if self._read(target, start) != len(target):
            raise self._cut()

    def _read(self, target: memoryview, start: int) -> int:
        """How many bytes there were."""
        file, done = self._open(), 0  # which another thread may ``forget`` meanwhile
        try:
            while done < len(target) and (more := os.preadv(file.fileno(), (target[done:],), start + done)):
                done += more
        except OSError as error:
            raise missing(self.path, error) from None
        return done

    def expect_whole(self) -> None:
        """Reading what was mapped of a file that has been cut since would end the process.

        Raises:
            StoreDamaged: it has been.
        """
        there = self._map
        if there and there.size() < len(there):
            raise self._cut()

    def _cut(self) -> StoreDamaged:
        return StoreDamaged(f"{self.path} has been cut: restore the file")

    def forget(self) -> None:
        """Let go of the file itself, until it is read again; whoever reads it now still does."""
        self._contents = self._map = self._file = None


def copied(maps: Mapping[int, np.ndarray], numbers: np.ndarray, starts: np.ndarray, length: int) -> np.ndarray:
    """Runs of bytes of several maps at once, as fast as NumPy indexes the rows of one array, without the interpreter's
    lock: all addresses from the first map to the last are one array, in which a row may begin at any byte.

    Args:
        maps: uint8 ``[n_i]``, contiguous, by their numbers.
        numbers, starts: int64 ``[N]``, of each run its map and its first byte there.
        length: of a run.

    Returns:
        uint8 ``[N, length]``.

    Raises:
        IndexError: a run that begins before its map or ends beyond it.
    """
    if not len(starts):
        return np.empty((0, length), dtype=np.uint8)
    addresses = {number: each.__array_interface__["data"][0] for number, each in maps.items()}
    first = min(addresses, key=addresses.__getitem__)
    offsets, ends = np.zeros((2, max(maps) + 1), dtype=np.int64)
    for number, address in addresses.items():
        offsets[number] = address - addresses[first]
        ends[number] = offsets[number] + len(maps[number])
    rows = starts + offsets[numbers]
    if starts.min() < 0 or (ends[numbers] - rows).min() < length:
        raise IndexError("bytes beyond a map")
    span = int(ends.max()) - length + 1
    if span > _LARGEST // length and len(maps) > 1:  # too far apart for one array
        made = np.empty((len(starts), length), dtype=np.uint8)
        for number, each in maps.items():
            of_it = np.flatnonzero(numbers == number)
            made[of_it] = copied({number: each}, numbers[of_it], starts[of_it], length)
        return made
    everything = np.lib.stride_tricks.as_strided(maps[first], (span, length), (1, 1))
    found: np.ndarray = everything[rows]
    return found


def local(path: Path) -> Callable[[], io.FileIO]:
    """What opens a file of this machine's.

    Raises:
        StoreError: there is none.
    """
    try:
        path.stat()
    except OSError as error:
        raise missing(str(path), error) from None
    return lambda: io.FileIO(path)


def missing(path: str, error: OSError) -> StoreError:
    """What to raise where a shard's file cannot be opened or read."""
    return StoreError(f"{path}: {error.strerror}; restore the file or build the store again")
