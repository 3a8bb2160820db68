"""The room on the disk that checkpoints take, predicted before a run fills it."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

from ssl_dist.checkpoint.checkpoints import FOLDER
from ssl_dist.config import ResolvedConfig
from ssl_dist.errors import RunError

log = logging.getLogger(__name__)


def checkpoint_bytes(config: ResolvedConfig) -> int:
    """Return the bytes of one checkpoint of a run, without the small ones of names and settings."""
    method = config.method_without_values()
    model: int = sum(tensor.nbytes for tensor in method.state_dict().values())
    trained: int = sum(parameter.nbytes for parameter in method.parameters() if parameter.requires_grad)
    return model + config.optim.state_tensors * trained


def expect_room(folder: Path, configs: Sequence[ResolvedConfig], warn: Callable[[str], object] = log.warning) -> None:
    """Refuse to start runs below ``folder`` whose checkpoints its disk cannot hold; warn where the best may not fit.

    Checkpoints that are there count as room, because they are among those that are kept or are deleted.

    Args:
        warn: takes the warning.

    Raises:
        RunError: there is no room for the newest checkpoints of all runs and one that is being written.
    """
    sizes: dict[tuple[object, ...], int] = {}
    least = most = largest = 0
    for config in configs:
        kind = (
            config.backbone.model_dump_json(),
            config.method,
            config.optim.name,
            config.optim.momentum > 0,
            config.view_sizes,
        )
        one = sizes[kind] = sizes.get(kind) or checkpoint_bytes(config)
        written = -(-config.epochs // config.checkpoint.every_epochs)
        newest = min(config.checkpoint.keep, written)
        least += int(one * newest)
        most += int(one * min(newest + config.checkpoint.keep_best, written))
        largest = max(largest, one * (written > newest))  # it is written before an older one is deleted
    there = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    old = sum(file.stat().st_size for file in folder.glob(f"**/{FOLDER}/*/*"))
    free = shutil.disk_usage(there).free + old
    text = (
        f"checkpoints in {folder} need {_gb(most + largest)} GB, {_gb(max(sizes.values(), default=0))} GB each, and"
        f" there is room for {_gb(free)} GB: choose another disk, lower checkpoint.keep or checkpoint.keep_best, or"
        " clear old runs with ssl-dist checkpoint clear RUN"
    )
    if least + largest > free:
        raise RunError(text)
    if most + largest > free:
        warn(text)


def _gb(count: float) -> str:
    return f"{count / 1e9:.3g}"
