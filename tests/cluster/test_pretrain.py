"""Real runs under Ray Train: a kill, Ctrl-C, another worker count, an error, the demo."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from cluster.launch import launch
from cluster.run_directory import RunDirectory
from ssl_dist import checkpoint
from ssl_dist.config import RunConfig
from ssl_dist.errors import ClusterError, Diverged, RunError
from tests.helpers import small_config

EVERY_STEP = {"monitor__every_steps": 1, "probe": None, "epochs": 10 * 12 / 51, "checkpoint__every_epochs": 5 * 12 / 51}


@pytest.fixture(scope="module")
def local_ray() -> Iterator[None]:
    """One Ray for the runs of this module; `launch` uses the one that is there."""
    import ray

    os.environ.update(RAY_AUTH_MODE="disabled", RAY_TRAIN_HEALTH_CHECK_INTERVAL_S="0.2", RAY_CHDIR_TO_TRIAL_DIR="0")
    ray.init(address="local", num_cpus=4, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


def losses(run: Path) -> list[float]:
    found = {}
    for line in (run / "metrics.jsonl").read_text().splitlines():
        values = json.loads(line)
        if "train/loss" in values:
            found[values["step"]] = values["train/loss"]
    assert sorted(found) == list(range(1, 11))
    return [found[step] for step in range(1, 11)]


def start(config: RunConfig, directory: Path) -> dict[str, Any]:
    return launch(config, RunDirectory.create(directory, config), Console(quiet=True))


@pytest.fixture(scope="module")
def undisturbed(local_ray: None, small_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("undisturbed") / "run"
    result = start(small_config(small_store, cluster__workers=2, **EVERY_STEP), directory)
    assert result["step"] == 10
    return directory


def equal_checkpoints(a: Path, b: Path) -> bool:
    states = [checkpoint.verify(checkpoint.path_of(run, 10)).load() for run in (a, b)]
    return all(
        torch.equal(ours[name], theirs[name]) for ours, theirs in zip(*states, strict=True) for name in ours | theirs
    )


def kill_a_worker_after(step: int, directory: Path) -> None:
    """kill -9 of worker 1 once the checkpoint of ``step`` and some line beyond it are there."""
    deadline = time.monotonic() + 120
    log, metrics = directory / "worker-1.log", directory / "metrics.jsonl"
    while time.monotonic() < deadline:
        if checkpoint.path_of(directory, step).exists() and f'"step": {step + 1},' in metrics.read_text():
            [pid] = re.findall(r"process (\d+)", log.read_text())
            return os.kill(int(pid), signal.SIGKILL)
        time.sleep(0.005)


def test_a_killed_worker_costs_nothing_but_time(
    local_ray: None, undisturbed: Path, small_store: Path, tmp_path: Path
) -> None:
    """Ten steps = five, kill -9 of a worker, five: bit for bit."""
    directory = tmp_path / "run"
    killer = threading.Thread(target=kill_a_worker_after, args=(5, directory))
    killer.start()
    start(small_config(small_store, cluster__workers=2, **EVERY_STEP), directory)
    killer.join()
    assert len(re.findall(r"process \d+", (directory / "worker-1.log").read_text())) == 2, (
        "the worker was started twice"
    )
    assert losses(directory) == losses(undisturbed)
    assert equal_checkpoints(directory, undisturbed)


def test_ray_train_knows_the_checkpoints(undisturbed: Path) -> None:
    snapshot = json.loads((undisturbed / "checkpoint_manager_snapshot.json").read_text())
    assert "step-00000010" in json.dumps(snapshot)


def test_a_diverged_run_names_its_step_and_keeps_its_checkpoint(
    local_ray: None, small_store: Path, tmp_path: Path
) -> None:
    wild = {"optim": {"name": "sgd", "lr": 1e30, "warmup_epochs": 0}, "checkpoint__every_epochs": 12 / 51}
    config = small_config(small_store, cluster__workers=2, **{**EVERY_STEP, **wild})
    with pytest.raises(Diverged, match=r"step \d: the (loss|gradient).*nothing was updated"):
        start(config, tmp_path / "run")
    assert checkpoint.newest(tmp_path / "run") is not None


def test_more_than_the_cluster_has_is_refused(local_ray: None, small_store: Path, tmp_path: Path) -> None:
    with pytest.raises(ClusterError, match=r"cluster.workers 99 need 99 CPU, Ray has 4"):
        start(small_config(small_store, cluster__workers=99, **EVERY_STEP), tmp_path / "run")


def test_two_processes_do_not_share_a_run(undisturbed: Path, tmp_path: Path, small_store: Path) -> None:
    config = small_config(small_store)
    held = RunDirectory.create(tmp_path / "run", config)
    with pytest.raises(RunError, match="is being run by another process"):
        RunDirectory.reopen(tmp_path / "run")
    with pytest.raises(RunError, match="is not empty"):
        RunDirectory.create(tmp_path / "run", config)
    assert held.path == tmp_path / "run"


def ssl_dist(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "tune.cli", *map(str, arguments)]


def test_ctrl_c_leaves_a_checkpoint_from_which_other_workers_go_on(
    undisturbed: Path, small_store: Path, tmp_path: Path
) -> None:
    """Stopped with 2 workers and ZeRO 1, finished with 1 worker and ZeRO 2, by the line that was printed."""
    directory = tmp_path / "run"
    config = small_config(small_store, cluster__workers=2, **EVERY_STEP)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(config.model_dump_json())  # JSON is YAML
    child = subprocess.Popen(
        ssl_dist("pretrain", recipe, "--run-dir", directory), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    metrics = directory / "metrics.jsonl"
    while child.poll() is None and not (metrics.exists() and '"step": 2,' in metrics.read_text()):
        time.sleep(0.005)
    child.send_signal(signal.SIGINT)
    _, err = child.communicate(timeout=120)
    assert child.returncode == 130, err
    assert "Traceback" not in err
    [resume] = re.findall(r"go on with: ssl-dist (pretrain --resume \S+)", err)
    found = checkpoint.newest(directory)
    assert found is not None
    assert 2 <= found.step < 10
    settings = ["--set", "cluster.workers=1", "--set", "engine.zero_stage=2", "--json"]
    done = subprocess.run(ssl_dist(*resume.split(), *settings), capture_output=True, text=True, timeout=240, check=True)
    assert json.loads(done.stdout.splitlines()[-1])["step"] == 10
    # float32 sums in another order, ten steps: see tests/test_engine.py
    assert losses(directory) == pytest.approx(losses(undisturbed), rel=1e-5)


def test_the_demo_beats_random_weights(tmp_path: Path) -> None:
    done = subprocess.run(
        ssl_dist("demo", "--out", tmp_path, "--set", "epochs=6", "--json"),
        capture_output=True,
        text=True,
        timeout=280,
        check=True,
    )
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["trained"] > result["random"]
    run = Path(result["run"])
    assert list((run / "tensorboard").glob("events.*"))
    assert f"TensorBoard's logs: {run / 'tensorboard'}" in done.stdout
