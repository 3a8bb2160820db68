"""Status of a run, read from its files by any process on any machine that sees them; nothing heavy is imported here.

The process that drives a run holds a lock on RUN/lock and names itself in it. Other machines may not see the lock, so
the process also touches the file: its time is the run's last sign of life.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import socket
import time
from pathlib import Path
from typing import Any, NamedTuple

from ssl_dist.errors import RunError
from ssl_dist.files import RUN_LOCK
from ssl_dist.reading import value_at
from ssl_dist.training.health import read_health
from ssl_dist.training.metrics import MetricsReader, newest_checkpoint

STOP, ERROR, WARNING, CONFIG = "stop", "error.json", "warning.txt", "config.json"
SWEEP, OUTCOME = "sweep.json", "outcome.json"  # of a sweep; in a trial's run directory, how the trial ended
SIGN_EVERY_S = 10
_SILENT_S = 60  # so long without a sign, on another machine, and a run is not running


class RunStatus(NamedTuple):
    """The state of a run.

    Attributes:
        state: "running", "stopping", "finished", "stopped", "failed" (its ``message`` says why), or "killed": it was
            driven by a process that is gone.
        host, process: where the process that drives it runs, or ran; "" and 0 where it is not known.
        silent_s: seconds since its last sign of life.
        step, total_steps: total_steps is 0 before the first step.
        images_per_s, left_s: None where they are not known.
        probe: the newest value by name; ``first_probe`` is the value at the run's beginning.
        checkpoint: name of the newest one; "" where there is none.
        health: what the health watch has said, as in health.jsonl, oldest first.
    """

    state: str
    message: str
    host: str
    process: int
    silent_s: float
    step: int
    total_steps: int
    images_per_s: float | None
    left_s: float | None
    probe: dict[str, float]
    first_probe: dict[str, float]
    checkpoint: str
    health: list[dict[str, Any]]


def read_status(run: Path) -> RunStatus:
    """Read what a run is doing.

    Raises:
        RunError: the directory holds no run.
    """
    config = _read_json(run / CONFIG)
    if not config:
        raise RunError(f"{run} is no run: give the directory that `ssl-dist pretrain` printed")
    last: dict[str, Any] = {}
    first_probe: dict[str, float] = {}
    for line in MetricsReader(run).read_new():
        last |= line
        first_probe = {name.partition("/")[2]: v for name, v in line.items() if name.startswith("probe/")} | first_probe
    step, total = int(last.get("step", 0)), int(last.get("plan/total_steps", 0))
    rate = last.get("speed/images_per_s")
    left_s = (total - step) * config["batch"]["size"] / rate if rate and total else None
    host, process, silent_s = _driver(run)
    error = _read_json(run / ERROR)
    state = "running"
    if (run / STOP).exists():
        state = "stopping"
    if not is_driven(run):
        finished = total and step >= total
        state = "finished" if finished else "failed" if error else "stopped" if state == "stopping" else "killed"
    return RunStatus(
        state=state,
        message=str(error.get("message", "")),
        host=host,
        process=process,
        silent_s=silent_s,
        step=step,
        total_steps=total,
        images_per_s=rate,
        left_s=left_s,
        probe={name.partition("/")[2]: value for name, value in last.items() if name.startswith("probe/")},
        first_probe=first_probe,
        checkpoint=newest_checkpoint(run),
        health=[one._asdict() for one in read_health(run)],
    )


class TrialStatus(NamedTuple):
    """The state of a trial of a sweep.

    Attributes:
        settings: the settings that the sweep searches, by dotted key.
        run: of its run directory; its ``state`` is that of the trial where that has ended: "finished", "stopped early"
            by the scheduler, "replaced" in a population, "diverged" or "failed".
    """

    trial: str
    settings: dict[str, Any]
    run: RunStatus


def read_trials(directory: Path) -> list[TrialStatus] | None:
    """Read what the trials that a sweep has begun are doing; None where the directory is no sweep."""
    if not (directory / SWEEP).exists():
        return None
    keys, found = _read_json(directory / SWEEP).get("space", {}), []
    for config in sorted((directory / "trials").glob(f"*/{CONFIG}")):
        if not _read_json(config):  # a crash of the machine may have cut it
            continue
        run, outcome = read_status(config.parent), _read_json(config.with_name(OUTCOME))
        if ended := outcome.get("status"):
            run = run._replace(state="stopped early" if ended == "stopped" else ended, message=outcome["reason"])
        elif run.state == "killed" and (directory / STOP).exists():
            run = run._replace(state="stopped")
        found.append(TrialStatus(config.parent.name, {key: value_at(_read_json(config), key) for key in keys}, run))
    return found


def is_driven(run: Path) -> bool:
    """Return whether a process drives the run: it holds the lock or, on another machine, has given a sign of life."""
    host, _, silent_s = _driver(run)
    with contextlib.suppress(OSError), (run / RUN_LOCK).open() as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return bool(host) and host != socket.gethostname() and silent_s < _SILENT_S


def driver_of_this_process() -> str:
    """Return what the process that drives a run writes into its lock file."""
    return json.dumps({"host": socket.gethostname(), "process": os.getpid()})


def _driver(run: Path) -> tuple[str, int, float]:
    """Return host, process and silence of the process that drives a run, or did."""
    try:
        silent_s = time.time() - (run / RUN_LOCK).stat().st_mtime
    except OSError:
        return "", 0, 0.0
    found = _read_json(run / RUN_LOCK)
    return found.get("host", ""), found.get("process", 0), max(0.0, silent_s)


def _read_json(file: Path) -> dict[str, Any]:
    """Return a file's object; {} where there is none, or a part of one."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
