"""Read a store: random rows from memory-mapped shards, checked against the manifest on first touch.

Of a store elsewhere, shards are opened when they are touched, from the cache that ``remote`` keeps.
"""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from ssl_dist.errors import ConfigError, StoreDamaged, StoreError, Unreadable
from ssl_dist.store.cache import DEFAULT_GB, Cache
from ssl_dist.store.decode import decode
from ssl_dist.store.mapping import MappedShard, copied, local
from ssl_dist.store.remote import Place, Remote, is_remote, without_secrets
from ssl_dist.store.schema import NO_BATCH, NO_LABEL, Manifest

Verify = Literal["lazy", "off", "full"]
DamagedRows = Literal["refuse", "skip"]

RESIDENT_BYTES = 1 << 30  # a store of no more stays mapped
_PASSING_BYTES = 64 << 20  # of a larger one, about, are mapped at a time
_FAULT_BYTES = 1 << 16  # that Linux maps around a page that is touched
_UNKNOWN, _INTACT, _DAMAGED = range(3)  # states of a record batch

log = logging.getLogger(__name__)


class Damage(NamedTuple):
    """A record batch whose bytes differ from its checksum; ``rows`` are sample ids [first, one past the last)."""

    shard: str
    batch: int
    rows: tuple[int, int]


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
        self._skip, self._stays_mapped = damaged == "skip", self.manifest.bytes <= RESIDENT_BYTES
        self._shards = [self._shard(number) for number in range(len(self.manifest.shards))]
        self.shard_rows = np.array([shard.entry.rows for shard in self._shards], dtype=np.int64)
        # record batch b of the whole store is number _index[b] of shard _shard_of[b], and has the sample ids
        # [_starts[b], _starts[b + 1])
        counts = [len(shard.entry.batches) for shard in self._shards]
        rows = [batch.rows for shard in self._shards for batch in shard.entry.batches]
        self._starts = np.concatenate([[0], np.cumsum(rows, dtype=np.int64)])
        self._shard_of = np.repeat(np.arange(len(counts)), counts)
        self._index = np.concatenate([np.arange(count) for count in counts])
        self._state = np.full(len(rows), _INTACT if verify == "off" else _UNKNOWN, dtype=np.uint8)
        self._buffers = np.full((len(rows), 2 if self.manifest.encoding == "jpeg" else 1), -1, dtype=np.int64)
        self._resident = 0
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
            for number in range(len(self._state)) if self.class_names else ():
                labels[self._rows(number)] = self._labels_of(number)
            self._labels = labels
            self.prepare((), ())  # who has read the labels may touch no image for long
        return self._labels

    def labels_at(self, ids: np.ndarray) -> np.ndarray:
        """int32 ``[N]``: ``labels[ids]``, for which only the record batches that have them are read."""
        if self._labels is not None or not self.class_names:
            known: np.ndarray = self.labels[ids]
            return known
        ids, batches = self._located(ids)
        found = np.empty(len(ids), dtype=np.int32)
        for number, places in _groups(batches):
            found[places] = self._labels_of(number)[ids[places] - self._starts[number]]
        return found

    def _labels_of(self, number: int) -> np.ndarray:
        if not self._is_readable(number):
            return np.full(self._rows(number).stop - self._rows(number).start, NO_LABEL, dtype=np.int32)
        shard, index = self._batch(number)
        labels: np.ndarray = shard.batch(index).column("label").fill_null(NO_LABEL).to_numpy(zero_copy_only=False)
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
        for number in range(len(self._state)):
            self._check(number)
            shard, index = self._batch(number)
            self._mapped(shard.entry.batches[index].length)
            batch = shard.batch(index)
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
        ids, batches = self._located(ids)
        if self.remote is None:
            return self._gather(ids, batches)
        shards = np.unique(self._shard_of[batches]).tolist()
        if held := self.remote.together(shards):
            images = self._gather(ids, batches)
            del held  # they were in use until now
            return images
        images = np.empty((len(ids), *self.image_shape), dtype=np.uint8)
        places_of = dict(_groups(self._shard_of[batches]))
        for shard in sorted(places_of, key=self.remote.holds, reverse=True):  # before they have to go
            places, file = places_of[shard], self.remote.file(shard)
            images[places] = self._gather(ids[places], batches[places])
            del file
        return images

    def _gather(self, ids: np.ndarray, batches: np.ndarray) -> np.ndarray:
        if (unknown := self._buffers[batches, 0] < 0).any():
            for number in set(batches[unknown].tolist()):
                self._find(number)
        of_shards = self._shard_of[batches]
        touched = {number: self._shards[number] for number in np.flatnonzero(np.bincount(of_shards)).tolist()}
        for shard in touched.values():
            shard.expect_whole()
        if self.manifest.encoding == "jpeg":
            return self._decode(ids, batches)
        length = math.prod(self.image_shape)
        starts = self._buffers[batches, 0] + (ids - self._starts[batches]) * length
        if self._stays_mapped:
            images = copied({number: shard.contents for number, shard in touched.items()}, of_shards, starts, length)
        else:  # where pages do not stay mapped, a fault costs more than a read
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
        _, batches = self._located(ids)
        for number in np.unique(batches).tolist():
            self._look_at(number)
        intact: np.ndarray = self._state[batches] == _INTACT
        return intact

    def _located(self, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Sample ids, and the number of each one's record batch."""
        ids = np.asarray(ids, dtype=np.int64)
        if ids.size and not ids.view(np.uint64).max() < len(self):  # what is negative is large then
            raise StoreError(f"{self.name} has samples 0..{len(self) - 1}, asked for {ids.min()}..{ids.max()}")
        return ids, np.searchsorted(self._starts, ids, side="right") - 1

    def _decode(self, ids: np.ndarray, batches: np.ndarray) -> np.ndarray:
        """JPEGs, in threads."""
        images = np.empty((len(ids), *self.image_shape), dtype=np.uint8)
        self._threads = self._threads or ThreadPoolExecutor(os.cpu_count(), thread_name_prefix="jpeg")
        rows = ids - self._starts[batches]

        def one(place: int) -> int:
            number, row = int(batches[place]), int(rows[place])
            content = self._jpeg(number, row)
            shard, index, _ = self._damage(number)
            where = f"{self.name}/{shard}: row {row} of record batch {index} (sample {ids[place]})"
            try:
                image = decode(content, None)
            except Unreadable as error:
                raise StoreDamaged(f"{where} is no image ({error})") from None
            if image.shape != self.image_shape:
                raise StoreDamaged(f"{where} is {image.shape}, not {self.image_shape}")
            images[place] = image
            return len(content) + 2 * _FAULT_BYTES

        self._mapped(sum(self._threads.map(one, range(len(ids)))))
        return images

    def _jpeg(self, number: int, row: int) -> bytes:
        contents = self._shards[self._shard_of[number]].contents
        offsets, files = self._buffers[number].tolist()
        start, stop = contents[offsets + 4 * row : offsets + 4 * row + 8].view(np.int32).tolist()
        content: bytes = contents[files + start : files + stop].tobytes()
        return content

    def verify(self) -> list[Damage]:
        """Check every byte of every shard where it lies, be it elsewhere; returns what is damaged."""
        damaged, first = list[Damage](), 0
        for number, shard in enumerate(self._shards):
            found = self.remote.damaged(number) if self.remote else shard.damaged()
            damaged += [self._damage(first + index) for index in found if index != NO_BATCH]
            damaged += [Damage(shard.entry.file, NO_BATCH, (0, 0))] if NO_BATCH in found else []
            first += len(shard.entry.batches)
            if self.remote is None:
                self._mapped(shard.entry.bytes)
        return damaged

    def _damage(self, number: int) -> Damage:
        shard, index = self._batch(number)
        rows = self._rows(number)
        return Damage(shard.entry.file, index, (rows.start, rows.stop))

    def _matches(self, number: int) -> bool:
        shard, index = self._batch(number)
        self._mapped(shard.entry.batches[index].length)
        return shard.is_intact(index)

    def _look_at(self, number: int) -> None:
        """Check a record batch that has not been touched yet."""
        if self._state[number] != _UNKNOWN:
            return
        intact = self._matches(number)
        if self.remote and not intact:  # it was whole when it came
            self.remote.discard(int(self._shard_of[number]))
            intact = self._matches(number)
        self._state[number] = _INTACT if intact else _DAMAGED
        if self._skip and not intact:
            log.warning("%s: goes on without its images", self._difference(number))

    def _check(self, number: int) -> None:
        self._look_at(number)
        if self._state[number] == _DAMAGED:
            without = "" if self.remote else ", or train without these images, in a new run with data.damaged=skip"
            raise StoreDamaged(
                f"{self._difference(number)}: `ssl-dist store verify` lists all damage; build the store again, or"
                f" restore the file{without}"
            )

    def _is_readable(self, number: int) -> bool:
        self._look_at(number) if self._skip else self._check(number)
        return bool(self._state[number] == _INTACT)

    def _difference(self, number: int) -> str:
        shard, index, (start, stop) = self._damage(number)
        return f"{self.name}/{shard}: record batch {index} (samples {start}..{stop - 1}) differs from its checksum"

    def _find(self, number: int) -> None:
        """Where a record batch's images are, once and for all."""
        self._check(number)
        shard, index = self._batch(number)
        self._buffers[number] = shard.image_buffers(index)
        self._mapped(3 * _FAULT_BYTES)  # its header, labels and keys

    def _shard(self, number: int) -> MappedShard:
        entry, remote = self.manifest.shards[number], self.remote
        opened = local(Path(self.name) / entry.file) if remote is None else partial(remote.file, number)
        return MappedShard(self.name, entry, self.manifest, opened, self._stays_mapped)

    def _forget(self, number: int) -> None:
        """Let go of a shard's file."""
        self._shards[number].forget()

    def _batch(self, number: int) -> tuple[MappedShard, int]:
        return self._shards[self._shard_of[number]], int(self._index[number])

    def _rows(self, number: int) -> slice:
        return slice(int(self._starts[number]), int(self._starts[number + 1]))

    def _mapped(self, num_bytes: int) -> None:
        """Of a larger store let go of what was mapped before: pages count as the process' memory."""
        self._resident += num_bytes
        if self._resident > _PASSING_BYTES and not self._stays_mapped:
            for shard in self._shards:
                shard.release()
            self._resident = 0


def _groups(values: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """Each value that occurs, and the places where it does."""
    places = np.argsort(values, kind="stable")
    found, first = np.unique(values[places], return_index=True)
    return zip(found.tolist(), np.split(places, first[1:]), strict=False)
