"""A process that makes an embedding, of small parts, and is killed after some of them."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any

from ssl_dist.embedding import embed, making, parts
from ssl_dist.embedding.parts import Done
from ssl_dist.embedding.tasks import Count, Opened, Task


def make_and_die(run: Path, images: Path, out: Path, after: int, options: dict[str, Any]) -> None:
    """Make an embedding; kill this process in the middle of the part that follows ``after`` parts that were missing."""
    making.PART_ROWS, parts.BLOCK_PARTS = 10, 2
    embed(run, images, out, executor=dying(after), **options)


def dying(after: int) -> Callable[[Iterator[Task], Opened, Count], Generator[Done, None, None]]:
    left = [after]

    def execute(tasks: Iterator[Task], opened: Opened, count: Count) -> Generator[Done, None, None]:
        for task in tasks:
            if (done := task.done()) is None:
                if left[0] == 0:
                    os.replace = lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL)  # type: ignore[assignment]
                    Path.replace = os.replace  # type: ignore[method-assign, assignment]
                left[0] -= 1
                done = task.run(opened, count)
            yield done

    return execute
