"""A run and a sweep are looked at and ended from another terminal or machine, by their files alone."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from cluster import launch
from cluster.connect import Background
from cluster.run_directory import RunDirectory
from cluster.run_status import read_status
from ssl_dist.errors import Interrupted, RunError
from tests.command import Command
from tests.helpers import resolved_config
from tests.store.held import wait_until
from tests.tune.test_sweep import make
from tune import runner
from tune.space import Domain
from tune.trial_files import NO_POINT, write_outcome

HERE = {"host": socket.gethostname(), "process": os.getpid()}


@pytest.fixture
def run(small_store: Path, tmp_path: Path) -> RunDirectory:
    """Make a run of 100 steps that this process drives; it is at step 40."""
    run = RunDirectory.create(tmp_path / "a run", resolved_config(small_store))
    lines: list[dict[str, float]] = [
        {"step": 0, "plan/total_steps": 100, "probe/knn": 0.25},
        {"step": 40, "speed/images_per_s": 6.0},
        {"step": 40, "probe/knn": 0.5},
    ]
    (run.path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (run.path / "checkpoints" / "step-00000040").mkdir(parents=True)
    return run


def write_lock(run: RunDirectory, host: str, age_s: float) -> None:
    """Let the run be driven by a process of another machine, whose lock this one does not see."""
    run.release()
    (run.path / "lock").write_text(json.dumps({"host": host, "process": 7}))
    os.utime(run.path / "lock", (time.time() - age_s,) * 2)


def fail(run: RunDirectory) -> None:
    run.write_error(RunError("worker 0 could not write a checkpoint"), final=True)
    run.release()


def finish(run: RunDirectory) -> None:
    with (run.path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 100, "train/loss": 1.0}\n')
    run.release()


STATES: dict[str, tuple[Callable[[RunDirectory], object], str]] = {
    "running": (lambda run: None, "running"),
    "asked to stop": (RunDirectory.ask_to_stop, "stopping"),
    "stopped": (lambda run: (run.ask_to_stop(), run.release()), "stopped"),
    "killed": (RunDirectory.release, "killed"),
    "failed": (fail, "failed"),
    "finished": (finish, "finished"),
    "alive on another machine": (lambda run: write_lock(run, "elsewhere", 5), "running"),
    "silent on another machine": (lambda run: write_lock(run, "elsewhere", 600), "killed"),
    "killed a moment ago on this machine": (lambda run: write_lock(run, socket.gethostname(), 5), "killed"),
    "of an earlier version": (lambda run: (run.release(), (run.path / "lock").write_text("")), "killed"),
}


@pytest.mark.parametrize("name", STATES)
def test_the_state_of_a_run_is_read_from_its_files(name: str, run: RunDirectory, command: Command) -> None:
    change, state = STATES[name]
    change(run)
    outcome = command("status", run.path, "--json")
    assert (outcome.code, outcome.json["state"]) == (0, state)
    assert ("stop" in outcome.out + outcome.err) == (state in ("running", "stopping", "stopped"))
    assert ("pretrain --resume" in outcome.out + outcome.err) == (state in ("stopped", "killed", "failed"))


def test_status_says_what_is_unhealthy(run: RunDirectory, command: Command) -> None:
    found = {"step": 1200, "epoch": 1.5, "rule": "starved", "text": "the run waits [for] images"}
    assert command("status", run.path, "--json").json["health"] == []
    (run.path / "health.jsonl").write_text(json.dumps(found) + "\n")
    assert command("status", run.path, "--json").json["health"] == [found]
    assert "step 1,200: the run waits [for] images" in command("status", run.path).out


def test_a_running_run_shows_where_and_how_far_it_is(run: RunDirectory, command: Command) -> None:
    found = command("status", run.path, "--json").json
    assert {key: found[key] for key in HERE} == HERE
    assert (found["step"], found["total_steps"], found["images_per_s"]) == (40, 100, 6.0)
    assert found["left_s"] == 60 * 12 / 6.0
    assert (found["first_probe"], found["probe"]) == ({"knn": 0.25}, {"knn": 0.5})
    assert found["checkpoint"] == "step-00000040"
    text = " ".join(command("status", run.path).out.split())
    assert "40 of 100 (40%)" in text
    assert "0.5 (0.25 at first)" in text
    assert "0:02:00" in text


@pytest.mark.parametrize("start", [RunDirectory.reopen, lambda path: RunDirectory.claim(path, None)])
def test_a_run_starts_while_another_process_looks_at_its_lock(
    start: Callable[[Path], object], run: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    run.release()
    monkeypatch.setattr(RunDirectory, "update", lambda self, config: None)
    look = (run.path / "lock").open()
    fcntl.flock(look, fcntl.LOCK_SH)
    monkeypatch.setattr(time, "sleep", lambda seconds: look.close())
    start(run.path)
    assert look.closed


@pytest.mark.parametrize("name", ["running", "killed"])
def test_a_command_to_copy_is_one_line_on_a_small_screen(
    name: str, run: RunDirectory, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    STATES[name][0](run)
    monkeypatch.setenv("COLUMNS", "40")
    verb = "stop" if name == "running" else "pretrain --resume"
    assert f"ssl-dist {verb} '{run.path}'" in command("status", run.path).out.splitlines()[-1]


def test_a_sign_of_life_is_given_while_a_run_is_driven(run: RunDirectory) -> None:
    os.utime(run.path / "lock", (0, 0))
    assert read_status(run.path).silent_s > 1e9
    run.give_sign_of_life()
    assert read_status(run.path).silent_s < 60


def test_stop_asks_a_run_to_end_and_says_how_to_resume(run: RunDirectory, command: Command) -> None:
    outcome = command("stop", run.path, "--json")
    assert (outcome.code, run.stop_asked()) == (0, True)
    assert outcome.json["resume"] == f"ssl-dist pretrain --resume '{run.path}'"


@pytest.mark.parametrize("name", ["stopped", "killed", "failed", "finished", "silent on another machine"])
def test_a_run_that_is_not_running_is_not_stopped(name: str, run: RunDirectory, command: Command) -> None:
    STATES[name][0](run)
    outcome = command("stop", run.path)
    assert outcome.code == 2
    assert "is not running: `ssl-dist status" in outcome.err


@pytest.mark.parametrize("verb", ["status", "stop"])
def test_a_folder_without_a_run_is_refused(verb: str, command: Command, tmp_path: Path) -> None:
    outcome = command(verb, tmp_path)
    assert outcome.code == 2
    assert "is no run" in outcome.err


def test_a_run_that_is_stopped_from_elsewhere_ends_as_at_ctrl_c(
    run: RunDirectory, small_store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def workers(*_: object) -> Background:
        def train() -> dict[str, Any]:
            wait_until(run.stop_asked)
            return {"step": 41}

        thread = Background(train)
        thread.start()
        return thread

    monkeypatch.setattr(launch, "needs_no_ray", lambda _: False)
    monkeypatch.setattr(launch, "ray_with_capacity", lambda _: contextlib.nullcontext(False))
    monkeypatch.setattr(launch, "start_workers", workers)
    monkeypatch.setattr(launch, "DrainedNodes", lambda: SimpleNamespace(new=list))
    threading.Timer(0.2, run.ask_to_stop).start()
    with pytest.raises(Interrupted, match="stopped; resume with: ssl-dist pretrain --resume"):
        launch.launch(resolved_config(small_store), run, Console(quiet=True))


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    """Make a sweep without trials."""
    (tmp_path / "sweep" / "trials").mkdir(parents=True)
    space = {"optim.lr": {}, "backbone.name": {}, "probe.k": {}}
    (tmp_path / "sweep" / "sweep.json").write_text(json.dumps({"space": space}))
    return tmp_path / "sweep"


def test_a_sweep_without_trials_says_so(sweep: Path, command: Command) -> None:
    assert command("status", sweep).out.startswith("no trial has begun\n")
    assert command("status", sweep, "--json").json == {"sweep": str(sweep), "trials": []}
    refused = command("stop", sweep)
    assert (refused.code, "is not running" in refused.err) == (2, True)


def test_a_sweep_shows_its_trials_and_is_ended(run: RunDirectory, sweep: Path, command: Command) -> None:
    run.path.rename(sweep / "trials" / "abc")
    [trial] = command("status", sweep, "--json").json["trials"]
    assert (trial["trial"], trial["state"], trial["step"]) == ("abc", "running", 40)
    assert trial["settings"] == {"optim.lr": 0.005, "backbone.name": "resnet8", "probe.k": 20}
    shown = command("status", sweep).out
    assert "lr=0.005 name=resnet8 k=20" in " ".join(shown.replace("│", " ").split())
    assert shown.endswith(f"end it: ssl-dist stop {sweep}\n")
    outcome = command("stop", sweep, "--json")
    assert outcome.json["resume"] == f"ssl-dist tune --resume {sweep}"
    fit, held = SimpleNamespace(is_alive=lambda: True, join=lambda timeout: None), RunDirectory(sweep)
    (sweep / "lock").touch()
    plan = SimpleNamespace(known_samples=(), expected_images=lambda _: 1.0, recipe=None)
    with pytest.raises(KeyboardInterrupt):
        runner._show_progress(fit, plan, held, Console(quiet=True))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("outcome", "asked", "state"),
    [
        ("finished", False, "finished"),
        ("stopped", False, "stopped early"),
        ("diverged", True, "diverged"),
        ("failed", False, "failed"),
        (None, True, "stopped"),
        (None, False, "killed"),
    ],
)
def test_a_trial_has_the_state_in_which_the_sweep_left_it(
    outcome: str | None, asked: bool, state: str, run: RunDirectory, sweep: Path, command: Command
) -> None:
    run.release()
    if outcome:
        write_outcome(run.path, outcome, NO_POINT, "out of luck")
    if asked:
        (sweep / "stop").touch()
    run.path.rename(sweep / "trials" / "abc")
    shown = command("status", sweep, "--json")
    [trial] = shown.json["trials"]
    assert (trial["state"], trial["message"]) == (state, "out of luck" if outcome else "")
    left = "" if state in ("stopped", "killed") else "if it has trials left, "
    assert f"it is not running; {left}resume it: ssl-dist tune --resume {sweep}\n" in shown.err


def test_a_sweep_is_run_by_one_process(sweep: Path, command: Command, small_store: Path) -> None:
    held = RunDirectory(sweep)
    held.acquire_lock()
    assert command("status", sweep).out.endswith(f"end it: ssl-dist stop {sweep}\n"), "no trial has begun yet"
    plan = make(small_store, space={"optim.lr": Domain(choice=(0.1, 0.2))}, search="grid")
    with pytest.raises(RunError, match="is being run by another process"):
        runner.run_sweep(plan, sweep, Console(quiet=True))
    assert command("stop", sweep).code == 0
    assert held.stop_asked()
    held.release()
    assert command("stop", sweep).code == 2


def test_a_run_is_looked_at_without_torch(run: RunDirectory) -> None:
    code = "import sys; from ssl_dist.commands.main import main; import atexit\n"
    code += "atexit.register(lambda: print([m for m in ('torch', 'ray', 'pyarrow', 'numpy') if m in sys.modules]))\n"
    code += f"sys.argv[1:] = ['status', {str(run.path)!r}]; main()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
