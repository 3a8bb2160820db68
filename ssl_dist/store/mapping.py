"""One shard file on a memory map.

Record batches are found by the manifest's offsets and read with the manifest's schema, so every byte that is trusted
lies under a checksum; the Arrow file's own header and footer serve other readers.
"""

from __future__ import annotations

import contextlib
import io
import mmap
import os
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa

from ssl_dist.errors import StoreDamaged, StoreError
from ssl_dist.store.schema import NO_BATCH, Manifest, ShardEntry, checksum, record_batch, shard_schema


class MappedShard:
    """A shard file, opened and mapped when it is first read.

    Args:
        store: name of the store.
        opened: opens the file.
        large_pages: whether all of it may stay mapped: then its pages are mapped by the 2 MiB where the system can.
    """

    def __init__(
        self, store: str, entry: ShardEntry, manifest: Manifest, opened: Callable[[], io.FileIO], large_pages: bool
    ) -> None:
        self.entry, self.path = entry, f"{store}/{entry.file}"
        self._schema = shard_schema(manifest.encoding, manifest.image_shape)
        self._num_classes = len(manifest.class_names)
        self._opened, self._large_pages = opened, large_pages
        self._file: io.FileIO | None = None
        self._map: mmap.mmap | None = None
        self._contents: np.ndarray | None = None

    @property
    def contents(self) -> np.ndarray:
        """uint8 ``[n]``, read-only: the file's bytes.

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
            self._advise(found)
            return found
        except ValueError:  # an empty file cannot be mapped
            return None
        except OSError as error:
            raise missing(self.path, error) from None

    def _advise(self, there: mmap.mmap) -> None:
        if hasattr(mmap, "MADV_HUGEPAGE"):
            with contextlib.suppress(OSError):  # of a system without them
                there.madvise(mmap.MADV_HUGEPAGE if self._large_pages else mmap.MADV_NOHUGEPAGE)

    def damaged(self) -> list[int]:
        """Record batches that differ from their checksums; NO_BATCH alone where what is around them differs."""
        found = [index for index in range(len(self.entry.batches)) if not self.is_intact(index)]
        return found or ([] if checksum(self.contents) == self.entry.xxh3 else [NO_BATCH])

    def is_intact(self, index: int) -> bool:
        """Does this record batch match its checksum?"""
        return checksum(self._message(self.contents, index)) == self.entry.batches[index].xxh3

    def batch(self, index: int) -> pa.RecordBatch:
        """A record batch on the map.

        Raises:
            StoreDamaged: it is none, or not of this schema.
        """
        return self._read(self.contents, index)

    def _read(self, contents: np.ndarray, index: int) -> pa.RecordBatch:
        try:
            # its checksum says that it is what was written, not who wrote it
            batch = record_batch(self._message(contents, index), self._schema, self._num_classes)
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
        contents = self.contents
        column = self._read(contents, index).column("image")
        column = column.storage.flatten() if isinstance(column, pa.ExtensionArray) else column
        base = contents.ctypes.data
        return [buffer.address - base for buffer in column.buffers()[1:]]

    def read_into(self, target: memoryview, start: int) -> None:
        """Bytes from ``start`` on, as many as the target has, past the map.

        Raises:
            StoreDamaged: the file has been cut since it was opened.
            StoreError: it cannot be read.
        """
        file = self._open()  # which another thread may ``forget`` meanwhile
        try:
            done = os.preadv(file.fileno(), (target,), start)
        except OSError as error:
            raise missing(self.path, error) from None
        if done != len(target):
            self.expect_whole()
            raise StoreDamaged(f"{self.path}: {done} bytes where {len(target)} were asked for, from byte {start} on")

    def expect_whole(self) -> None:
        """Reading what was mapped of a file that has been cut since would end the process.

        Raises:
            StoreDamaged: it has been.
        """
        there = self._map
        if there and there.size() < len(there):
            raise StoreDamaged(f"{self.path} has been cut since it was opened: restore the file")

    def release(self) -> None:
        """Let go of the pages that are mapped; the system still caches what it has room for."""
        if there := self._map:
            there.madvise(mmap.MADV_DONTNEED)

    def forget(self) -> None:
        """Let go of the file itself, until it is read again; whoever reads it now still does."""
        self._contents = self._map = self._file = None

    def _message(self, contents: np.ndarray, index: int) -> np.ndarray:
        batch = self.entry.batches[index]
        return contents[batch.offset : batch.offset + batch.length]


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
        IndexError: a run that ends beyond its map.
    """
    if not len(starts):
        return np.empty((0, length), dtype=np.uint8)
    addresses = {number: each.__array_interface__["data"][0] for number, each in maps.items()}
    first = min(addresses, key=addresses.__getitem__)
    offsets, ends = np.zeros((2, max(maps) + 1), dtype=np.int64)
    for number, each in maps.items():
        offsets[number] = addresses[number] - addresses[first]
        ends[number] = offsets[number] + len(each)
    rows = starts + offsets[numbers]
    if (ends[numbers] - rows).min() < length:
        raise IndexError("bytes beyond a map")
    everything = np.lib.stride_tricks.as_strided(maps[first], (int(ends.max()) - length + 1, length), (1, 1))
    made: np.ndarray = everything[rows]
    return made


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
