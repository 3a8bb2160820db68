"""The background writer: checkpoints are written in a thread while training goes on."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path

from ssl_dist.checkpoint.checkpoints import Checkpoints
from ssl_dist.checkpoint.files import State
from ssl_dist.config import ResolvedConfig


class Writer:
    """Writes a run's checkpoints in a thread, one at a time, from a snapshot of the tensors."""

    def __init__(self, checkpoints: Checkpoints, config: ResolvedConfig) -> None:
        self._checkpoints, self._config = checkpoints, config
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._last: Future[Path] | None = None
        self._snapshot: State | None = None
        checkpoints.remove_torn()

    def write(
        self,
        step: int,
        take: Callable[[State | None], State],
        score: float | None,
        losses: tuple[float, ...] = (),
    ) -> None:
        """Wait for the checkpoint before, take a snapshot, and begin to write it.

        Args:
            take: returns the tensors; it is given an earlier snapshot, whose memory it may write over.
        """
        if self._last:
            wait([self._last])
        self._snapshot = take(self._snapshot)
        if not self.failed:
            save = self._checkpoints.save
            self._last = self._thread.submit(save, step, self._config, self._snapshot, score, losses)

    @property
    def failed(self) -> bool:
        """Whether the last checkpoint is known to have failed."""
        return self._last is not None and self._last.done() and self._last.exception() is not None

    def wait(self) -> None:
        """Wait until the last checkpoint is written.

        Raises:
            RunError: it could not be written.
        """
        if self._last:
            self._last.result()

    def close(self) -> None:
        """Wait until the last checkpoint is written or has failed, and end the thread."""
        self._thread.shutdown()
