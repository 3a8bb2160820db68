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
from cluster.run_status import CONFIG
from ssl_dist.machine import KEEP_FREED_MEMORY
from ssl_dist.settings import ClusterConfig
from ssl_dist.training.launchers import forget_launcher

_PACKAGES = str(Path(ssl_dist.__file__).parents[1])
_CODE = "import sys; sys.path.insert(0, sys.argv[1]); from cluster.lone import main; main(*sys.argv[2:])"


def needs_no_ray(cluster: ClusterConfig) -> bool:
    """Return whether a run has one worker, on this machine, and nobody wants to watch Ray's dashboard."""
    return cluster.workers.max == 1 and cluster.dashboard_port is None and not has_cluster()


class LoneWorker(Background):
    """A thread that trains in a process of its own, up to ``cluster.max_failures`` times again where that fails.

    The thread runs within a ``with``, at whose end the process is killed. The process reads its config from the run's
    directory, and ends when its standard input closes: no worker outlives its driver.
    """

    def __init__(self, cluster: ClusterConfig, run: RunDirectory) -> None:
        super().__init__(self._train)
        self._cluster, self._directory = cluster, run
        self._process: subprocess.Popen[bytes] | None = None
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
        for tries_left in reversed(range(self._cluster.max_failures + 1)):
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
        threads = str(max(1, int(self._cluster.cpus_per_worker)))
        text: dict[str, Any] = {"mode": "w+", "encoding": "utf-8", "errors": "replace"}
        with tempfile.TemporaryFile(**text) as said, tempfile.TemporaryFile(**text) as answer:
            self._process = subprocess.Popen(
                # -P: import nothing of the current folder
                [sys.executable, "-P", "-c", _CODE, _PACKAGES, str(self._directory.path), str(answer.fileno())],
                stdin=subprocess.PIPE,
                stdout=said,
                stderr=said,
                pass_fds=(answer.fileno(),),
                start_new_session=True,  # Ctrl-C and the end of the terminal are its driver's
                env={"OMP_NUM_THREADS": threads, **KEEP_FREED_MEMORY, **os.environ},
            )
            with self._process as process:
                if self._killed:
                    process.kill()
                code = process.wait()
            said.seek(0)
            answer.seek(0)
            return code, answer.read(), said.read()


def main(directory: str, answer: str) -> None:
    """Train the run of a directory as its only worker; write the last metrics to a file descriptor."""
    handle_sigterm()
    forget_launcher()
    threading.Thread(target=_end_with_the_driver, daemon=True).start()
    from cluster.worker import train

    with os.fdopen(int(answer), "w", encoding="utf-8") as file:
        config = json.loads((Path(directory) / CONFIG).read_text(encoding="utf-8"))
        json.dump(train({"config": config, "directory": directory, "here": True}), file)


def _end_with_the_driver() -> None:
    os.read(0, 1)  # nothing is written there: it returns when the driver is gone
    os._exit(1)
