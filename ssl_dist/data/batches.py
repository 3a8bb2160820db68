"""One worker's batches: its micro-batches of each global batch, with pixels fetched ahead and views made on demand.

A step has M micro-batches of m images, shared out among W workers. Each worker has ``num_slots`` = ceil(M / W) slots,
the same number everywhere, so that all workers call the same collectives; a slot without a micro-batch is embedded with
zero weight.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ssl_dist import augment
from ssl_dist.collectives import World
from ssl_dist.config import RunConfig
from ssl_dist.data.sample_plan import SamplePlan
from ssl_dist.hashing import derive_seed
from ssl_dist.methods import TrainingProgress, Views
from ssl_dist.timing import section

_BYTES_AHEAD = 1 << 30  # of a batch's views, made on a GPU before they are asked for


@dataclass(frozen=True)
class Batch:
    """One worker's part of a global batch.

    Attributes:
        step: number of the step.
        micro_batches: numbers of this worker's micro-batches in the global batch.
        num_slots: at least ``len(micro_batches)``, equal on all workers.
        images: uint8 ``[n, H, W, 3]``, n = m * len(micro_batches).
        ids, epochs: int64 ``[n]``, the images' sample ids and the epochs they are drawn in.
        config: the run's.
        labels: int64 ``[n]``; -1: the image has no label, or the method may not see it.
        progress: progress of training before the step.
        ahead: views of the first slots, which were made before they are asked for, each with the event that tells when
            the GPU has made them; empty on a CPU.
    """

    step: int
    micro_batches: range
    num_slots: int
    images: Tensor
    ids: Tensor
    epochs: Tensor
    config: RunConfig
    labels: Tensor
    progress: TrainingProgress
    ahead: tuple[tuple[Views, torch.cuda.Event], ...] = ()

    @property
    def micro_size(self) -> int:
        """Number of images of a micro-batch."""
        return self.config.batch.micro

    @property
    def policy(self) -> augment.Policy:
        """The views that an image gets in this step."""
        return self.config.augment.views(self.progress.step / self.progress.total_steps)

    @property
    def growth(self) -> float:
        """Factor by which the views of later steps have more pixels."""
        stored_px = self.images.shape[1]
        later, now = (
            sum((view.size_px or stored_px) ** 2 for view in policy)
            for policy in (self.config.augment.views(), self.policy)
        )
        return later / now

    def noise_seed(self, slot: int) -> int:
        """Return the seed of a slot's noise (dropout and the like), which does not depend on the worker."""
        number = self.micro_batches[slot] if slot < len(self.micro_batches) else self.config.batch.num_micro
        return derive_seed(self.config.seed, self.step, number)

    def views(self, slot: int, device: torch.device) -> Views:
        """Make the views and labels of a slot's micro-batch, the same at each call; an empty slot gets zeros."""
        if slot < len(self.ahead):
            return _taken(*self.ahead[slot])
        real = slot < len(self.micro_batches)
        rows = slice(slot * self.micro_size, (slot + 1) * self.micro_size) if real else slice(0, 0)
        given = (self.images, self.ids, self.epochs, self.labels)
        images, ids, epochs, labels = (x[rows].to(device, non_blocking=True) for x in given)
        # float32 whatever the precision of training: the views cost little
        crops = augment.crops(images, ids, seed=self.config.seed, epoch=epochs, recipe=self.policy)
        if not real:
            crops = tuple(part.new_zeros(len(part), self.micro_size, *part.shape[2:]) for part in crops)
            labels = labels.new_full((self.micro_size,), -1)
        return Views(crops, labels)


class Batches:
    """An iterator over the steps of a run from any step on, with a thread that gathers pixels ahead.

    Attributes:
        waited_s: seconds that the consumer has waited for data so far.
    """

    def __init__(self, sample_plan: SamplePlan, world: World, first_step: int, total_steps: int) -> None:
        self._plan, self._world = sample_plan, world
        self._steps = range(first_step, total_steps)
        # on a GPU, the next batch's views are made by the thread that fetches it, while the GPU trains on this one
        self._stream = torch.cuda.Stream(world.device) if world.device.type == "cuda" else None
        self.waited_s = 0.0

    def __iter__(self) -> Iterator[Batch]:
        """Yield the batches. One is fetched ahead, so with the one in use there are two in memory."""
        with ThreadPoolExecutor(1, thread_name_prefix="fetch-batches") as thread:
            fetches = (thread.submit(self.fetch, step) for step in self._steps)
            coming = next(fetches, None)
            while coming:
                began = time.perf_counter()
                with section("wait for data"):
                    batch = coming.result()
                self.waited_s += time.perf_counter() - began
                coming = next(fetches, None)
                yield batch

    def fetch(self, step: int) -> Batch:
        """Fetch this worker's part of one step."""
        config, store, sizes = self._plan.config, self._plan.store, self._plan.config.batch
        mine = self._world.share(sizes.num_micro)
        store.prepare(*self._plan.needed_shards(step))
        ids, epochs, labels = self._plan.select(step, mine)
        epochs_done = step * (sizes.size - sizes.labelled) / self._plan.num_samples
        batch = Batch(
            step=step,
            micro_batches=mine,
            num_slots=-(-sizes.num_micro // self._world.size),
            images=_pinned(store.gather(ids), self._world.device),
            ids=torch.from_numpy(ids),
            epochs=torch.from_numpy(epochs),
            config=config,
            labels=torch.from_numpy(labels),
            progress=TrainingProgress(step, self._steps.stop, epochs_done),
        )
        if self._stream is None:
            return batch
        ahead, made_bytes = [], 0
        with torch.cuda.stream(self._stream):
            for slot in range(batch.num_slots):
                views = batch.views(slot, self._world.device)
                ahead.append((views, self._stream.record_event()))
                made_bytes += sum(part.nbytes for part in views.crops)
                if made_bytes > _BYTES_AHEAD:
                    break
        return dataclasses.replace(batch, ahead=tuple(ahead))


def _taken(views: Views, made: torch.cuda.Event) -> Views:
    """Return views that another stream makes: what this stream computes next waits for them (untested on a GPU)."""
    stream = torch.cuda.current_stream()
    stream.wait_event(made)
    for tensor in (*views.crops, views.labels):
        tensor.record_stream(stream)  # their memory is not used again before this stream is done with them
    return views


def _pinned(images: np.ndarray, device: torch.device) -> Tensor:
    """Turn images into a tensor, page-locked for CUDA, so that the copy overlaps with compute (untested on a GPU)."""
    tensor = torch.from_numpy(images)
    return tensor.pin_memory() if device.type == "cuda" else tensor
