"""Runs of one worker without Ray: kills, Ctrl-C, errors, and the death of the driver."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from cluster.lone import needs_no_ray
from ssl_dist.checkpoint import Checkpoints
from ssl_dist.checkpoint.room import checkpoint_bytes
from ssl_dist.errors import Diverged, SslDistError
from ssl_dist.machine import KEEP_FREED_MEMORY
from ssl_dist.settings import ClusterConfig
from tests.cluster import held_worker
from tests.cluster.runs import EVERY_STEP, expect_the_same, start, started_at, train_undisturbed
from tests.command import Command
from tests.gloo import GlooPool
from tests.helpers import resolved_config, small_config
from tests.store.held import wait_until

HELD = "import sys; sys.path.insert(0, sys.argv[1]); from cluster import lone, worker; "
HELD += "from tests.cluster import held_worker; worker.train = held_worker.train; lone.main(*sys.argv[2:])"


@pytest.fixture(autouse=True)
def no_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)


def processes(run: Path) -> list[int]:
    """Return the process numbers of all starts of the worker, which its log has."""
    log = run / "worker-0.log"
    return [int(pid) for pid in re.findall(r"process (\d+) on", log.read_text())] if log.exists() else []


@pytest.fixture(scope="module")
def undisturbed(gloo: Callable[[int], GlooPool], small_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_undisturbed(gloo(1), 1, small_store, tmp_path_factory.mktemp("undisturbed") / "run")


@pytest.mark.parametrize(
    ("number", "resumed_from"),
    [pytest.param(signal.SIGKILL, 5, marks=pytest.mark.slow), (signal.SIGTERM, 6)],  # test_pretrain.py kills a worker
)
def test_a_worker_that_ends_costs_nothing_but_time(
    undisturbed: Path,
    small_store: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    number: signal.Signals,
    resumed_from: int,
) -> None:
    """One that is told to go writes a checkpoint before, so no step is done twice."""
    monkeypatch.setattr("cluster.lone._CODE", HELD)
    directory = tmp_path / "run"

    def end() -> None:
        wait_until(Checkpoints(directory).path(5).exists)
        os.kill(processes(directory)[0], number)
        if number == signal.SIGKILL:
            held_worker.let_go(directory)

    person = threading.Thread(target=end, daemon=True)
    person.start()
    assert start(resolved_config(small_store, **EVERY_STEP), directory)["step"] == 10
    person.join()
    assert started_at(directory) == [0, resumed_from]
    expect_the_same(directory, undisturbed)


def held_pretrain(folder: Path, small_store: Path) -> subprocess.Popen[str]:
    """Start the command in a process, with a worker that waits after its fifth step until it may go."""
    code = f"from cluster import lone; from ssl_dist.commands.main import main; lone._CODE = {HELD!r}; main()"
    command = [
        sys.executable,
        "-c",
        code,
        "pretrain",
        str(recipe(folder, small_store)),
        "--run-dir",
        str(folder / "run"),
    ]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def recipe(folder: Path, small_store: Path) -> Path:
    file = folder / "recipe.yaml"
    file.write_text(small_config(small_store, **EVERY_STEP).model_dump_json())  # JSON is YAML
    return file


@pytest.mark.slow
def test_ctrl_c_leaves_a_checkpoint_from_which_it_resumes(undisturbed: Path, small_store: Path, tmp_path: Path) -> None:
    directory, child = tmp_path / "run", held_pretrain(tmp_path, small_store)
    wait_until(lambda: processes(directory) or child.poll() is not None)
    child.send_signal(signal.SIGINT)
    wait_until(lambda: (directory / "stop").exists() or child.poll() is not None)
    held_worker.let_go(directory)
    _, err = child.communicate()
    assert child.returncode == 130, err
    assert "Traceback" not in err
    [resume] = re.findall(r"resume with: ssl-dist (pretrain --resume \S+)", err)
    found = Checkpoints(directory).newest()
    assert found is not None
    assert 1 <= found.step <= 6
    again = [sys.executable, "-m", "ssl_dist", *resume.split(), "--json"]
    done = subprocess.run(again, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["step"] == 10
    expect_the_same(directory, undisturbed)


@pytest.mark.slow
@pytest.mark.parametrize("signals", [[signal.SIGKILL], [signal.SIGINT, signal.SIGINT]])
def test_no_worker_outlives_its_driver(small_store: Path, tmp_path: Path, signals: list[signal.Signals]) -> None:
    directory, child = tmp_path / "run", held_pretrain(tmp_path, small_store)
    wait_until(lambda: processes(directory) or child.poll() is not None)
    [pid] = processes(directory)
    environment = Path(f"/proc/{pid}/environ").read_text().split("\0")
    assert {f"{name}={value}" for name, value in KEEP_FREED_MEMORY.items()} <= set(environment)
    for number in signals:
        child.send_signal(number)
        time.sleep(0.2)  # two of one number that come together are one
    _, err = child.communicate()
    assert child.returncode in (-signal.SIGKILL, 130), err
    wait_until(lambda: not psutil.pid_exists(pid))


@pytest.mark.slow
def test_a_worker_that_dies_again_and_again_is_given_up(small_store: Path, tmp_path: Path) -> None:
    directory, stop = tmp_path / "run", threading.Event()

    def kill() -> None:
        killed = set[int]()
        while not stop.is_set():
            for pid in set(processes(directory)) - killed:
                os.kill(pid, signal.SIGKILL)
                killed.add(pid)
            time.sleep(0.01)

    killer = threading.Thread(target=kill, daemon=True)
    killer.start()
    with pytest.raises(SslDistError, match=r"worker 0 was killed without a word.*see .*worker-\*\.log, then ssl-dist"):
        start(resolved_config(small_store, **EVERY_STEP, cluster__max_failures=1), directory)
    stop.set()
    killer.join()
    assert len(processes(directory)) == 2


@pytest.mark.slow
def test_an_error_on_purpose_ends_the_run_at_once(small_store: Path, tmp_path: Path) -> None:
    wild = {"optim": {"name": "sgd", "lr": 1e30, "warmup_epochs": 0}}
    with pytest.raises(Diverged, match=r"step \d: the (loss|gradient).*nothing was updated"):
        start(resolved_config(small_store, **{**EVERY_STEP, **wild}), tmp_path / "run")
    assert len(processes(tmp_path / "run")) == 1


def test_any_other_error_is_named(small_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "sitecustomize.py").write_text("import json; json.loads = lambda text: [][0]")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(SslDistError, match=r"worker 0 failed \(IndexError: list index out of range\)"):
        start(resolved_config(small_store, **EVERY_STEP, cluster__max_failures=0), tmp_path / "run")


DISK = "import shutil, sys; sys.path.insert(0, sys.argv[1]); from cluster import lone; "
DISK += "shutil.disk_usage = lambda _: shutil._ntuple_diskusage(10**9, 10**9, {free}); lone.main(*sys.argv[2:])"


def test_a_run_that_the_disk_cannot_hold_leaves_nothing(
    command: Command, small_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The worker looks for room, and only then is anything written."""
    monkeypatch.setattr("cluster.lone._CODE", DISK.format(free=1000))
    done = command("pretrain", recipe(tmp_path, small_store), "--run-dir", tmp_path / "run")
    assert done.code == 2, done
    [line] = done.err.splitlines()
    assert line.startswith(f"error: checkpoints in {tmp_path}/run need 0.000")
    assert not (tmp_path / "run").exists()


def test_a_warning_of_the_worker_is_shown(
    small_store: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The newest checkpoints have room on the disk, the best may not have it."""
    config = resolved_config(small_store, **{**EVERY_STEP, "checkpoint__every_epochs": 12 / 51})
    free = checkpoint_bytes(config) * (config.checkpoint.keep + 1)
    monkeypatch.setattr("cluster.lone._CODE", DISK.format(free=free))
    assert start(config, tmp_path / "run")["step"] == 10
    assert f"checkpoints in {tmp_path}/run need" in caplog.text
    assert not (tmp_path / "run" / "warning.txt").exists()


@pytest.mark.slow
def test_a_driver_imports_neither_ray_nor_torch(small_store: Path, tmp_path: Path) -> None:
    code = "import sys; from ssl_dist.commands.main import main\ntry: main()\n"
    code += "finally: assert not {'ray', 'torch'} & {*sys.modules}"
    words = ["pretrain", str(recipe(tmp_path, small_store)), "--profile", "--run-dir", str(tmp_path / "run")]
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "one worker, without Ray" in done.stdout
    assert "driver: machine checked" in done.stdout
    assert "worker 0: first step" in done.stdout
    assert f"TensorBoard: {tmp_path}/run/profile/steps-6-to-" in done.stdout


@pytest.mark.parametrize(
    ("settings", "address", "alone"),
    [
        ({}, None, True),
        ({"workers": 2}, None, False),
        ({"workers": {"min": 1, "max": 2}}, None, False),
        ({"dashboard_port": 8265}, None, False),
        ({}, "auto", False),
    ],
)
def test_ray_is_needed_for_several_workers_a_cluster_or_a_dashboard(
    monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any], address: str | None, alone: bool
) -> None:
    if address:
        monkeypatch.setenv("RAY_ADDRESS", address)
    assert needs_no_ray(ClusterConfig.model_validate(settings)) == alone
