"""Loops that train SimCLR on the same images: the product's, lightly's as its examples write it, and a bare one.

On a GPU, images of the bare loop and lightly's are in the memory format channels_last; on a CPU as in ours.

The bare loop has the product's views and loss and nothing else of it: the images lie on the device, and there is no
store, Ray or DeepSpeed. Network (torchvision's, with the stem of ours), batch, precision and optimizer are the same in
all loops. The bare loop and lightly's take a batch whole, ours in micro-batches.
"""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Generator, Iterator
from typing import Any, Protocol
from unittest import mock

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, RandomSampler

from benchmarks import transforms
from benchmarks.cuda.measure import wait_for
from ssl_dist import augment
from ssl_dist.collectives import World
from ssl_dist.config import RunConfig
from ssl_dist.data import resolve
from ssl_dist.data.batches import Batch, Batches
from ssl_dist.losses import nt_xent
from ssl_dist.methods.base import projection_head
from ssl_dist.training.engine import Engine

Steps = Generator[None, None, None]

_ENDLESS = 10**7  # steps, or samples of lightly's loader


class Loop(Protocol):
    """A loop that trains."""

    @property
    def waited_s(self) -> float:
        """Seconds that it has waited for data so far."""

    @property
    def burst(self) -> int:
        """Steps whose data comes at once; a time that is measured has a multiple of it."""

    def steps(self) -> Steps:
        """Yield after each step, without end; closing it frees what only this iterator needs."""


class Ours:
    """The product's engine and batches in this process, one of ``size`` workers, on a store."""

    burst = 1

    def __init__(self, config: RunConfig, device: torch.device, rank: int = 0, size: int = 1) -> None:
        data, world = resolve(config), World(rank, size, device)
        self._rate = config.optim.peak_lr(config.batch.size)
        self._engine = Engine(data.config.initial_method(), data.config, world)
        self._batches = Batches(data.sample_plan, world, 0, _ENDLESS)
        self._running = self._run()

    @property
    def waited_s(self) -> float:
        """Seconds that the engine has waited for data so far."""
        return self._batches.waited_s

    def steps(self) -> Steps:
        """Go on where the last call's iterator stopped."""
        while True:
            yield next(self._running)

    def _run(self) -> Steps:
        for batch in self._batches:
            self._engine.step(batch, self._rate)
            yield

    def close(self) -> None:
        """End the thread that fetches batches."""
        self._running.close()


class Bare:
    """The loop that a person would write for one device: images on it, our views and loss, a torch optimizer."""

    burst, waited_s = 1, 0.0

    def __init__(self, config: RunConfig, pixels: np.ndarray, device: torch.device, *, compiled: bool) -> None:
        self._config, self._pixels = config, torch.from_numpy(pixels).to(device)
        backbone = config.initial_backbone()
        head = projection_head(backbone.dim, backbone.dim, 128, 2)
        network = _on_device(nn.Sequential(backbone.body, head), device)
        self._network: Any = torch.compile(network, dynamic=False) if compiled else network
        self._optimizer, self._autocast = _optimizer(config, network), _autocast(config, device)

    def steps(self) -> Steps:
        """Train on images that are drawn with replacement."""
        config, device = self._config, self._pixels.device
        for step in itertools.count():
            ids = torch.randint(len(self._pixels), (config.batch.size,), device=device)
            views = augment.views(self._pixels[ids], ids, seed=config.seed, epoch=step, recipe=config.augment.recipe)
            with self._autocast:
                z = self._network(views.flatten(0, 1).contiguous(memory_format=_format(device)))
            loss = nt_xent(*z.float().chunk(2), temperature=_temperature(config))
            self._optimizer.zero_grad()
            loss.backward()
            self._optimizer.step()
            yield


class Lightly:
    """lightly's loop: its transform on PIL images in a DataLoader's processes, its head and loss, two passes a step.

    Args:
        our_views: make the product's views of each batch, in place of lightly's transform.
    """

    def __init__(
        self, config: RunConfig, pixels: np.ndarray, device: torch.device, workers: int, *, our_views: bool = False
    ) -> None:
        from lightly.loss import NTXentLoss
        from lightly.models.modules import SimCLRProjectionHead

        self._config, self._our_views = config, our_views
        self._device, self.waited_s, self.burst = device, 0.0, max(1, workers)
        data = _Pictures(pixels, None if our_views else transforms.lightly(pixels.shape[1]))
        self._loader = DataLoader(
            data,
            config.batch.size,
            sampler=RandomSampler(data, replacement=True, num_samples=_ENDLESS),
            num_workers=workers,
            pin_memory=device.type == "cuda",
        )
        backbone = config.initial_backbone()
        head = SimCLRProjectionHead(backbone.dim, backbone.dim, 128)
        self._body = backbone.body
        self._network = _on_device(nn.Sequential(backbone.body, head), device)
        self._loss = NTXentLoss(_temperature(config))
        self._optimizer, self._autocast = _optimizer(config, self._network), _autocast(config, device)

    def steps(self) -> Steps:
        """Start the loader's processes; closing the iterator ends them."""
        batches = iter(self._loader)
        for step in itertools.count():
            began = time.perf_counter()
            views = next(batches)
            self.waited_s += time.perf_counter() - began
            if self._our_views:
                images, ids = (part.to(self._device) for part in views)
                views = augment.views(
                    images, ids, seed=self._config.seed, epoch=step, recipe=self._config.augment.recipe
                )
            with self._autocast:
                z_a, z_b = (self._network(self._moved(view)) for view in views)
                loss = self._loss(z_a, z_b)
            loss.backward()
            self._optimizer.step()
            self._optimizer.zero_grad()
            yield

    def set_rate(self, rate: float) -> None:
        """Set the learning rate of the next steps."""
        for group in self._optimizer.param_groups:
            group["lr"] = rate

    def weights(self) -> dict[str, Tensor]:
        """Return the weights of the backbone's body, by name."""
        found: dict[str, Tensor] = self._body.state_dict()
        return found

    def _moved(self, view: Tensor) -> Tensor:
        return view.to(self._device, memory_format=_format(self._device), non_blocking=True)


class _Pictures(Dataset[Any]):
    """The images as PIL images, transformed, or their pixels and numbers; forked processes share the pixels."""

    def __init__(self, pixels: np.ndarray, transform: Any) -> None:
        self._pixels, self._transform = pixels, transform

    def __len__(self) -> int:
        return len(self._pixels)

    def __getitem__(self, number: int) -> Any:
        pixels = self._pixels[number]
        return self._transform(Image.fromarray(pixels)) if self._transform else (pixels, number)


def _on_device(network: nn.Module, device: torch.device) -> nn.Module:
    moved: nn.Module = network.to(device).to(memory_format=_format(device))
    return moved


def _format(device: torch.device) -> torch.memory_format:
    return torch.channels_last if device.type == "cuda" else torch.contiguous_format


def _temperature(config: RunConfig) -> float:
    return float(config.method.model_dump()["temperature"])


def _autocast(config: RunConfig, device: torch.device) -> torch.autocast:
    return torch.autocast(device.type, torch.bfloat16, enabled=config.engine.precision == "bf16")


def _optimizer(config: RunConfig, network: nn.Module) -> torch.optim.Optimizer:
    """Return torch's fused optimizer with the rate and weight decay of ours."""
    optim = config.optim
    rate, decay = optim.peak_lr(config.batch.size), optim.weight_decay
    if optim.name == "sgd":
        return torch.optim.SGD(network.parameters(), rate, optim.momentum, weight_decay=decay, fused=True)
    return torch.optim.AdamW(network.parameters(), rate, optim.betas, weight_decay=decay, fused=True)


class ViewsTimes:
    """The times of making views in the product's loop, within a ``with`` block.

    Attributes:
        calls: times that views were made.
        host_ms: the time that this kept the host, in all.
    """

    def __init__(self, device: torch.device) -> None:
        self._device, self.calls, self.host_ms = device, 0, 0.0
        self._events: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []

    @property
    def total_ms(self) -> float:
        """The time that it took: by CUDA events on a CUDA device, where it includes gaps between kernels."""
        wait_for(self._device)
        if self._device.type != "cuda":
            return self.host_ms
        return float(sum(first.elapsed_time(second) for first, second in self._events))

    @contextlib.contextmanager
    def measured(self) -> Iterator[None]:
        """Measure each call of ``Batch.views`` in the block."""
        make, on_device = Batch.views, self._device.type == "cuda"

        def timed(batch: Batch, slot: int, device: torch.device) -> Any:
            events = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            began = time.perf_counter()
            if on_device:
                events[0].record()
            views = make(batch, slot, device)
            if on_device:
                events[1].record()
                self._events.append(events)
            self.calls, self.host_ms = self.calls + 1, self.host_ms + (time.perf_counter() - began) * 1e3
            return views

        with mock.patch.object(Batch, "views", timed):
            yield
