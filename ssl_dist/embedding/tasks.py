"""The work of an embedding as tasks: each computes one file, in any process that sees the folder of the parts."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
import xxhash

from ssl_dist.embedding.images import Cut, decoded, decoding_threads
from ssl_dist.embedding.parts import (
    Done,
    Parts,
    feature_table,
    neighbour_table,
    num_blocks,
    parts_of,
    read_meta,
    read_part,
    write_part,
)
from ssl_dist.embedding.search import nearest_in_blocks
from ssl_dist.errors import RunError
from ssl_dist.evaluate.features import pixel_features, store_features
from ssl_dist.store.building.sources import LeftOut, Member
from ssl_dist.store.building.sources.base import to_unicode

if TYPE_CHECKING:
    from ssl_dist.encoder import Encoder
    from ssl_dist.settings import CheckpointChoice
    from ssl_dist.store import ImageStore

Count = Callable[[int], None]


class Job(NamedTuple):
    """What the tasks of an embedding share.

    Attributes:
        run, checkpoint: what the encoder is loaded from, see ``load_encoder``.
        encoder: its digest.
        store: location of the store; None: the images are not a store's.
        images: digest of the images.
        folder: of the parts.
        num_neighbours: of each image; 0: none are searched.
    """

    run: str
    checkpoint: CheckpointChoice
    encoder: str
    store: str | None
    images: str
    folder: Path
    num_neighbours: int


class Opened(NamedTuple):
    """What a task needs beside its job: the encoder, and the store, if the images are a store's."""

    encoder: Encoder
    store: ImageStore | None

    @property
    def device(self) -> torch.device:
        """Where the encoder computes."""
        return next(self.encoder.parameters()).device


class FeatureTask(NamedTuple):
    """Compute the features of a part."""

    job: Job
    number: int
    images: Cut

    @property
    def path(self) -> Path:
        """The file that this task writes."""
        return Parts(self.job.folder).features(self.number)

    @property
    def memory_bytes(self) -> int:
        """Memory that the images take before they are decoded."""
        return 0 if isinstance(self.images, range) else sum(member.memory_bytes for member in self.images)

    def done(self) -> Done | None:
        """Return what is written already, undamaged; None: the task is to be run."""
        return read_meta(self.path) if read_part(self.path, len(self.images)) is not None else None

    def run(self, opened: Opened, count: Count) -> Done:
        """Write the part; ``count`` is called with the images of each forward pass.

        Raises:
            RunError: features are not finite numbers.
            SourceError, StoreDamaged: the images cannot be read.
            OSError: the part cannot be written.
        """
        if isinstance(self.images, range):
            table, left_out = _of_store(opened, self.images, count), list[LeftOut]()
        else:
            table, left_out = _of_members(opened, self.images, count)
        return write_part(self.path, table, len(self.images), left_out)


class NeighbourTask(NamedTuple):
    """Find the nearest others of the images of a block among all images."""

    job: Job
    number: int
    num_parts: int
    memory_bytes: int = 0

    @property
    def path(self) -> Path:
        """The file that this task writes."""
        return Parts(self.job.folder).neighbours(self.job.num_neighbours, self.number)

    def done(self) -> Done | None:
        """Return what is written already, undamaged; None: the task is to be run."""
        return read_meta(self.path) if read_part(self.path) is not None else None

    def run(self, opened: Opened, count: Count) -> Done:
        """Write the block's neighbours; ``count`` is called with the number of its images.

        Raises:
            RunError: a part of the features is damaged.
            OSError: the neighbours cannot be written.
        """
        parts, device = Parts(self.job.folder), opened.device
        counts = parts.row_counts(self.num_parts)

        def features(block: int) -> torch.Tensor:
            return torch.from_numpy(parts.block_features(block, self.num_parts)).to(device)

        queries = features(self.number)
        first = int(counts[: parts_of(self.number, self.num_parts).start].sum())
        own = torch.arange(first, first + len(queries), device=device)
        blocks = map(features, range(num_blocks(self.num_parts)))
        similarities, rows = nearest_in_blocks(blocks, queries, self.job.num_neighbours, own)
        keys = parts.keys_at(rows.cpu().numpy(), counts)
        table = neighbour_table(keys, similarities.float().cpu().numpy())
        done = write_part(self.path, table, len(queries), [])
        count(len(queries))
        return done


Task = FeatureTask | NeighbourTask
Executor = Callable[[Iterator[Task], Opened, Count], Generator[Done, None, None]]
"""A function that runs tasks, with a bounded number of them in memory, and yields their results in their order."""


def run_here(tasks: Iterator[Task], opened: Opened, count: Count) -> Generator[Done, None, None]:
    """Run tasks in this process, one after another."""
    for task in tasks:
        yield task.done() or task.run(opened, count)


def encoder_digest(encoder: Encoder) -> str:
    """Return a digest of an encoder's weights, their names, and how it takes images."""
    digest = xxhash.xxh3_128(repr((encoder.image_size, encoder.backbone.normalisation)).encode())
    for name, tensor in sorted(encoder.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def _of_store(opened: Opened, ids: range, count: Count) -> Any:
    encoder, store, numbers = opened.encoder, opened.store, np.arange(ids.start, ids.stop)
    assert store is not None
    features = store_features(
        encoder.backbone, store, numbers, opened.device, encoder.image_size, encoder.together, count
    )
    return feature_table(store.keys_at(numbers), store.labels_at(numbers), _finite(features))


def _of_members(opened: Opened, members: list[Member], count: Count) -> tuple[Any, list[LeftOut]]:
    """Return the table of the images that can be read, and the others; these are black in their forward passes."""
    encoder, left_out = opened.encoder, dict[int, LeftOut]()
    with decoding_threads() as threads:

        def pixels(numbers: np.ndarray) -> np.ndarray:
            found, lost = decoded([members[number] for number in numbers], encoder.image_size, threads)
            left_out.update({int(numbers[number]): one for number, one in lost.items()})
            return found

        features = pixel_features(
            encoder.backbone, np.arange(len(members)), pixels, opened.device, encoder.together, count
        )
    kept = [number for number in range(len(members)) if number not in left_out]
    keys = [to_unicode(members[number].key) for number in kept]
    labels = np.array([members[number].label for number in kept], dtype=np.int32)
    return feature_table(keys, labels, _finite(features)[kept]), list(left_out.values())


def _finite(features: torch.Tensor) -> np.ndarray:
    """Return features as an array.

    Raises:
        RunError: one is no finite number, so that nothing can be searched by them.
    """
    if not bool(features.isfinite().all()):
        raise RunError("the features are not finite numbers: take an earlier --checkpoint")
    return features.cpu().numpy()
