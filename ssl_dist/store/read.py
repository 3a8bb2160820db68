"""Read a store: random rows from memory-mapped shards, checked against the manifest on first touch."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import pyarrow as pa

from ssl_dist.errors import StoreDamaged, StoreError, Unreadable
from ssl_dist.store.decode import decode
from ssl_dist.store.schema import NO_LABEL, Manifest, ShardEntry, checksum, shard_schema

Verify = Literal["lazy", "off", "full"]


NO_BATCH = -1  # damage in a shard's Arrow header or footer, outside its record batches: no row is lost


class Damage(NamedTuple):
    """A record batch whose bytes differ from its checksum; ``rows`` are sample ids [first, one past the last)."""

    shard: str
    batch: int
    rows: tuple[int, int]


class ImageStore:
    """Random access to the images of a store.

    Args:
        path: the store's folder.
        verify: "lazy" checks each record batch when it is first touched, "full" checks all of them now, "off" none.

    Attributes:
        manifest: what the store says of itself.
        image_shape: (H, W, 3).
        class_names: names of the classes; empty where there are no labels.

    Raises:
        StoreError: no store there, or a shard is missing or of another schema.
        StoreDamaged: "full" found damage.
    """

    def __init__(self, path: str | os.PathLike[str], verify: Verify = "lazy") -> None:
        if verify not in ("lazy", "off", "full"):
            raise StoreError(f"verify={verify!r}: it is 'lazy', 'off' or 'full'")
        self.path = Path(path)
        self.manifest = Manifest.read(self.path)
        self.image_shape = self.manifest.image_shape
        self.class_names = self.manifest.class_names
        self._shards = [_MappedShard(self.path, entry, self.manifest) for entry in self.manifest.shards]
        # record batch b of the whole store holds sample ids [_starts[b], _starts[b + 1])
        self._batches = [(shard, b) for shard in self._shards for b in range(len(shard.entry.batches))]
        rows = [shard.entry.batches[b].rows for shard, b in self._batches]
        self._starts = np.concatenate([[0], np.cumsum(rows, dtype=np.int64)])
        self._columns: dict[int, np.ndarray | pa.BinaryArray] = {}
        self._threads: ThreadPoolExecutor | None = None
        self._labels: np.ndarray | None = None
        self._unchecked = np.full(len(self._batches), verify == "lazy")
        if verify == "full" and (damaged := self.verify()):
            raise StoreDamaged(f"{self.path}: {len(damaged)} damaged record batches, first {damaged[0]}")

    def __len__(self) -> int:
        return self.manifest.rows

    @property
    def labels(self) -> np.ndarray:
        """int32 ``[n]``: index into ``class_names``, -1 where an image has none."""
        if self._labels is None and not self.class_names:
            self._labels = np.full(len(self), NO_LABEL, dtype=np.int32)
        if self._labels is None:
            columns = [shard.batch(b).column("label").fill_null(NO_LABEL) for shard, b in self._checked_batches()]
            self._labels = np.concatenate([column.to_numpy(zero_copy_only=False) for column in columns])
        return self._labels

    def rows(self) -> Iterator[tuple[str, int, np.ndarray | bytes]]:
        """Key, label (NO_LABEL: none) and image of every row: pixels, uint8 ``[H, W, 3]``, or the bytes of a JPEG.

        Raises:
            StoreDamaged: as ``gather``.
        """
        for number, (shard, index) in enumerate(self._batches):
            self._check(number)
            batch = shard.batch(index)
            labels = batch.column("label").fill_null(NO_LABEL).to_pylist()
            images = self._column(number)
            contents = images if isinstance(images, np.ndarray) else (one.as_py() for one in images)
            yield from zip(batch.column("key").to_pylist(), labels, contents, strict=True)

    def gather(self, ids: np.ndarray) -> np.ndarray:
        """Images by sample id, in the order asked for, repeats allowed.

        Args:
            ids: int64 ``[N]`` in [0, len(store)).

        Returns:
            uint8 ``[N, H, W, 3]``, a copy.

        Raises:
            StoreError: an id outside the store.
            StoreDamaged: a touched record batch differs from its checksum (names shard, batch, rows).
        """
        ids = np.asarray(ids, dtype=np.int64)
        if ids.size and not (ids.min() >= 0 and ids.max() < len(self)):
            raise StoreError(f"{self.path} has samples 0..{len(self) - 1}, asked for {ids.min()}..{ids.max()}")
        images = np.empty((len(ids), *self.image_shape), dtype=np.uint8)
        batch_of = np.searchsorted(self._starts, ids, side="right") - 1
        by_batch = np.argsort(batch_of, kind="stable")
        touched, first = np.unique(batch_of[by_batch], return_index=True)
        for batch, positions in zip(touched.tolist(), np.split(by_batch, first[1:]), strict=False):
            rows, column = ids[positions] - self._starts[batch], self._column(batch)
            if isinstance(column, np.ndarray):
                images[positions] = column[rows]
            else:
                self._decode(batch, rows, images, positions)
        return images

    def _decode(self, batch: int, rows: np.ndarray, images: np.ndarray, positions: np.ndarray) -> None:
        """Decode rows of a record batch of JPEGs, in threads, into their places."""
        column = self._column(batch)
        self._threads = self._threads or ThreadPoolExecutor(os.cpu_count(), thread_name_prefix="jpeg")

        def one(row: int, position: int) -> None:
            try:
                image = decode(column[row].as_py(), None)
            except Unreadable as error:
                raise StoreDamaged(f"{self.path}: row {row} of record batch {batch} is no image ({error})") from None
            if image.shape != self.image_shape:
                raise StoreDamaged(
                    f"{self.path}: row {row} of record batch {batch} is {image.shape}, not {self.image_shape}"
                )
            images[position] = image

        for _ in self._threads.map(one, rows.tolist(), positions.tolist()):
            pass

    def verify(self) -> list[Damage]:
        """Check every byte of every shard; returns what is damaged."""
        damaged = [self._damage(b) for b, (shard, i) in enumerate(self._batches) if not shard.is_intact(i)]
        named = {damage.shard for damage in damaged}
        for shard in self._shards:
            if shard.entry.file not in named and not shard.is_intact():
                damaged.append(Damage(shard.entry.file, NO_BATCH, (0, 0)))
        return damaged

    def _damage(self, batch: int) -> Damage:
        shard, index = self._batches[batch]
        return Damage(shard.entry.file, index, (int(self._starts[batch]), int(self._starts[batch + 1])))

    def _check(self, batch: int) -> None:
        shard, index = self._batches[batch]
        if not self._unchecked[batch]:
            return
        if not shard.is_intact(index):
            name, _, (start, stop) = self._damage(batch)
            raise StoreDamaged(
                f"{self.path / name}: record batch {index} (samples {start}..{stop - 1}) differs from its checksum:"
                " `ssl-dist store verify` lists all damage; build the store again or restore the file"
            )
        self._unchecked[batch] = False

    def _checked_batches(self) -> list[tuple[_MappedShard, int]]:
        for batch in range(len(self._batches)):
            self._check(batch)
        return self._batches

    def _column(self, batch: int) -> np.ndarray | pa.BinaryArray:
        """On the memory map, made once: uint8 [rows, H, W, 3], or the bytes of JPEGs."""
        if batch not in self._columns:
            self._check(batch)
            shard, index = self._batches[batch]
            column = shard.batch(index).column("image")
            self._columns[batch] = column.to_numpy_ndarray() if self.manifest.encoding == "raw" else column
        return self._columns[batch]


class _MappedShard:
    """One shard file on a memory map.

    Record batches are found by the manifest's offsets and read with the manifest's schema, so every byte that is
    trusted lies under a checksum; the Arrow file's own header and footer serve other readers.
    """

    def __init__(self, store: Path, entry: ShardEntry, manifest: Manifest) -> None:
        self.entry, self.path = entry, store / entry.file
        self._schema = shard_schema(manifest.encoding, manifest.image_shape)
        try:
            empty = self.path.stat().st_size == 0  # an empty file cannot be mapped
            self._bytes = np.empty(0, dtype=np.uint8) if empty else np.memmap(self.path, dtype=np.uint8, mode="r")
        except OSError as error:
            raise StoreError(f"{self.path}: {error.strerror}; restore the file or build the store again") from None

    def is_intact(self, index: int | None = None) -> bool:
        """Does this record batch (None: the whole file) match its checksum?"""
        if index is None:
            return checksum(self._bytes) == self.entry.xxh3
        return checksum(self._message(index)) == self.entry.batches[index].xxh3

    def batch(self, index: int) -> pa.RecordBatch:
        try:
            batch = pa.ipc.read_record_batch(pa.py_buffer(self._message(index)), self._schema)
            batch.validate(full=True)  # its checksum says that it is what was written, not who wrote it
        except (pa.ArrowException, OSError, EOFError, ValueError) as error:
            raise StoreDamaged(f"{self.path}: record batch {index} cannot be read ({error})") from None
        if batch.num_rows != self.entry.batches[index].rows:
            raise StoreDamaged(
                f"{self.path}: record batch {index} has {batch.num_rows} rows, not those of the manifest"
            )
        return batch

    def _message(self, index: int) -> np.ndarray:
        batch = self.entry.batches[index]
        return self._bytes[batch.offset : batch.offset + batch.length]
