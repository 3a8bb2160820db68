"""``ImageStore``: read images and labels of a store by sample id; damage is found when a record batch is first read.

The shards of a local store are files in its folder. Those of a remote store are downloaded into a cache when they are
touched (see ``ssl_dist.store.remote``).
"""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np

from ssl_dist.errors import ConfigError, StoreDamaged, StoreError, Unreadable
from ssl_dist.machine import num_cores
from ssl_dist.store.decode import decode
from ssl_dist.store.gather import gather
from ssl_dist.store.labels import parse_labels, read_labels
from ssl_dist.store.record_batches import Damage, RecordBatches
from ssl_dist.store.remote import DEFAULT_CACHE_GB, Bucket, Cache, Fetcher
from ssl_dist.store.schema import NO_BATCH, NO_LABEL, LabelsEntry, Manifest
from ssl_dist.store.shard_reader import RecordBatch, ShardReader, local_opener
from ssl_dist.uris import is_remote

Verify = Literal["lazy", "off", "full"]
DamagedRows = Literal["refuse", "skip"]

MAX_MAPPED_BYTES = 1 << 30  # a store up to this size stays mapped in memory; a larger one is read from its files


class ImageStore:
    """Random access to the images of a store.

    Args:
        path: the store's folder, or its URI.
        verify: "lazy" compares each record batch with its checksum when it is first read, "full" compares all now,
            "off" none.
        damaged: "refuse" raises StoreDamaged for an image in a damaged record batch; "skip" gives such images no label,
            and ``intact`` tells which they are. "skip" needs a local store, whose damage is the same on all machines.
        cache: folder of this machine for the shards of remote stores; see ``cache_folder``.
        cache_gb: upper bound of that folder's size.

    Attributes:
        name: the folder, or the URI without secrets, for messages.
        location: the absolute path, or the whole URI, to open the store again from anywhere.
        remote: downloads the shards of a remote store; None for a local one.
        manifest: the store's manifest.
        shard_rows: int64 ``[shards]``, images in each shard.
        image_shape: (H, W, 3).
        class_names: names of the classes; empty if the images have no labels.

    Raises:
        StoreError: there is no store, or a shard is missing, or an argument is not one of its choices.
        StoreDamaged: "full" found damage.
        ConfigError: "skip" with a remote store.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        verify: Verify = "lazy",
        damaged: DamagedRows = "refuse",
        *,
        cache: str | os.PathLike[str] | None = None,
        cache_gb: float = DEFAULT_CACHE_GB,
    ) -> None:
        if verify not in ("lazy", "off", "full"):
            raise StoreError(f"verify={verify!r}: it is 'lazy', 'off' or 'full'")
        if damaged not in ("refuse", "skip"):
            raise StoreError(f"damaged={damaged!r}: it is 'refuse' or 'skip'")
        self.remote: Fetcher | None = None
        self._bucket: Bucket | None = None
        if is_remote(path):
            bucket = self._bucket = Bucket(os.fspath(path))
            self.location = os.fspath(path)
            if damaged == "skip":
                raise ConfigError(
                    f"data.damaged=skip with {bucket.name}: a shard may arrive damaged on one machine and whole on"
                    " another: set data.damaged=refuse, and copy damaged shards to the bucket again"
                )
            self.name, self.manifest = bucket.name, bucket.manifest()
            self.remote = Fetcher(bucket, self.manifest.shards, Cache(cache, cache_gb), self._release_shard)
        else:
            self.name, self.location = str(path), str(Path(path).absolute())
            self.manifest = Manifest.read(Path(path))
        self.image_shape = self.manifest.image_shape
        self.class_names = self.manifest.class_names
        self._mapped, self._skips = self.manifest.bytes <= MAX_MAPPED_BYTES, damaged == "skip"
        firsts = itertools.accumulate((shard.rows for shard in self.manifest.shards[:-1]), initial=0)
        self._shards = [self._shard_reader(number, first) for number, first in enumerate(firsts)]
        self.shard_rows = np.array([shard.entry.rows for shard in self._shards], dtype=np.int64)
        self._batches = RecordBatches(
            self.name, self._shards, self.remote, checked=verify != "off", skip=damaged == "skip"
        )
        self._threads: ThreadPoolExecutor | None = None
        self._labels: np.ndarray | None = None
        self._given: np.ndarray | None = None
        if verify == "full" and (found := self.verify()):
            raise StoreDamaged(f"{self.name}: {len(found)} damaged record batches, first {found[0]}")

    def __len__(self) -> int:
        return self.manifest.rows

    @property
    def labels(self) -> np.ndarray:
        """int32 ``[n]``: index into ``class_names``, -1 for an image without a label."""
        if self._labels is None:
            labels = np.full(len(self), NO_LABEL, dtype=np.int32)
            for number in range(len(self._batches)) if self.class_names else ():
                labels[self._batches.sample_range(number)] = self._labels_in_batch(number)
            self._labels = labels
            self.release()  # it may be long until an image is read
        return self._labels

    def labels_at(self, ids: np.ndarray) -> np.ndarray:
        """Return ``labels[ids]``, int32 ``[N]``, but read only the record batches that hold these images."""
        if self._labels is not None or not self.class_names:
            known: np.ndarray = self.labels[ids]
            return known
        ids, batches = self._batches.locate_samples(ids)
        labels = np.empty(len(ids), dtype=np.int32)
        for number, positions in _positions_by_value(batches):
            labels[positions] = self._labels_in_batch(number)[ids[positions] - self._batches.starts[number]]
        return labels

    def keys_at(self, ids: np.ndarray) -> list[str]:
        """Return the keys of these images; only the record batches that hold them are read.

        Raises:
            StoreError: an id is outside the store.
            StoreDamaged: a record batch differs from its checksum.
        """
        ids, batches = self._batches.locate_samples(ids)
        keys = np.empty(len(ids), dtype=object)
        for number, positions in _positions_by_value(batches):
            column = self._batches.read(number).column("key").to_pylist()
            keys[positions] = [column[row] for row in (ids[positions] - self._batches.starts[number]).tolist()]
        found: list[str] = keys.tolist()
        return found

    def _labels_in_batch(self, number: int) -> np.ndarray:
        """Return the labels of a record batch; it is not read if all of them are in the store's file of labels."""
        ids, entry = self._batches.sample_range(number), self.manifest.labels
        if entry and ids.stop <= entry.rows and not self._skips:
            return self._given_labels(entry)[ids]
        if (batch := self._batches.read_or_skip(number)) is None:
            return np.full(ids.stop - ids.start, NO_LABEL, dtype=np.int32)
        return self._labels_of(number, batch)

    def _labels_of(self, number: int, batch: RecordBatch) -> np.ndarray:
        ids, entry = self._batches.sample_range(number), self.manifest.labels
        if entry and ids.stop <= entry.rows:
            return self._given_labels(entry)[ids]
        labels: np.ndarray = batch.column("label").fill_null(NO_LABEL).to_numpy(zero_copy_only=False)
        return labels

    def _given_labels(self, entry: LabelsEntry) -> np.ndarray:
        """Return the labels that replace those in the shards, int32 ``[rows]``; raise StoreDamaged if they are."""
        if self._given is None:
            content = self._bucket.read_labels(entry) if self._bucket else read_labels(Path(self.name), entry)
            self._given = parse_labels(content, entry, len(self.class_names), self.name)
        return self._given

    @property
    def cache_bytes(self) -> int | None:
        """Upper bound of the cache's size; None for a local store."""
        return self.remote.cache.limit_bytes if self.remote else None

    def prepare(self, now: Collection[int], soon: Collection[int]) -> None:
        """Announce the shards that are needed now and soon; a remote store fetches these and releases all others."""
        if self.remote:
            self.remote.prepare(now, soon)

    def release(self) -> None:
        """Close the shards of a remote store, so that other stores can use the room in the cache."""
        if self.remote:
            self.remote.release()

    def rows(self) -> Iterator[tuple[str, int, np.ndarray | bytes]]:
        """Yield key, label (NO_LABEL: none) and image of every row: pixels, uint8 ``[H, W, 3]``, or a JPEG's bytes.

        Raises:
            StoreDamaged: a record batch differs from its checksum.
        """
        for number in range(len(self._batches)):
            batch = self._batches.read(number)
            labels = self._labels_of(number, batch).tolist()
            images = batch.column("image")
            raw = self.manifest.encoding == "raw"
            contents = images.to_numpy_ndarray() if raw else (one.as_py() for one in images)
            yield from zip(batch.column("key").to_pylist(), labels, contents, strict=True)
        self.release()

    def gather(self, ids: np.ndarray) -> np.ndarray:
        """Read images by sample id, in the order of ``ids``, which may repeat.

        Args:
            ids: int64 ``[N]`` in [0, len(store)).

        Returns:
            uint8 ``[N, H, W, 3]``, a copy.

        Raises:
            StoreError: an id is outside the store.
            StoreDamaged: an image's record batch differs from its checksum; the message names shard, batch and rows.
        """
        ids, batches = self._batches.locate_samples(ids)
        if self.remote is None:
            return self._gather(ids, batches)
        shards = np.unique(self._batches.shard_of[batches]).tolist()
        if files := self.remote.open_together(shards):
            images = self._gather(ids, batches)
            del files  # only now may they be evicted
            return images
        images = np.empty((len(ids), *self.image_shape), dtype=np.uint8)
        positions_of = dict(_positions_by_value(self._batches.shard_of[batches]))
        for shard in sorted(positions_of, key=self.remote.is_open, reverse=True):  # use the open ones before eviction
            positions, file = positions_of[shard], self.remote.open(shard)
            images[positions] = self._gather(ids[positions], batches[positions])
            del file
        return images

    def _gather(self, ids: np.ndarray, batches: np.ndarray) -> np.ndarray:
        self._batches.locate_buffers(batches)
        shard_of = self._batches.shard_of[batches]  # [N]
        shards = {number: self._shards[number] for number in np.flatnonzero(np.bincount(shard_of)).tolist()}
        for shard in shards.values():
            shard.expect_whole()
        if self.manifest.encoding == "jpeg":
            return self._decode_jpegs(ids, batches)
        length = math.prod(self.image_shape)
        starts = self._batches.buffer_offsets[batches, 0] + (ids - self._batches.starts[batches]) * length
        if self._mapped:
            images = gather({number: shard.contents for number, shard in shards.items()}, shard_of, starts, length)
        else:
            images = np.empty((len(ids), length), dtype=np.uint8)
            target, positions = images.reshape(-1).data, range(0, images.size, length)
            for position, number, start in zip(positions, shard_of.tolist(), starts.tolist(), strict=True):
                shards[number].read_into(target[position : position + length], start)
        return images.reshape(-1, *self.image_shape)

    def intact(self, ids: np.ndarray) -> np.ndarray:
        """Return bool ``[N]``: whether the record batch of each sample id has its checksum; always True if "off".

        Raises:
            StoreError: an id is outside the store.
        """
        return self._batches.intact(self._batches.locate_samples(ids)[1])

    def verify(self, progress: Callable[[int, int], None] | None = None) -> list[Damage]:
        """Check every byte of every shard, in the bucket if the store is remote; return what is damaged.

        A damaged file of labels is listed as well, with NO_BATCH and the samples whose labels it has.

        Args:
            progress: called with (images checked, images in all) after each shard.
        """
        damaged = self._batches.verify(progress)
        if entry := self.manifest.labels:
            try:
                self._given = None
                self._given_labels(entry)
            except StoreDamaged:
                damaged.append(Damage(entry.file, NO_BATCH, (0, entry.rows)))
        return damaged

    def _decode_jpegs(self, ids: np.ndarray, batches: np.ndarray) -> np.ndarray:
        images = np.empty((len(ids), *self.image_shape), dtype=np.uint8)
        self._threads = self._threads or ThreadPoolExecutor(num_cores(), thread_name_prefix="jpeg")
        rows = ids - self._batches.starts[batches]

        def decode_into(position: int) -> None:
            number, row = int(batches[position]), int(rows[position])
            content = self._jpeg_content(number, row)
            shard, index, _ = self._batches.describe(number)
            where = f"{self.name}/{shard}: row {row} of record batch {index} (sample {ids[position]})"
            try:
                image = decode(content, None)
            except Unreadable as error:
                raise StoreDamaged(f"{where} is not an image ({error})") from None
            if image.shape != self.image_shape:
                raise StoreDamaged(f"{where} is {image.shape}, not {self.image_shape}")
            images[position] = image

        for _ in self._threads.map(decode_into, range(len(ids))):
            pass
        return images

    def _jpeg_content(self, number: int, row: int) -> bytes:
        shard, _ = self._batches.shard_and_index(number)
        offsets, files = self._batches.buffer_offsets[number].tolist()
        start, stop = shard.read(offsets + 4 * row, 8).view(np.int32).tolist()
        content: bytes = shard.read(files + start, stop - start).tobytes()
        return content

    def _shard_reader(self, number: int, first: int) -> ShardReader:
        entry, remote = self.manifest.shards[number], self.remote
        open_file = partial(remote.open, number) if remote else local_opener(Path(self.name) / entry.file)
        given = self.manifest.labels
        num_classes = given.shard_classes if given and first < given.rows else len(self.class_names)
        return ShardReader(self.name, entry, self.manifest, num_classes, open_file, mapped=self._mapped)

    def _release_shard(self, number: int) -> None:
        self._shards[number].release()


def _positions_by_value(values: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """Yield each value that occurs, with the positions where it does."""
    positions = np.argsort(values, kind="stable")
    found, first = np.unique(values[positions], return_index=True)
    return zip(found.tolist(), np.split(positions, first[1:]), strict=False)
