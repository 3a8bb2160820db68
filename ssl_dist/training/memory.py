"""A GPU whose memory is too small for a run: torch's error becomes one line that names the setting to change."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch

from ssl_dist.config import RunConfig
from ssl_dist.errors import RunError


@contextlib.contextmanager
def within_memory(config: RunConfig, device: torch.device) -> Iterator[None]:
    """Run the block on a device.

    Raises:
        RunError: the device's memory does not hold what the block computes. Only the rank that ran out of it raises;
            the others are ended with it, as by any error of one worker.
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        where = str(device)
        if device.type == "cuda":
            given = torch.cuda.get_device_properties(device)
            where = f"{given.name} with {given.total_memory / 1e9:.0f} GB"
        several = config.batch.num_micro > config.cluster.workers.min and config.batch.keep_graphs != 0
        first = "set batch.keep_graphs=0, which takes a third more time; if that is not enough, " if several else ""
        raise RunError(
            f"out of memory on {where} with batch.micro={config.batch.micro}: {first}lower batch.micro, by --set or in"
            f" the recipe; batch.size={config.batch.size} must stay a multiple of it"
        ) from error
