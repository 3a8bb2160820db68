"""Process group of W gloo workers for tests; it runs one function after the other.

The workers are forked from a server that has imported torch and DeepSpeed: a worker starts in a twentieth of a second
instead of six, and has 10 MB of its own instead of 500.
"""

from __future__ import annotations

import gc
import multiprocessing
import os
import tempfile
import traceback
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection, wait
from pathlib import Path
from types import MappingProxyType
from typing import Any

PRELOADED = ["deepspeed", "ssl_dist.training.loop", "pytest"]
OTHERS_WAIT_S = 20.0  # for ranks that have not answered when another has failed


class WorkerFailed(Exception):
    """A worker raised; the message holds the tracebacks."""


class GlooPool:
    """W processes in one gloo group; the group's file is its rendezvous, so no port is taken.

    Args:
        backend: of the group, where it is another than gloo.
        spawned: start each worker from nothing. What the server imports may start CUDA, which does not survive a fork.
        environment: variables of the workers beside the test's own.
    """

    def __init__(
        self,
        size: int,
        *,
        backend: str = "gloo",
        spawned: bool = False,
        environment: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        context = multiprocessing.get_context("spawn" if spawned else "forkserver")
        if not spawned:
            context.set_forkserver_preload(PRELOADED)
        meeting = Path(tempfile.mkdtemp()) / "rendezvous"
        self._ends: list[Connection] = []
        self._processes = []
        self.broken = False
        for rank in range(size):
            here, there = context.Pipe()
            process = context.Process(
                target=_serve, args=(rank, size, meeting, there, backend, dict(environment)), daemon=True
            )
            process.start()
            self._ends.append(here)
            self._processes.append(process)

    def run(self, function: Callable[..., Any], *arguments: Any) -> list[Any]:
        """Call ``function(rank, W, *arguments)`` in every worker; return the results by rank.

        Failures are raised here with their tracebacks, even if other ranks wait for ever for the one that failed. The
        pool is then ``broken``: its ranks would answer the next call out of step.
        """
        self.broken = True
        for end in self._ends:
            end.send((function, arguments))
        answers: dict[Connection, tuple[bool, Any]] = {}
        while len(answers) < len(self._ends):
            failed = any(failed for failed, _ in answers.values())
            waiting = [end for end in self._ends if end not in answers]
            ready = wait(waiting, timeout=OTHERS_WAIT_S if failed else None)
            if not ready:
                break
            answers |= {end: end.recv() for end in ready}  # type: ignore[union-attr, misc]
        failures = [text for failed, text in answers.values() if failed]
        self.broken = len(answers) < len(self._ends)
        if failures:
            raise WorkerFailed("\n".join(failures))
        return [answers[end][1] for end in self._ends]

    def kill(self) -> None:
        for process in self._processes:
            process.kill()
            process.join()

    def close(self) -> None:
        for end in self._ends:
            end.send(None)
        for process in self._processes:
            process.join(timeout=10)
            process.kill()


def _serve(rank: int, size: int, meeting: Path, end: Connection, backend: str, environment: Mapping[str, str]) -> None:
    os.environ.update(environment)
    import torch
    import torch.distributed as dist

    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    gc.freeze()  # ZeRO 3 collects garbage at its start: not in all that the server has imported
    dist.init_process_group(backend, init_method=f"file://{meeting}", rank=rank, world_size=size)
    while (work := end.recv()) is not None:
        function, arguments = work
        try:
            end.send((False, function(rank, size, *arguments)))
        except Exception:
            end.send((True, f"rank {rank}: {traceback.format_exc()}"))
