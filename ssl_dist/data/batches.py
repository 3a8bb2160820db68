"""This worker's part of each global batch: which micro-batches, their pixels fetched ahead, their views on demand.

M micro-batches of m images a step, W workers. Each worker has ``num_slots`` = ceil(M / W) slots, the same number
everywhere so that collectives match; a slot without a micro-batch is embedded with zero weight. Where a method learns
from some labels, the first images of every micro-batch are from the labelled ones.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Iterator
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


@dataclass(frozen=True)
class Batch:
    """One step's share of one worker.

    Attributes:
        step: number of the step.
        micro_batches: numbers of this worker's micro-batches in the global batch.
        num_slots: at least ``len(micro_batches)``, equal on all workers.
        images: uint8 ``[n, H, W, 3]``, n = m * len(micro_batches).
        ids, epochs: int64 ``[n]``.
        labels: int64 ``[n]``, -1 where there is none that the method may see.
        progress: before the step.
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

    @property
    def size(self) -> int:
        """Images of a micro-batch."""
        return self.config.batch.micro

    def noise_seed(self, slot: int) -> int:
        """For what is random in the slot's micro-batch, the same on whichever worker it is."""
        number = self.micro_batches[slot] if slot < len(self.micro_batches) else self.config.batch.num_micro
        return derive_seed(self.config.seed, self.step, number)

    def views(self, slot: int, device: torch.device) -> Views:
        """Views and labels of the slot's micro-batch, the same at each call; zeros where it has none."""
        recipe = self.config.augment.views()
        real = slot < len(self.micro_batches)
        rows = slice(slot * self.size, (slot + 1) * self.size) if real else slice(0, 0)
        given = (self.images, self.ids, self.epochs, self.labels)
        images, ids, epochs, labels = (x[rows].to(device, non_blocking=True) for x in given)
        # float32 whatever the precision of training: the views cost little
        crops = augment.crops(images, ids, seed=self.config.seed, epoch=epochs, recipe=recipe)
        if not real:
            crops = tuple(part.new_zeros(len(part), self.size, *part.shape[2:]) for part in crops)
            labels = labels.new_full((self.size,), -1)
        return Views(crops, labels)


class Batches:
    """Iterates over the steps of a run from any step, with a thread that gathers pixels ahead.

    Attributes:
        waited_s: seconds that the consumer has waited for data so far.
    """

    def __init__(self, sample_plan: SamplePlan, world: World, first_step: int, total_steps: int) -> None:
        self._plan, self._world = sample_plan, world
        self._steps = range(first_step, total_steps)
        self.waited_s = 0.0

    def __iter__(self) -> Iterator[Batch]:
        """One batch is fetched ahead: with that in use, two are in memory."""
        ready: queue.Queue[Batch | BaseException] = queue.Queue()
        wanted, stop = threading.Semaphore(1), threading.Event()

        def fetch() -> None:
            try:
                for step in self._steps:
                    wanted.acquire()
                    if stop.is_set():
                        return
                    ready.put(self.fetch(step))
            except BaseException as error:  # handed to the consumer, who raises it
                ready.put(error)

        thread = threading.Thread(target=fetch, name="fetch-batches", daemon=True)
        thread.start()
        try:
            for _ in self._steps:
                began = time.perf_counter()
                batch = ready.get()
                wanted.release()
                self.waited_s += time.perf_counter() - began
                if isinstance(batch, BaseException):
                    raise batch
                yield batch
        finally:
            stop.set()
            wanted.release()
            thread.join()

    def fetch(self, step: int) -> Batch:
        """This worker's share of one step."""
        config, store, sizes = self._plan.config, self._plan.store, self._plan.config.batch
        mine = self._world.share(sizes.num_micro)
        store.prepare(*self._plan.needed_shards(step))
        ids, epochs, labels = self._plan.select(step, mine)
        return Batch(
            step=step,
            micro_batches=mine,
            num_slots=-(-sizes.num_micro // self._world.size),
            images=_pinned(store.gather(ids), self._world.device),
            ids=torch.from_numpy(ids),
            epochs=torch.from_numpy(epochs),
            config=config,
            labels=torch.from_numpy(labels),
            progress=TrainingProgress(
                step, self._steps.stop, step * (sizes.size - sizes.labelled) / self._plan.num_samples
            ),
        )


def _pinned(images: np.ndarray, device: torch.device) -> Tensor:
    """Page-locked on the way to CUDA, so that the copy overlaps with compute (untested without a GPU)."""
    tensor = torch.from_numpy(images)
    return tensor.pin_memory() if device.type == "cuda" else tensor
