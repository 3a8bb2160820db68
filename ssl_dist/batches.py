"""This worker's part of each global batch: which micro-batches, their pixels fetched ahead, their views on demand.

M micro-batches of m images a step, W workers. Each worker has ``num_slots`` = ceil(M / W) slots, the same number
everywhere so that collectives match; a slot without a micro-batch is embedded with zero weight.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from ssl_dist import augment, order
from ssl_dist.collectives import World
from ssl_dist.config import RunConfig


class Images(Protocol):
    """What is asked of an ``ImageStore`` here."""

    def __len__(self) -> int: ...

    def gather(self, ids: np.ndarray) -> np.ndarray: ...


@dataclass(frozen=True)
class Batch:
    """One step's share of one worker.

    Attributes:
        step: number of the step.
        micro_batches: numbers of this worker's micro-batches in the global batch.
        num_slots: at least ``len(micro_batches)``, equal on all workers.
        images: uint8 ``[n, H, W, 3]``, n = m * len(micro_batches).
        ids, epochs: int64 ``[n]``.
    """

    step: int
    micro_batches: range
    num_slots: int
    images: Tensor
    ids: Tensor
    epochs: Tensor
    config: RunConfig

    @property
    def size(self) -> int:
        """Images of a micro-batch."""
        return self.config.batch.micro

    def views(self, slot: int, device: torch.device) -> Tensor:
        """Views ``[V, m, 3, S, S]`` of the slot's micro-batch, the same at each call; zeros where it has none."""
        recipe = self.config.augment.views()
        if slot >= len(self.micro_batches):
            side = recipe[0].size_px or self.images.shape[1]
            return torch.zeros(len(recipe), self.size, 3, side, side, device=device)
        rows = slice(slot * self.size, (slot + 1) * self.size)
        images, ids, epochs = (x[rows].to(device, non_blocking=True) for x in (self.images, self.ids, self.epochs))
        # float32 whatever the precision of training: the views cost little
        return augment.views(images, ids, seed=self.config.seed, epoch=epochs, recipe=recipe)


class Batches:
    """Iterates over the steps of a run from any step, with a thread that gathers pixels ahead.

    Attributes:
        waited_s: seconds that the consumer has waited for data so far.
    """

    def __init__(self, store: Images, config: RunConfig, world: World, first_step: int, total_steps: int) -> None:
        self._store, self._config, self._world = store, config, world
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
        sizes = self._config.batch
        mine = self._world.share(sizes.num_micro)
        start = step * sizes.size
        ids, epochs = order.stream(
            self._config.seed, start + mine.start * sizes.micro, start + mine.stop * sizes.micro, len(self._store)
        )
        return Batch(
            step=step,
            micro_batches=mine,
            num_slots=-(-sizes.num_micro // self._world.size),
            images=_pinned(self._store.gather(ids), self._world.device),
            ids=torch.from_numpy(ids),
            epochs=torch.from_numpy(epochs),
            config=self._config,
        )


def _pinned(images: np.ndarray, device: torch.device) -> Tensor:
    """Page-locked on the way to CUDA, so that the copy overlaps with compute (untested without a GPU)."""
    tensor = torch.from_numpy(images)
    return tensor.pin_memory() if device.type == "cuda" else tensor
