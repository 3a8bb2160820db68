"""The speed of one worker, measured on the first micro-batches of a run for a few seconds."""

from __future__ import annotations

import time

import torch

from ssl_dist.collectives import World
from ssl_dist.config import ResolvedConfig
from ssl_dist.data.batches import Batches
from ssl_dist.data.sample_plan import SamplePlan
from ssl_dist.store import ImageStore


def images_per_second(config: ResolvedConfig, store: ImageStore, device: torch.device, seconds: float = 3.0) -> float:
    """Return how many images a worker with one thread makes views of, embeds and differentiates in a second.

    Where ``batch.keep_graphs`` is 0 and a worker has several micro-batches, each is embedded a second time, which
    counts as a third more time. Collectives, optimizer and reading are left out. Views have the size of the last step.
    """
    twice = config.batch.keep_graphs == 0 and config.batch.num_micro > config.cluster.workers.max
    threads, repeats = torch.get_num_threads(), 4 / 3 if twice else 1
    torch.set_num_threads(1)
    try:
        config = config.model_copy(update={"augment": config.augment.without_small_views()})
        method = config.initial_method().to(device).train()
        batch = Batches(SamplePlan(config, store), World(0, 1, device), 0, 1).fetch(0)
        autocast = torch.autocast(device.type, torch.bfloat16, enabled=config.engine.precision == "bf16")

        def step() -> None:
            with autocast:
                outputs = method.embed(batch.views(0, device))
            method.loss(outputs).backward()
            outputs.sum().item()  # waits for the device

        step()  # the first one also chooses kernels
        began, done = time.perf_counter(), 0
        while not done or time.perf_counter() - began < seconds:
            step()
            done += config.batch.micro
        return done / (time.perf_counter() - began) / repeats
    finally:
        torch.set_num_threads(threads)
