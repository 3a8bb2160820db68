"""Real runs under Ray Train: kills, Ctrl-C, another number of workers, errors, a mirror, the demo."""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from cluster.run_directory import RunDirectory
from ssl_dist import store
from ssl_dist.checkpoint import Checkpoints
from ssl_dist.checkpoint.mirror import Mirror
from ssl_dist.data import permutation
from ssl_dist.errors import ClusterError, Diverged, RunError, StoreDamaged
from ssl_dist.store import ImageStore
from ssl_dist.store.building import builder
from ssl_dist.uris import join_uri
from tests.cluster import held_worker
from tests.cluster.runs import (
    EVERY_STEP,
    differing_tensors,
    expect_the_same,
    losses,
    start,
    started_at,
    train_undisturbed,
)
from tests.conftest import write_images
from tests.gloo import GlooPool
from tests.helpers import resolved_config, small_config
from tests.store.held import wait_until


@pytest.fixture(scope="module")
def undisturbed(gloo: Callable[[int], GlooPool], small_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_undisturbed(gloo(2), 2, small_store, tmp_path_factory.mktemp("undisturbed") / "run")


def signal_held_worker(number: signal.Signals, directory: Path) -> None:
    """Send a signal to worker 1 when all workers wait after their fifth step."""
    wait_until(lambda: '"step": 5' in _text(directory / "metrics.jsonl"))
    [pid] = re.findall(r"process (\d+)", _text(directory / "worker-1.log"))
    os.kill(int(pid), number)


def _text(file: Path) -> str:
    return file.read_text() if file.exists() else ""


def test_a_killed_worker_costs_nothing_but_time(
    local_ray: None, undisturbed: Path, small_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Five steps, the kill of a worker and five more steps equal ten steps, bit for bit."""
    monkeypatch.setattr("cluster.worker.train", held_worker.train)
    directory = tmp_path / "run"

    def kill() -> None:
        wait_until(Checkpoints(directory).path(5).exists)
        signal_held_worker(signal.SIGKILL, directory)
        held_worker.let_go(directory)

    killer = threading.Thread(target=kill, daemon=True)
    killer.start()
    start(resolved_config(small_store, cluster__workers=2, **EVERY_STEP), directory)
    killer.join()
    assert len(re.findall(r"process \d+", (directory / "worker-1.log").read_text())) == 2, (
        "the worker was started twice"
    )
    assert started_at(directory) == [0, 5]
    expect_the_same(directory, undisturbed)


@pytest.mark.slow  # a worker without Ray does it too, in test_lone.py
def test_a_worker_that_is_told_to_go_leaves_a_checkpoint(
    local_ray: None, undisturbed: Path, small_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SIGTERM makes a checkpoint where none is due, so no step is done twice."""
    monkeypatch.setattr("cluster.worker.train", held_worker.train)
    rarely, directory = {**EVERY_STEP, "checkpoint__every_epochs": 1e6}, tmp_path / "run"
    person = threading.Thread(target=signal_held_worker, args=(signal.SIGTERM, directory), daemon=True)
    person.start()
    result = start(resolved_config(small_store, cluster__workers=2, **rarely), directory)
    person.join()
    assert result["step"] == 10
    assert started_at(directory) == [0, 6]
    assert "worker 1 was preempted" in (directory / "worker-1.log").read_text()
    lines = map(json.loads, (directory / "metrics.jsonl").read_text().splitlines())
    steps = [line["step"] for line in lines if "train/loss" in line]
    assert steps == list(range(1, 11)), "each once"
    assert losses(directory) == losses(undisturbed)


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("number", range(5))
def test_ten_kills_at_random_moments(
    local_ray: None, undisturbed: Path, small_store: Path, tmp_path: Path, number: int
) -> None:
    """A kill hits either worker, while it starts, trains, or writes a checkpoint, which it does at every step."""
    often = {"checkpoint__every_epochs": 12 / 51, "cluster__max_failures": 30}
    directory = tmp_path / "run"
    killer = threading.Thread(target=_kill_at_random, args=(directory, 10))
    killer.start()
    result = start(resolved_config(small_store, cluster__workers=2, **{**EVERY_STEP, **often}), directory)
    killer.join()
    assert result["step"] == 10
    expect_the_same(directory, undisturbed)


def _kill_at_random(directory: Path, times: int) -> None:
    """Kill workers until so many have been killed, or the run has ended."""
    killed: set[int] = set()
    while len(killed) < times and not Checkpoints(directory).path(10).exists():
        rank = random.randrange(2)
        log = directory / f"worker-{rank}.log"
        pids = [int(pid) for pid in re.findall(r"process (\d+) on", log.read_text())] if log.exists() else []
        if pids and pids[-1] not in killed:
            time.sleep(random.choice([0, 0.2, 1, 3]) * random.random())
            with contextlib.suppress(ProcessLookupError):
                os.kill(pids[-1], signal.SIGKILL)
                killed.add(pids[-1])
        time.sleep(0.02)
    print(f"{len(killed)} kills")


@pytest.mark.slow
def test_a_diverged_run_names_its_step_and_keeps_its_checkpoint(
    local_ray: None, small_store: Path, tmp_path: Path
) -> None:
    wild = {"optim": {"name": "sgd", "lr": 1e30, "warmup_epochs": 0}, "checkpoint__every_epochs": 12 / 51}
    config = resolved_config(small_store, cluster__workers=2, **{**EVERY_STEP, **wild})
    with pytest.raises(Diverged, match=r"step \d: the (loss|gradient).*nothing was updated"):
        start(config, tmp_path / "run")
    assert Checkpoints(tmp_path / "run").newest() is not None


def test_more_than_the_cluster_has_is_refused(local_ray: None, small_store: Path, tmp_path: Path) -> None:
    with pytest.raises(ClusterError, match=r"cluster.workers 99 of 1 CPU each: Ray's 1 node\(s\) have room for 4"):
        start(resolved_config(small_store, cluster__workers=99, **EVERY_STEP), tmp_path / "run")


def _first_to_meet_batch_1(seed: int) -> int | None:
    """Return the rank that first gets a sample of 512..599, of 600 samples; None where both do in one step."""
    for step in range(75):
        ids, _ = permutation.stream(seed, 8 * step, 8 * step + 8, 600)
        meets = [bool((part >= 512).any()) for part in (ids[:4], ids[4:])]
        if any(meets):
            return None if all(meets) else meets.index(True)
    raise AssertionError("an epoch holds every sample")


@pytest.mark.slow
def test_damage_that_only_one_worker_finds_ends_the_run_with_its_reason(
    local_ray: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One of two record batches is damaged, and worker 1 alone reads it first: worker 0 must not wait for ever."""
    write_images(tmp_path / "images", num_classes=2, per_class=300, size_px=8)
    path = tmp_path / "store"
    monkeypatch.setattr(builder, "SMALLEST_SHARD", 600)  # both in one shard
    store.build(tmp_path / "images", path, workers=1)
    config = resolved_config(path, cluster__workers=2, batch={"size": 8, "micro": 4}, probe=None, epochs=1)
    seed = next(seed for seed in range(100) if _first_to_meet_batch_1(seed) == 1)
    batch = ImageStore(path).manifest.shards[0].batches[1]
    with (path / "shard-00000.arrow").open("r+b") as shard:
        shard.seek(batch.offset + batch.length // 2)
        shard.write(b"damage")
    with pytest.raises(StoreDamaged, match=r"record batch 1 \(samples 512\.\.599\) differs from its checksum"):
        start(config.model_copy(update={"seed": seed}), tmp_path / "run")


def test_two_processes_do_not_share_a_run(tmp_path: Path, small_store: Path) -> None:
    config = resolved_config(small_store)
    held = RunDirectory.create(tmp_path / "run", config)
    with pytest.raises(RunError, match="is being run by another process"):
        RunDirectory.reopen(tmp_path / "run")
    with pytest.raises(RunError, match="is not empty"):
        RunDirectory.create(tmp_path / "run", config)
    assert held.path == tmp_path / "run"


def ssl_dist(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "ssl_dist", *map(str, arguments)]


@pytest.mark.slow
def test_ctrl_c_leaves_a_checkpoint_from_which_other_workers_resume(
    local_ray: None, undisturbed: Path, small_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run on the cluster of RAY_ADDRESS stops with 2 workers and ZeRO 1; 1 worker, ZeRO 2 and no Ray complete it."""
    directory = tmp_path / "run"
    config = small_config(small_store, cluster__workers=2, **EVERY_STEP)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(config.model_dump_json())  # JSON is YAML
    import ray

    monkeypatch.setenv("RAY_ADDRESS", ray.get_runtime_context().gcs_address)
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    code = "from cluster import worker; from tests.cluster import held_worker; worker.train = held_worker.train; "
    code += "from ssl_dist.commands.main import main; main()"
    command = [sys.executable, "-c", code, "pretrain", str(recipe), "--run-dir", str(directory)]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    wait_until(lambda: (directory / "worker-0.log").exists() or child.poll() is not None)
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
    monkeypatch.delenv("RAY_ADDRESS")
    settings = ["--set", "cluster.workers=1", "--set", "engine.zero_stage=2", "--json"]
    done = subprocess.run(ssl_dist(*resume.split(), *settings), capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["step"] == 10
    assert started_at(directory) == [0, found.step]
    assert f"continuing from step {found.step}" in done.stderr
    # float32 sums in another order, ten steps: see tests/training/test_engine.py
    assert losses(directory) == pytest.approx(losses(undisturbed), rel=1e-5)


@pytest.mark.slow
def test_a_run_resumes_from_its_mirror_on_another_machine(
    local_ray: None, undisturbed: Path, small_store: Path, tmp_path: Path, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The only thing left of the run is its checkpoint of step 5 on S3."""
    place = join_uri(bucket, tmp_path.name)
    config = resolved_config(small_store, cluster__workers=2, **EVERY_STEP, checkpoint__mirror=place)
    start(config, tmp_path / "run")
    mirror = Mirror(join_uri(place, "run"))
    assert mirror.names() == ["step-00000010", "step-00000005"]
    mirror.delete("step-00000010")
    shutil.rmtree(tmp_path / "run")
    import ray

    monkeypatch.setenv("RAY_ADDRESS", ray.get_runtime_context().gcs_address)
    command = ssl_dist("pretrain", "--resume", join_uri(place, "run"), "--out", tmp_path / "elsewhere")
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "continuing from step 5" in done.stdout
    assert started_at(tmp_path / "elsewhere" / "run") == [5]
    assert differing_tensors(tmp_path / "elsewhere" / "run", undisturbed) == []
    assert mirror.names()[0] == "step-00000010"
    again = subprocess.run(command, capture_output=True, text=True, check=False)
    assert again.returncode == 2
    assert "is there: resume it by --resume" in again.stderr


@pytest.mark.slow  # CI runs `make demo` itself
def test_the_demo_beats_random_weights(tmp_path: Path) -> None:
    done = subprocess.run(
        ssl_dist("demo", "--out", tmp_path, "--set", "epochs=6", "--json"),
        capture_output=True,
        text=True,
        check=True,
    )
    result = json.loads(done.stdout)
    assert result["trained"] > result["random"]
    run = Path(result["run"])
    assert list((run / "tensorboard").glob("events.*"))
    assert f"TensorBoard's logs: {run / 'tensorboard'}" in done.stderr
    assert f"its report, a page to open in a browser: {result['report']}" in done.stderr
    assert "Nearest neighbours" in Path(result["report"]).read_text()
