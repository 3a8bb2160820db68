"""The only worker of a run, in a process that needs no Ray; it is started again where it fails, as Ray Train would."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

import ssl_dist
from cluster.connect import DIED, Background
from cluster.guards import has_cluster
from cluster.preemption import handle_sigterm
from cluster.run_directory import RunDirectory
from ssl_dist.config import ResolvedConfig
from ssl_dist.settings import ClusterConfig
from ssl_dist.training.launchers import forget_launcher

_PACKAGES = str(Path(ssl_dist.__file__).parents[1])
_CODE = "import sys; sys.path.insert(0, sys.argv[1]); from cluster.lone import main; main(int(sys.argv[2]))"


def needs_no_ray(cluster: ClusterConfig) -> bool:
    """Return whether a run has one worker, on this machine, and nobody wants to watch Ray's dashboard."""
    return cluster.workers.max == 1 and cluster.dashboard_port is None and not has_cluster()


class LoneWorker(Background):
    """A thread that trains in a process of its own, up to ``cluster.max_failures`` times again where that fails.

    The thread runs within a ``with``, at whose end the process is killed. The process reads its settings from its
    standard input, and ends when this closes: no worker outlives its driver.
    """

    def __init__(self, config: ResolvedConfig, run: RunDirectory) -> None:
        super().__init__(self._train)
        self._config, self._directory = config, run
        self._process: subprocess.Popen[str] | None = None
        self._killed = False

    def __enter__(self) -> LoneWorker:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._killed = True
        if self._process:
            self._process.kill()
        self.join()

    def _train(self) -> dict[str, Any]:
        for tries_left in reversed(range(self._config.cluster.max_failures + 1)):
            code, answer, said = self._train_once()
            if code == 0:
                result: dict[str, Any] = json.loads(answer)
                return result
            if self._killed or not tries_left or self._directory.read_error():
                lines = [line.strip() for line in said.splitlines() if line.strip()]
                raise ChildProcessError(lines[-1] if code > 0 and lines else DIED)
        raise AssertionError("the last try returns or raises")

    def _train_once(self) -> tuple[int, str, str]:
        """Start the process and wait for its end; return its exit code, its answer, and what it printed."""
        settings = {"config": self._config.model_dump(mode="json"), "directory": str(self._directory.path)}
        threads = str(max(1, int(self._config.cluster.cpus_per_worker)))
        reading, writing = os.pipe()
        with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as said:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-c", _CODE, _PACKAGES, str(writing)],  # -P: nothing of the current folder
                stdin=subprocess.PIPE,
                stdout=said,
                stderr=said,
                text=True,
                pass_fds=(writing,),
                start_new_session=True,  # Ctrl-C and the end of the terminal are its driver's
                env={"OMP_NUM_THREADS": threads, **os.environ},
            )
            os.close(writing)
            with self._process as process, os.fdopen(reading, encoding="utf-8") as answer:
                if self._killed:
                    process.kill()
                assert process.stdin
                try:
                    process.stdin.write(json.dumps({**settings, "here": True}) + "\n")
                    process.stdin.flush()
                except BrokenPipeError:  # it has died already
                    pass
                found, code = answer.read(), process.wait()
            said.seek(0)
            return code, found, said.read()


def main(answer: int) -> None:
    """Train as the driver's settings on standard input say; write the last metrics to a file descriptor."""
    settings = json.loads(sys.stdin.readline())
    handle_sigterm()
    forget_launcher()
    threading.Thread(target=_end_with_the_driver, daemon=True).start()
    from cluster.worker import train

    with os.fdopen(answer, "w", encoding="utf-8") as file:
        json.dump(train(settings), file)


def _end_with_the_driver() -> None:
    os.read(0, 1)  # nothing is written there any more: it returns when the driver is gone
    os._exit(1)
