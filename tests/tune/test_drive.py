"""Real sweeps under Ray Tune: to the end, and through a kill -9."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from ssl_dist.config import RunConfig
from tests.helpers import RECIPE
from tune.results import importances, read, winner
from tune.sweep import Sweep

SPACE = """
method.temperature: [0.1, 0.5]
optim.lr: [0.005, 1.0e+30]
"""
PROBE = "probe={kind: knn, bank: 30, queries: 12, k: 3}"


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "tune.cli", "tune", *map(str, arguments)]


def sweep_command(store: Path, folder: Path, sweep: Path) -> list[str]:
    """Two temperatures, each with a rate that learns and one that diverges; 8 steps a trial, a rung after 4."""
    (folder / "recipe.yaml").write_text(RECIPE)
    (folder / "space.yaml").write_text(SPACE)
    settings = ("--set", f"data.store={store}", "--set", PROBE, "--set", "epochs=2")
    rule = ("--search", "grid", "--rung-epochs", 1)
    return command(
        folder / "recipe.yaml", "--space", folder / "space.yaml", *settings, *rule, "--sweep-dir", sweep, "--json"
    )


def run(arguments: list[str]) -> dict[str, Any]:
    done = subprocess.run(arguments, capture_output=True, text=True, check=False, timeout=280)
    assert done.returncode == 0, done.stdout + done.stderr
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


@pytest.fixture(scope="module")
def undisturbed(small_store: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("sweep")
    return folder / "sweep", run(sweep_command(small_store, folder, folder / "sweep"))


def starts(trial: Path) -> list[int]:
    """The step of each start of its workers."""
    return [int(step) for step in re.findall(r"going on from step (\d+)", (trial / "worker-0.log").read_text())]


def test_every_trial_comes_to_an_end_of_its_own(undisturbed: tuple[Path, dict[str, Any]]) -> None:
    """A rate of 1e30 diverges: a result, not an error of the sweep."""
    directory, result = undisturbed
    ends = {(one["sample"]["optim.lr"], one["status"]) for one in result["trials"]}
    assert len(result["trials"]) == len(list((directory / "trials").iterdir())) == 4
    assert {(rate, status) for rate, status in ends if rate > 1} == {(1e30, "diverged")}
    assert {status for rate, status in ends if rate < 1} <= {"finished", "stopped"}
    assert result["best"]["status"] == "finished"
    assert result["best"]["sample"]["optim.lr"] == 0.005
    for one in result["trials"]:
        assert starts(Path(one["run"])) == [0]


def test_the_winner_is_ready_for_use(undisturbed: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    directory, result = undisturbed
    sweep = Sweep.read(directory)
    trials = read(sweep, directory)
    best = winner(trials)
    assert best is not None
    assert (directory / "best").resolve() == best.run.resolve() == Path(result["best"]["run"]).resolve()
    recipe = RunConfig.load(directory / "best.yaml")
    assert recipe.method.temperature == best.sample["method.temperature"]  # type: ignore[attr-defined]
    assert (directory / "best.yaml").read_text().startswith("# Command:  ssl-dist pretrain ")
    assert (directory / "parallel.png").stat().st_size > 10_000
    assert sum(importances(sweep, trials).values()) == pytest.approx(1)
    assert list((directory / "best" / "tensorboard").glob("events.*"))


@pytest.mark.timeout(600)
def test_a_killed_sweep_goes_on_with_every_trial_and_finds_the_same_winner(
    undisturbed: tuple[Path, dict[str, Any]], small_store: Path, tmp_path: Path
) -> None:
    sweep = tmp_path / "sweep"
    driver = subprocess.Popen(
        sweep_command(small_store, tmp_path, sweep), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 200
    while not (ended := list(sweep.glob("trials/*/outcome.json"))):
        assert driver.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.1)
    os.kill(driver.pid, signal.SIGKILL)
    driver.wait()
    before = {file: file.stat().st_mtime_ns for file in ended}
    result = run(command("--resume", sweep, "--json"))
    expected = undisturbed[1]
    assert {file: file.stat().st_mtime_ns for file in before} == before, "a trial that had ended was run again"
    for file in before:
        assert starts(file.parent) == [0]
    assert {str(one["sample"]) for one in result["trials"]} == {str(one["sample"]) for one in expected["trials"]}
    assert len(result["trials"]) == 4
    assert result["best"]["sample"] == expected["best"]["sample"]
    assert result["best"]["objective"] == expected["best"]["objective"]


def test_optuna_and_median_stopping_on_an_objective_without_labels(small_store: Path, tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    (tmp_path / "space.yaml").write_text("method.temperature: {uniform: [0.1, 0.5]}")
    settings = ("--set", f"data.store={small_store}", "--set", PROBE, "--set", "epochs=1", "--samples", 3)
    rules = ("--search", "optuna", "--scheduler", "median", "--objective", "lidar")
    recipe, space = tmp_path / "recipe.yaml", tmp_path / "space.yaml"
    result = run(command(recipe, "--space", space, *settings, *rules, "--sweep-dir", tmp_path / "sweep", "--json"))
    assert len({one["sample"]["method.temperature"] for one in result["trials"]}) == 3
    assert result["best"]["objective"] == max(one["objective"] for one in result["trials"]) > 1


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_trials_of_several_workers_make_room_for_the_next(small_store: Path, tmp_path: Path) -> None:
    several = sweep_command(small_store, tmp_path, tmp_path / "sweep")
    result = run([*several, "--set", "cluster.workers=2"])
    assert {one["status"] for one in result["trials"]} >= {"finished", "diverged"}
    assert len(result["trials"]) == 4


def test_results_can_be_read_again(undisturbed: tuple[Path, dict[str, Any]]) -> None:
    directory, result = undisturbed
    assert run(command("results", directory, "--json")) == result
    assert yaml.safe_load((directory / "best.yaml").read_text())["data"]["store"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["simclr-digits", "--objective", "loss"], "NT-Xent depends on temperature and batch size"),
        (["simclr-digits", "--scheduler", "fastest"], "scheduler"),
        (["--samples", "3"], "give either a recipe"),
        (["--resume", "nowhere"], "is not a sweep"),
    ],
)
def test_mistakes_are_one_line_and_exit_code_2(small_store: Path, arguments: list[str], message: str) -> None:
    settings = ["--set", f"data.store={small_store}", "--set", "batch.size=16", "--set", "batch.micro=16"]
    given = [*arguments, *(settings if arguments[0].startswith("simclr") else [])]
    done = subprocess.run(command(*given), capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr
