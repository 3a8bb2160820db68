"""Real sweeps under Ray Tune, to their end and through kills."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

from ssl_dist.config import RunConfig
from ssl_dist.machine import KEEP_FREED_MEMORY
from tests.helpers import RECIPE
from tune.results import importances, read_trials, winner
from tune.sweep import Sweep

SPACE = """
method.temperature: [0.1, 0.5]
optim.lr: [0.005, 1.0e+30]
"""
MANY = """
method.temperature: [0.1, 0.2, 0.5]
optim.lr: [0.005, 0.002, 1.0e+30]
"""
PROBE = "probe={kind: knn, bank: 30, queries: 12, k: 3}"


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "ssl_dist", "tune", *map(str, arguments)]


def sweep_command(store: Path, folder: Path, sweep: Path, space: str = SPACE, epochs: int = 2) -> list[str]:
    """Return the command of a sweep over temperatures and rates, of which one diverges; an epoch has 4 steps."""
    (folder / "recipe.yaml").write_text(RECIPE)
    (folder / "space.yaml").write_text(space)
    settings = ("--set", f"data.store={store}", "--set", PROBE, "--set", f"epochs={epochs}")
    rule = ("--search", "grid", "--rung-epochs", 1)
    return command(
        folder / "recipe.yaml", "--space", folder / "space.yaml", *settings, *rule, "--sweep-dir", sweep, "--json"
    )


def run(arguments: list[str]) -> dict[str, Any]:
    done = subprocess.run(arguments, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    result: dict[str, Any] = json.loads(done.stdout)
    return result


@pytest.fixture(scope="module")
def undisturbed(small_store: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("sweep")
    return folder / "sweep", run(sweep_command(small_store, folder, folder / "sweep"))


def starts(trial: Path) -> list[int]:
    """Return the step of each start of a trial's workers."""
    return [int(step) for step in re.findall(r"continuing from step (\d+)", (trial / "worker-0.log").read_text())]


def test_every_trial_comes_to_an_end_of_its_own(undisturbed: tuple[Path, dict[str, Any]]) -> None:
    """A rate of 1e30 diverges, which is a result and no error of the sweep."""
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
    trials = read_trials(sweep, directory)
    best = winner(trials)
    assert best is not None
    assert (directory / "best" / "checkpoints").resolve().parent == best.run.resolve()
    assert best.run.resolve() == Path(result["best"]["run"]).resolve()
    recipe = RunConfig.load(directory / "best.yaml")
    assert recipe.method.temperature == best.sample["method.temperature"]  # type: ignore[attr-defined]
    assert (directory / "best.yaml").read_text().startswith("# Command:  ssl-dist pretrain ")
    assert (directory / "parallel.png").stat().st_size > 10_000
    assert sum(importances(sweep, trials).values()) == pytest.approx(1)
    events = EventAccumulator(str(best.run / "tensorboard")).Reload()
    assert "probe/knn" in events.Tags()["scalars"]
    shown = HParamsPluginData.FromString(events.summary_metadata["_hparams_/session_start_info"].plugin_data.content)
    assert set(shown.session_start_info.hparams) == {"method.temperature", "optim.lr"}


def ended(sweep: Path) -> dict[Path, list[int]]:
    """Return the starts of each trial that has ended, by the steps from which they began."""
    return {file.parent: starts(file.parent) for file in sweep.glob("trials/*/outcome.json")}


def kill_when(driver: subprocess.Popen[bytes], moment: Callable[[], object], after_s: float = 0) -> None:
    while not moment():
        assert driver.poll() is None
        time.sleep(0.05)
    time.sleep(after_s)
    os.kill(driver.pid, signal.SIGKILL)
    driver.wait()


def expect_the_same(sweep: Path, result: dict[str, Any], undisturbed: dict[str, Any]) -> None:
    """Expect that no trial was lost or begun again, and that every one has the same verdict and figures."""
    keys = ("sample", "status", "objective", "images")
    found, expected = (sorted(repr([one[k] for k in keys]) for one in r["trials"]) for r in (result, undisturbed))
    assert found == expected
    assert result["best"]["sample"] == undisturbed["best"]["sample"]
    for trial in (sweep / "trials").iterdir():
        steps = starts(trial)
        assert steps == sorted(steps)


@pytest.mark.slow
def test_a_killed_sweep_resumes_every_trial_and_finds_the_same_winner(
    undisturbed: tuple[Path, dict[str, Any]], small_store: Path, tmp_path: Path
) -> None:
    sweep = tmp_path / "sweep"
    code = "from tests.tune import held_trial; from tune import runner; runner.run_trial = held_trial.run_trial; "
    code += "from ssl_dist.commands.main import main; main()"
    held = [sys.executable, "-c", code, *sweep_command(small_store, tmp_path, sweep)[3:]]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    driver = subprocess.Popen(held, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    kill_when(driver, lambda: ended(sweep))
    before = ended(sweep)
    result = run(command("--resume", sweep, "--json"))
    assert ended(sweep).items() >= before.items(), "a trial that had ended was run again"
    expect_the_same(sweep, result, undisturbed[1])


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_sweep_killed_at_three_random_moments(small_store: Path, tmp_path: Path) -> None:
    """Once a trial's own process is killed alone, as if its node died: it is started again from its checkpoint.

    Moments follow how many of the nine trials have ended, so that some are left for the next one on any machine.
    """
    (tmp_path / "calm").mkdir()
    calm = run(sweep_command(small_store, tmp_path / "calm", tmp_path / "calm" / "sweep", MANY, epochs=6))
    assert len(calm["trials"]) == 9
    assert {one["status"] for one in calm["trials"]} == {"finished", "stopped", "diverged"}
    sweep, before = tmp_path / "sweep", dict[Path, list[int]]()
    arguments = sweep_command(small_store, tmp_path, sweep, MANY, epochs=6)
    for number in sorted(random.sample(range(6), 3)):
        driver = subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        begun = all_starts(sweep)
        kill_when(
            driver,
            lambda: all_starts(sweep) > begun and len(ended(sweep)) >= number,  # noqa: B023  # called here and now
            after_s=random.uniform(0, 1),
        )
        print(f"killed when {len(ended(sweep))} trials had ended")
        assert ended(sweep).items() >= before.items(), "a trial that had ended was run again"
        arguments, before = command("--resume", sweep, "--json"), ended(sweep)
    driver = subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    begun = all_starts(sweep)
    while all_starts(sweep) == begun:
        time.sleep(0.1)
    trial = newest_process(sweep)
    environment = Path(f"/proc/{trial}/environ").read_text().split("\0")
    assert {f"{name}={value}" for name, value in KEEP_FREED_MEMORY.items()} <= set(environment)
    os.kill(trial, signal.SIGKILL)
    output, _ = driver.communicate()
    assert driver.returncode == 0
    expect_the_same(sweep, json.loads(output), calm)
    assert ended(sweep).items() >= before.items()


def all_starts(sweep: Path) -> int:
    return sum(len(starts(run)) for run in sweep.glob("trials/*") if (run / "worker-0.log").exists())


def newest_process(sweep: Path) -> int:
    lines = [line for log in sweep.glob("trials/*/worker-0.log") for line in log.read_text().splitlines()]
    return int(max(re.findall(r"(\S+ \S+) INFO .* worker 0: process (\d+) on", "\n".join(lines)))[1])


@pytest.mark.slow
def test_optuna_and_median_stopping_on_an_objective_without_labels(small_store: Path, tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    (tmp_path / "space.yaml").write_text("method.temperature: {uniform: [0.1, 0.5]}")
    settings = ("--set", f"data.store={small_store}", "--set", PROBE, "--set", "epochs=1", "--samples", 3)
    rules = ("--search", "optuna", "--scheduler", "median", "--objective", "lidar")
    recipe, space = tmp_path / "recipe.yaml", tmp_path / "space.yaml"
    result = run(command(recipe, "--space", space, *settings, *rules, "--sweep-dir", tmp_path / "sweep", "--json"))
    assert len({one["sample"]["method.temperature"] for one in result["trials"]}) == 3
    assert result["best"]["objective"] == max(one["objective"] for one in result["trials"]) > 1


def population_command(store: Path, folder: Path) -> list[str]:
    """Return the command of a sweep over four members, in ``folder``/sweep."""
    (folder / "recipe.yaml").write_text(RECIPE)
    (folder / "space.yaml").write_text("method.temperature: {log_uniform: [0.05, 20.0]}\noptim.lr: [0.002, 0.01]")
    settings = ("--set", f"data.store={store}", "--set", PROBE, "--set", "epochs=8", "--set", "optim.name=adamw")
    rules = ("--scheduler", "pbt", "--rung-epochs", 2, "--samples", 4, "--objective", "rankme")
    recipe, space, sweep = folder / "recipe.yaml", folder / "space.yaml", folder / "sweep"
    return command(recipe, "--space", space, *settings, *rules, "--sweep-dir", sweep, "--json")


@pytest.mark.slow
def test_a_killed_population_resumes_every_member(small_store: Path, tmp_path: Path) -> None:
    """Members resume in their current runs, also where these continue another's, and none starts over."""
    sweep = tmp_path / "sweep"
    driver = subprocess.Popen(
        population_command(small_store, tmp_path), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    kill_when(driver, lambda: len(list(sweep.glob("trials/*/checkpoints/step-*"))) > 4)
    before = ended(sweep)
    result = run(command("--resume", sweep, "--json"))
    assert sorted(one["status"] for one in result["trials"] if one["status"] != "replaced") == ["finished"] * 4
    assert before.keys() <= ended(sweep).keys()
    for one in result["trials"]:
        steps = starts(Path(one["run"]))
        assert steps == sorted(steps)
        assert steps[0] == one["parent_step"]


@pytest.mark.slow
def test_a_population_continues_from_its_better_members(small_store: Path, tmp_path: Path) -> None:
    """A member whose temperature is too high takes over weights and optimizer of a better one."""
    sweep = tmp_path / "sweep"
    result = run(population_command(small_store, tmp_path))
    ends = [one for one in result["trials"] if one["status"] == "finished"]
    assert len(ends) == 4
    assert {one["status"] for one in result["trials"]} == {"finished", "replaced"}
    runs = {Path(one["run"]).name: Path(one["run"]) for one in result["trials"]}
    adopted = [one for one in result["trials"] if one["parent"]]
    assert len(adopted) == len(runs) - 4 >= 1
    for one in adopted:
        run_directory = runs[Path(one["run"]).name]
        assert starts(run_directory)[0] == one["parent_step"] > 0
        assert 0.05 <= one["sample"]["method.temperature"] <= 20
        first = json.loads((run_directory / "metrics.jsonl").read_text().splitlines()[1])
        assert first["step"] > one["parent_step"]
        assert one["images_seen"] <= 8 * 51 - one["parent_step"] * 12
    assert result["importance"] == {}
    assert run(command("results", sweep, "--json")) == result


@pytest.mark.slow
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
