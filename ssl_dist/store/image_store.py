"""Read a store: random rows, checked against the manifest on first touch.

Of a store elsewhere, shards are opened when they are touched, from the cache that ``remote`` keeps.
"""

from __future__ import annotations

import math
import os
from collections.abc import Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np

from ssl_dist.errors import ConfigError, StoreDamaged, StoreError, Unreadable
from ssl_dist.store.decode import decode
from ssl_dist.store.record_batches import Damage, RecordBatches
from ssl_dist.store.remote.cache import DEFAULT_GB, Cache
from ssl_dist.store.remote.fetcher import Place, Remote
from ssl_dist.store.schema import NO_LABEL, Manifest
from ssl_dist.store.shard_reader import ShardFile, copied, local
from ssl_dist.uris import is_remote, without_secrets

Verify = Literal["lazy", "off", "full"]
DamagedRows = Literal["refuse", "skip"]

RESIDENT_BYTES = 1 << 30  # a store of no more is mapped, and stays so; a larger one is read


class ImageStore:
    """Random access to the images of a store.

    Args:
        path: the store's folder, or its URI.
        verify: "lazy" checks each record batch when it is first touched, "full" checks all of them now, "off" none.
        damaged: "skip": images of damaged record batches have no label, and ``intact`` tells which they are; only of a
            folder, whose damage all machines see alike.
        cache: where shards of a store elsewhere are kept, a folder of this machine; see ``cache.folder_of``.
        cache_gb: the most that this folder may hold.

    Attributes:
        name: the folder or URI, as messages have it.
        location: the same for wherever it is opened next: the absolute path, or the URI with its options.
        remote: what is fetched of a store elsewhere; None: it is a folder.
        manifest: what the store says of itself.
        shard_rows: int64 ``[shards]``.
        image_shape: (H, W, 3).
        class_names: names of the classes; empty where there are no labels.

    Raises:
        StoreError: no store there, or a shard is missing or of another schema.
        StoreDamaged: "full" found damage.
        ConfigError: "skip", of a store elsewhere.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        verify: Verify = "lazy",
        damaged: DamagedRows = "refuse",
        *,
        cache: str | os.PathLike[str] | None = None,
        cache_gb: float = DEFAULT_GB,
    ) -> None:
        if verify not in ("lazy", "off", "full"):
            raise StoreError(f"verify={verify!r}: it is 'lazy', 'off' or 'full'")
        if damaged not in ("refuse", "skip"):
            raise StoreError(f"damaged={damaged!r}: it is 'refuse' or 'skip'")
        self.remote: Remote | None = None
        if is_remote(path):
            if damaged == "skip":
                raise ConfigError(
                    f"data.damaged=skip with {without_secrets(os.fspath(path))}: what arrives damaged at one machine"
                    " may arrive whole at another: set data.damaged=refuse; what is damaged there can be copied again"
                )
            place, self.location = Place(os.fspath(path)), os.fspath(path)
            self.name, self.manifest = place.name, place.manifest()
            self.remote = Remote(place, self.manifest.shards, Cache(cache, cache_gb), self._forget)
        else:
            self.name, self.location = str(path), str(Path(path).absolute())
            self.manifest = Manifest.read(Path(path))
        self.image_shape = self.manifest.image_shape
        self.class_names = self.manifest.class_names
        self._stays_mapped = self.manifest.bytes <= RESIDENT_BYTES
        self._shards = [self._shard(number) for number in range(len(self.manifest.shards))]
        self.shard_rows = np.array([shard.entry.rows for shard in self._shards], dtype=np.int64)
        self._batches = RecordBatches(
            self.name,
            self._shards,
            self.remote,
            checked=verify != "off",
            skip=damaged == "skip",
            num_buffers=2 if self.manifest.encoding == "jpeg" else 1,
        )
        self._threads: ThreadPoolExecutor | None = None
        self._labels: np.ndarray | None = None
        if verify == "full" and (found := self.verify()):
            raise StoreDamaged(f"{self.name}: {len(found)} damaged record batches, first {found[0]}")

    def __len__(self) -> int:
        return self.manifest.rows

    @property
    def labels(self) -> np.ndarray:
        """int32 ``[n]``: index into ``class_names``, -1 where an image has none."""
        if self._labels is None:
            labels = np.full(len(self), NO_LABEL, dtype=np.int32)
            for number in range(len(self._batches)) if self.class_names else ():
                labels[self._batches.rows(number)] = self._labels_of(number)
            self._labels = labels
            self.prepare((), ())  # who has read the labels may touch no image for long
        return self._labels

    def labels_at(self, ids: np.ndarray) -> np.ndarray:
        """int32 ``[N]``: ``labels[ids]``, for which only the record batches that have them are read."""
        if self._labels is not None or not self.class_names:
            known: np.ndarray = self.labels[ids]
            return known
        ids, batches = self._batches.located(ids)
        found = np.empty(len(ids), dtype=np.int32)
        for number, places in _groups(batches):
            found[places] = self._labels_of(number)[ids[places] - self._batches.starts[number]]
        return found

    def _labels_of(self, number: int) -> np.ndarray:
        """Of a record batch."""
        if (batch := self._batches.readable(number)) is None:
            rows = self._batches.rows(number)
            return np.full(rows.stop - rows.start, NO_LABEL, dtype=np.int32)
        labels: np.ndarray = batch.column("label").fill_null(NO_LABEL).to_numpy(zero_copy_only=False)
        return labels

    @property
    def cache_bytes(self) -> int | None:
        """The most that is kept here of a store elsewhere."""
        return self.remote.cache.limit_bytes if self.remote else None

    def prepare(self, now: Collection[int], soon: Collection[int]) -> None:
        """Say which shards are needed now and soon: those of a store elsewhere are fetched ahead, others given back."""
        if self.remote:
            self.remote.prepare(now, soon)

    def rows(self) -> Iterator[tuple[str, int, np.ndarray | bytes]]:
        """Key, label (NO_LABEL: none) and image of every row: pixels, uint8 ``[H, W, 3]``, or the bytes of a JPEG.

        Raises:
            StoreDamaged: as ``gather``.
        """
        for number in range(len(self._batches)):
            batch = self._batches.batch(number)
            labels = batch.column("label").fill_null(NO_LABEL).to_pylist()
            images = batch.column("image")
            raw = self.manifest.encoding == "raw"
            contents = images.to_numpy_ndarray() if raw else (one.as_py() for one in images)
            yield from zip(batch.column("key").to_pylist(), labels, contents, strict=True)
        self.prepare((), ())

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
        ids, batches = self._batches.located(ids)
        if self.remote is None:
            return self._gather(ids, batches)
        shards = np.unique(self._batches.shard_of[batches]).tolist()
        if held := self.remote.together(shards):
            images = self._gather(ids, batches)
            del held  # they were in use until now
            return images
        images = np.empty((len(ids), *self.image_shape), dtype=np.uint8)
        places_of = dict(_groups(self._batches.shard_of[batches]))
        for shard in sorted(places_of, key=self.remote.holds, reverse=True):  # before they have to go
            places, file = places_of[shard], self.remote.file(shard)
            images[places] = self._gather(ids[places], batches[places])
            del file
        return images

    def _gather(self, ids: np.ndarray, batches: np.ndarray) -> np.ndarray:
        self._batches.find(batches)
        of_shards = self._batches.shard_of[batches]
        touched = {number: self._shards[number] for number in np.flatnonzero(np.bincount(of_shards)).tolist()}
        for shard in touched.values():
            shard.expect_whole()
        if self.manifest.encoding == "jpeg":
            return self._decode(ids, batches)
        length = math.prod(self.image_shape)
        starts = self._batches.buffers[batches, 0] + (ids - self._batches.starts[batches]) * length
        if self._stays_mapped:
            images = copied({number: shard.contents for number, shard in touched.items()}, of_shards, starts, length)
        else:
            images = np.empty((len(ids), length), dtype=np.uint8)
            target, places = images.reshape(-1).data, range(0, images.size, length)
            for place, number, start in zip(places, of_shards.tolist(), starts.tolist(), strict=True):
                touched[number].read_into(target[place : place + length], start)
        return images.reshape(-1, *self.image_shape)

    def intact(self, ids: np.ndarray) -> np.ndarray:
        """bool ``[N]``: are the record batches of these sample ids as they were written? "off" says so of all.

        Raises:
            StoreError: an id outside the store.
        """
        return self._batches.intact(self._batches.located(ids)[1])

    def verify(self) -> list[Damage]:
        """Check every byte of every shard where it lies, be it elsewhere; returns what is damaged."""
        return self._batches.verify()

    def _decode(self, ids: np.ndarray, batches: np.ndarray) -> np.ndarray:
        """JPEGs, in threads."""
        images = np.empty((len(ids), *self.image_shape), dtype=np.uint8)
        self._threads = self._threads or ThreadPoolExecutor(os.cpu_count(), thread_name_prefix="jpeg")
        rows = ids - self._batches.starts[batches]

        def one(place: int) -> None:
            number, row = int(batches[place]), int(rows[place])
            content = self._jpeg(number, row)
            shard, index, _ = self._batches.damage(number)
            where = f"{self.name}/{shard}: row {row} of record batch {index} (sample {ids[place]})"
            try:
                image = decode(content, None)
            except Unreadable as error:
                raise StoreDamaged(f"{where} is no image ({error})") from None
            if image.shape != self.image_shape:
                raise StoreDamaged(f"{where} is {image.shape}, not {self.image_shape}")
            images[place] = image

        for _ in self._threads.map(one, range(len(ids))):
            pass
        return images

    def _jpeg(self, number: int, row: int) -> bytes:
        shard, _ = self._batches.of(number)
        offsets, files = self._batches.buffers[number].tolist()
        start, stop = shard.part(offsets + 4 * row, 8).view(np.int32).tolist()
        content: bytes = shard.part(files + start, stop - start).tobytes()
        return content

    def _shard(self, number: int) -> ShardFile:
        entry, remote = self.manifest.shards[number], self.remote
        opened = local(Path(self.name) / entry.file) if remote is None else partial(remote.file, number)
        return ShardFile(self.name, entry, self.manifest, opened, mapped=self._stays_mapped)

    def _forget(self, number: int) -> None:
        """Let go of a shard's file."""
        self._shards[number].forget()


def _groups(values: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """Each value that occurs, and the places where it does."""
    places = np.argsort(values, kind="stable")
    found, first = np.unique(values[places], return_index=True)
    return zip(found.tolist(), np.split(places, first[1:]), strict=False)
