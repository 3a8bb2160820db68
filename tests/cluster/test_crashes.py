"""What ended a worker is named: the signal of a crash from its log, otherwise what it raised."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from cluster.connect import failure_reason
from cluster.launch import training_error
from cluster.run_directory import RunDirectory

_DIED = """The actor died unexpectedly before finishing this task.
The actor is dead because its worker process has died. Worker exit detail: Worker unexpectedly exits with a connection
error code 2. The actor is dead because its worker process has died, with an error code 2, by the OOM killer."""
_CODE = """
import logging, os, sys
from pathlib import Path
from cluster.worker import _logging_to
with _logging_to(Path(sys.argv[1])):
    logging.getLogger("cluster.worker").info("worker %d: process %d on %s", 1, os.getpid(), "here")
    os.kill(os.getpid(), int(sys.argv[2]))
"""


def failed(run: Path, text: str = _DIED) -> str:
    workers = SimpleNamespace(error=RuntimeError(text))
    return str(training_error(workers, RunDirectory(run)))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("Segmentation fault", "worker 1 crashed (signal 11, Segmentation fault): see "),
        ("Aborted", "worker 1 crashed (signal 6, Aborted): see "),
        ("Bus error", "worker 1 crashed (signal 7, Bus error): see "),
        ("Illegal instruction", "worker 1 crashed (signal 4, Illegal instruction): see "),
        ("Floating-point exception", "worker 1 crashed (signal 8, Floating-point exception): see "),
        ("_PyMem_Realloc: invalid", "worker 1 crashed (_PyMem_Realloc: invalid): see "),
    ],
)
def test_a_crash_is_named_by_its_signal(fault: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "worker-0.log").write_text("worker 0: process 1 on here\n")
    (tmp_path / "worker-1.log").write_text(f"worker 1: process 2 on here\nFatal Python error: {fault}\n\nStack\n")
    assert failed(tmp_path).startswith(said)


def test_a_real_crash_is_found_in_the_log(tmp_path: Path) -> None:
    log = tmp_path / "worker-1.log"
    subprocess.run([sys.executable, "-c", _CODE, str(log), "11"], check=False)
    assert failed(tmp_path).startswith("worker 1 crashed (signal 11, Segmentation fault)")


def test_a_crash_before_the_last_start_is_not_this_ones(tmp_path: Path) -> None:
    crash = "worker 1: process 2 on here\nFatal Python error: Aborted\n"
    (tmp_path / "worker-1.log").write_text(f"{crash}worker 1: process 3 on here\n")
    assert failed(tmp_path).startswith("worker 0 was killed without a word, most often because its machine's memory")


def test_the_worker_that_failed_first_is_named() -> None:
    lost, died = RuntimeError("Connection closed by peer"), RuntimeError(_DIED)
    raised = RuntimeError("Traceback\nValueError: a mistake")
    guarded = RuntimeError("Task was killed\nRefer to the documentation on how to address the out of memory issue: ...")
    for failures, said in (
        ({0: lost, 1: guarded}, "worker 1 was killed because its machine's memory ran out"),
        ({0: lost, 1: died}, "worker 1 was killed without a word"),
        ({0: died, 1: raised}, "worker 1 failed (ValueError: a mistake)"),
        ({0: lost, 1: raised}, "worker 1 failed (ValueError: a mistake)"),
        ({0: lost, 1: lost}, "worker 0 failed (Connection closed by peer)"),
    ):
        error = RuntimeError()
        error.worker_failures = failures  # type: ignore[attr-defined]
        assert failure_reason(error).startswith(said)
