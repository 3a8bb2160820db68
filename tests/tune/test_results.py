"""Results of sweeps: every space that is accepted can be shown, tabled, plotted and resumed."""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import yaml
from hypothesis import strategies as st
from rich.console import Console
from tensorboard.backend.event_processing.io_wrapper import GetLogdirSubdirectories

from ssl_dist.errors import ConfigError, RunError, SslDistError
from tests.command import Command
from tests.tune.test_search import begin
from tests.tune.test_sweep import make
from tune import runner, trial_files
from tune import space as spaces
from tune.optuna_search import DistinctOptunaSearch
from tune.results import write_results
from tune.space import Domain, Sample
from tune.sweep import Sweep

SECTIONS = {
    "optim": [{"name": "sgd", "lr": 0.1}, {"name": "adamw", "lr": 0.001, "betas": [0.9, 0.99]}, {"lr": 0.2}],
    "backbone": [{"name": "resnet8", "stem": "half", "width": 8}, {"name": "convnet"}],
    "augment": [{"recipe": "simclr-small"}, {"recipe": "byol-small", "only": ["crop", "flip"]}],
    "batch": [{"size": 12, "micro": 4}, {"size": 8, "micro": 8}],
}
CHOICES = {
    "augment.crop_scale": [[0.2, 1.0], [0.08, 1.0], [0.5, 0.75], None],
    "augment.only": [["flip", "crop"], ["colour"], [], None],
    "optim.lr": ["1e-3", "0.003", 0.01, 1],
    "optim.clip_norm": [None, 3, 1.5],
    "optim.betas": [[0.9, 0.999], [0.8, 0.9]],
    "engine.zero_stage": [0, 1, 2],
    "method.similarity": ["cosine", "dot"],
    "seed": [0, 1, 2**40],
    "epochs": [1, 2.5, 40],
    "batch.size": ["8", 12, 20],
    "probe": [{"k": 3}, {"k": 5, "bank": 30}],
    **SECTIONS,
}
NUMBERS = st.floats(0.01, 0.9)
BOUNDS = st.tuples(NUMBERS, NUMBERS).map(sorted)


def domains(key: str) -> st.SearchStrategy[Any]:
    choice = st.permutations(CHOICES[key]).flatmap(lambda one: st.integers(1, len(one)).map(lambda n: list(one[:n])))
    if key != "optim.lr":
        return choice
    return choice | BOUNDS.map(lambda one: {"uniform": one}) | BOUNDS.map(lambda one: {"log_uniform": one})


SPACES = st.sets(st.sampled_from(sorted(CHOICES)), min_size=1, max_size=3).flatmap(
    lambda keys: st.fixed_dictionaries({key: domains(key) for key in sorted(keys)})
)


def load(tree: dict[str, Any], folder: Path) -> spaces.Space:
    (folder / "space.yaml").write_text(yaml.safe_dump(tree))
    return spaces.load(folder / "space.yaml")


def ended_sweep(sweep: Sweep, directory: Path, unended: int = 0) -> list[Sample]:
    """Write the files of a sweep whose trials have ended, except the last ``unended`` ones, and not the first."""
    sweep.write(directory)
    samples = (sweep.known_samples or spaces.draw(sweep.space, 5, seed=1))[:6]
    for number, sample in enumerate(samples):
        last = number and number >= len(samples) - unended
        begin(sweep, directory, sample, "" if last else "finished", 0.1 + number % 3 / 10)
    return samples


@hypothesis.settings(max_examples=12, deadline=None, derandomize=True)
@hypothesis.given(tree=SPACES, search=st.sampled_from(["random", "random", "grid", "optuna"]))
def test_every_accepted_space_is_shown_plotted_and_resumed(
    small_store: Path, tmp_path_factory: pytest.TempPathFactory, tree: dict[str, Any], search: str
) -> None:
    directory = tmp_path_factory.mktemp("sweep")
    try:
        sweep = make(small_store, space=load(tree, directory), search=search, samples=6, scheduler="none")
        sweep.check()
    except ConfigError:
        return  # refused before it costs anything
    (directory / "space.yaml").unlink()
    samples = ended_sweep(sweep, directory, unended=1)
    assert Sweep.read(directory) == sweep
    trials, shares = write_results(sweep, directory)
    found = {one.run.name: one.sample for one in trials}
    assert found == {trial_files.path_of(directory, sweep.config(sample)).name: sample for sample in samples}
    assert (directory / "parallel.png").stat().st_size > 5_000
    assert not shares or shares.keys() == tree.keys()
    unended = samples[1:][-1:]
    if search == "optuna":
        algorithm = DistinctOptunaSearch(sweep, directory)
        assert [sweep.sample_from(algorithm.suggest(str(n))) for n, _ in enumerate(unended)] == unended
    elif unended or len(samples) < sweep.num_trials:
        assert (runner._search(sweep, directory) or [{}])[0]["sample"]["grid_search"][:1] == unended


EXAMPLES = {
    "lists": {"augment.crop_scale": [[0.2, 1.0], [0.08, 1.0], [0.3, 1.0], [0.4, 1.0]]},
    "sections": {"optim": [{"name": "sgd", "lr": 0.1}, {"name": "adamw", "lr": 0.001}, {"lr": 0.2}, {"lr": 0.3}]},
    "text that is a number": {"optim.lr": ["1e-3", "1e-2", "1e-4", "3e-3"]},
    "text": {"method.similarity": ["cosine", "dot"], "optim.schedule": ["cosine", "constant"]},
    "null": {"optim.clip_norm": [None, 1, 2, 3.5]},
    "epochs that are text": {"epochs": ["2", "4", "1e1", 8]},
    "bounds of many digits": {"optim.lr": {"uniform": [0.00012345, 0.00012346]}},
    "names that end alike": {"optim.name": ["sgd", "adamw"], "backbone.name": ["resnet8", "resnet20"]},
    "more settings than columns": {
        **{f"augment.{name}_p": [0.25, 0.5] for name in ("flip", "grey", "blur", "jitter", "rotation", "solarise")},
        "augment.jitter_strength": [0.5],
        "augment.blur_sigma": [[0.1, 2.0]],
    },
}


@pytest.mark.parametrize("tree", EXAMPLES.values(), ids=EXAMPLES)
def test_results_are_a_table_of_80_columns_and_json(
    small_store: Path, tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch, tree: dict[str, Any]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    sweep = make(small_store, space=load(tree, tmp_path), samples=4, scheduler="none")
    sweep.check()
    samples = ended_sweep(sweep, tmp_path / "sweep")
    shown = command("tune", "results", tmp_path / "sweep")
    assert shown.code == 0, shown
    table = [line for line in shown.out.splitlines() if line[:1] in "┏┃┡│└"]
    assert all(len(line) <= 80 for line in table)
    assert "…" not in shown.out, "nothing is cut"
    found = command("tune", "results", tmp_path / "sweep", "--json").json
    assert sorted(json.dumps(one["sample"]) for one in found["trials"]) == sorted(map(json.dumps, samples))
    for one in found["trials"]:
        assert any(Path(one["run"]).name in line for line in table), "the table names every trial in full"
    assert found["best"]["status"] == "finished"
    assert len(samples) < 4 or found["importance"].keys() == tree.keys()


def test_values_that_no_tree_tells_apart_have_no_importance(small_store: Path, tmp_path: Path) -> None:
    space = load({"optim.lr": {"uniform": [1e-9, 2e-9]}}, tmp_path)
    sweep = make(small_store, space=space, search="optuna", samples=4, scheduler="none")
    ended_sweep(sweep, tmp_path / "sweep", unended=1)
    trials, importance = write_results(sweep, tmp_path / "sweep")
    assert (len(trials), importance) == (5, {})
    assert (tmp_path / "sweep" / "parallel.png").stat().st_size


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({"epochs": [1, 1.0]}, "epochs=1 and epochs=1 are the same run"),
        ({"optim": [{"name": "adamw"}, {}]}, "are the same run"),
        ({"augment.only": [["crop", "flip"], ["flip", "crop"]]}, "are the same run"),
        ({"cluster.workers": [1, 2]}, "all trials share the recipe's cluster"),
        ({"data.order": ["full", "shards"]}, "other images or labels than the recipe"),
        ({"batch": [{"size": 8, "micro": 8}], "batch.size": [8, 16]}, "batch holds batch.size"),
        ({"optim.lr": [[0.1]]}, "optim.lr"),
        ({"batch.size": [12, 96]}, "batch.size 96 is larger than the 51 images"),
        ({"probe.k": [5, 10]}, r"space: probe\.k does not change what a trial learns: set it by --set"),
        ({"probe": [None, {"k": 5}]}, "space: probe does not change"),
        ({"probe.kind": ["knn", "linear"]}, r"space: probe\.kind does not change"),
        ({"probe.every_epochs": {"uniform": [1, 2]}}, r"space: probe\.every_epochs does not change"),
        ({"checkpoint.every_epochs": {"uniform": [2, 3]}}, r"space: checkpoint\.every_epochs does not change"),
        ({"monitor.hparams": [["optim.lr"], ["epochs"]]}, r"space: monitor\.hparams does not change"),
        ({"epochs": [1, "abc"]}, r"space: epochs: \[1, 'abc'\]: each choice must be a number"),
        ({"epochs": [1, None]}, "each choice must be a number"),
        ({"epochs": [1, [1]]}, "each choice must be a number"),
        ({"epochs": [2, {"a": 1}]}, "each choice must be a number"),
    ],
)
def test_trials_that_cannot_be_compared_are_refused(
    small_store: Path, tmp_path: Path, tree: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        make(small_store, space=load(tree, tmp_path), search="grid", scheduler="none").check()


@pytest.mark.parametrize("folder", ["/proc/sweep", "file", "file/below", "full"])
def test_a_folder_that_takes_no_sweep_is_refused(small_store: Path, tmp_path: Path, folder: str) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes").touch()
    with pytest.raises(RunError, match=r"cannot be written|is not empty"):
        make(small_store).write(tmp_path / folder)


def test_results_of_a_folder_that_cannot_be_written_are_shown(
    small_store: Path, tmp_path: Path, command: Command, caplog: pytest.LogCaptureFixture
) -> None:
    sweep = make(small_store, search="grid", scheduler="none")
    ended_sweep(sweep, tmp_path)
    (tmp_path / "best").touch()  # no folder of this name can be made
    shown = command("tune", "results", tmp_path, "--json")
    assert (shown.code, len(shown.json["trials"])) == (0, 4)
    assert "cannot be written" in caplog.text


def test_a_sweep_without_trials_says_so(small_store: Path, tmp_path: Path, command: Command) -> None:
    make(small_store).write(tmp_path)
    assert command("tune", "results", tmp_path).out == "no trial has begun\n"


def test_tensorboard_sees_each_run_once(small_store: Path, tmp_path: Path) -> None:
    """TensorBoard follows links, so none of the sweep's own leads to its files."""
    sweep = make(small_store, search="grid", scheduler="none")
    ended_sweep(sweep, tmp_path)
    for run in (tmp_path / "trials").iterdir():
        (run / "tensorboard").mkdir()
        (run / "tensorboard" / "events.out.tfevents.1").touch()
    (tmp_path / "best").symlink_to(next((tmp_path / "trials").iterdir()))  # as older versions made it
    [best, *_], _ = write_results(sweep, tmp_path)
    assert len(list(GetLogdirSubdirectories(str(tmp_path)))) == 4
    assert (tmp_path / "best" / "config.json").resolve() == best.run.resolve() / "config.json"
    assert os.readlink(tmp_path / "best" / "config.json").startswith("../trials/"), "a sweep can be moved"
    os.utime(tmp_path / "parallel.png", (1, 1))
    write_results(sweep, tmp_path)
    assert (tmp_path / "parallel.png").stat().st_mtime == 1, "the results of the same trials are not made again"
    path = trial_files.path_of(tmp_path, sweep.config(sweep.known_samples[0]))
    trial_files.write_outcome(path, "finished", trial_files.Point(51, 0.9, 4))
    assert write_results(sweep, tmp_path)[0][0].run == path
    assert (tmp_path / "best" / "config.json").resolve() == path.resolve() / "config.json"
    assert (tmp_path / "parallel.png").stat().st_mtime > 1


@pytest.mark.parametrize("begun", [0, 1, 2])
def test_a_sweep_of_which_no_trial_ran_fails_with_the_first_error(
    small_store: Path, tmp_path: Path, begun: int
) -> None:
    sweep = make(small_store, space={"optim.lr": Domain(choice=(0.1, 0.2))}, search="grid")
    samples = sweep.known_samples
    for sample in samples[:begun]:
        begin(sweep, tmp_path, sample)
    runs = [trial_files.path_of(tmp_path, sweep.config(sample)).name for sample in samples]
    with pytest.raises(SslDistError, match=r"all 2 trials failed, the first, .*: No module named 'x'") as raised:
        runner._write_missing_outcomes(sweep, tmp_path, dict.fromkeys(runs, "No module named 'x'"))
    assert raised.value.exit_code == 1


def test_a_trial_that_was_not_measured_shows_no_number(small_store: Path, tmp_path: Path, command: Command) -> None:
    sweep = make(small_store, space={"optim.lr": Domain(choice=(0.1, 0.2))}, search="grid", scheduler="none")
    ended_sweep(sweep, tmp_path, unended=1)
    [row] = [line for line in command("tune", "results", tmp_path).out.splitlines() if "unfinished" in line]
    assert row.replace(" ", "").endswith("│││unfinished│")


@pytest.mark.parametrize("scheduler", ["none", "asha"])
def test_a_sweep_that_has_ended_says_so_at_once(
    small_store: Path, tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch, scheduler: str
) -> None:
    monkeypatch.setattr(runner, "run_sweep", lambda *_, **__: pytest.fail("Ray was started"))
    sweep = make(small_store, space={"optim.lr": Domain(choice=(0.1, 0.2))}, search="grid", scheduler=scheduler)
    ended_sweep(sweep, tmp_path)
    shown = command("tune", "--resume", tmp_path)
    assert shown.code == 0
    assert shown.out.startswith(f"{tmp_path} is finished: its 2 trials have ended; start a new sweep for more\n")
    assert "best: trial" in shown.out


def test_a_trial_that_was_let_on_is_expected_to_see_its_whole_budget(small_store: Path, tmp_path: Path) -> None:
    sweep = make(small_store, space={"optim.lr": Domain(choice=(0.1, 0.2))}, search="grid", scheduler="asha")
    sweep.write(tmp_path)
    for sample in sweep.known_samples:
        begin(sweep, tmp_path, sample)
    config = sweep.config(sweep.known_samples[0])
    usual, run = sweep.expected_images(config), trial_files.path_of(tmp_path, config)
    assert runner._progress(sweep, tmp_path, usual)[:2] == (0, 2 * usual)
    step = -(-usual // config.batch.size)
    (run / "metrics.jsonl").write_text(json.dumps({"step": step}) + "\n")
    seen, expected, *_ = runner._progress(sweep, tmp_path, usual)
    assert (seen, expected) == (step * config.batch.size, usual + sweep.budget_images(config))
    assert seen < sweep.budget_images(config)


@pytest.mark.parametrize("left", ["", "{", '{"seed": '])
def test_what_a_crash_of_the_machine_cut_is_as_not_written(
    small_store: Path, tmp_path: Path, command: Command, left: str
) -> None:
    sweep = make(small_store, space={"optim.lr": Domain(choice=(0.1, 0.2, 0.3))}, search="grid", scheduler="none")
    ended_sweep(sweep, tmp_path)
    runs = [trial_files.path_of(tmp_path, sweep.config(sample)) for sample in sweep.known_samples]
    (runs[0] / "outcome.json").write_text(left)
    (runs[1] / "config.json").write_text(left)
    trial_files.config_of.cache_clear()
    shown = command("tune", "results", tmp_path, "--json").json["trials"]
    assert {(Path(one["run"]).name, one["status"]) for one in shown} == {
        (runs[0].name, "unfinished"),
        (runs[2].name, "finished"),
    }
    assert len(command("status", tmp_path, "--json").json["trials"]) == 2
    found = runner._search(sweep, tmp_path)
    assert found is not None
    assert found[0] == {"sample": {"grid_search": sweep.known_samples[:2]}}, "both are begun again"


def test_results_say_why_a_trial_failed(small_store: Path, tmp_path: Path, command: Command) -> None:
    sweep = make(small_store, space={"optim.lr": Domain(choice=(0.1, 0.2, 0.3))}, search="grid", scheduler="none")
    ended_sweep(sweep, tmp_path)
    runs = [trial_files.path_of(tmp_path, sweep.config(sample)) for sample in sweep.known_samples]
    trial_files.write_outcome(runs[0], "failed", trial_files.NO_POINT, "worker 1 crashed (signal 11)")
    trial_files.write_outcome(runs[1], "diverged", trial_files.NO_POINT, "the loss is nan at step 3")
    shown = command("tune", "results", tmp_path)
    assert f"{runs[0].name} failed: worker 1 crashed (signal 11)\n" in shown.out
    assert f"{runs[1].name} diverged: the loss is nan at step 3\n" in shown.out
    assert f"{runs[2].name} " not in shown.out.split("└")[1].split("best:")[0]
    plain = command("tune", "results", tmp_path, "--json").json
    assert sorted(one["reason"] for one in plain["trials"]) == [
        "",
        "the loss is nan at step 3",
        "worker 1 crashed (signal 11)",
    ]


def test_some_trials_that_never_began_are_told(
    small_store: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    sweep = make(small_store, space={"optim.lr": Domain(choice=(0.1, 0.2))}, search="grid", scheduler="none")
    begin(sweep, tmp_path, sweep.known_samples[0], "finished", 0.5)
    runner._write_missing_outcomes(sweep, tmp_path, {"other": "out of luck"})
    assert "1 trials failed before they began: out of luck" in caplog.text


@pytest.mark.parametrize("search", ["grid", "optuna"])
@pytest.mark.parametrize(("begun_at", "starts"), [((1, 1, 1), 1), ((1, 2, 1), 2), ((3, 1, 2), 3), ((1, 1, None), 3)])
def test_trials_that_ray_lost_before_they_began_are_started_again(
    small_store: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    search: str,
    begun_at: tuple[int | None, ...],
    starts: int,
) -> None:
    """A process that dies between two trials takes the second one with it; Ray Tune does not start it again."""
    sweep = make(small_store, space={"optim.lr": Domain(choice=(0.1, 0.2, 0.3))}, search=search, scheduler="none")
    samples: list[Sample] = [{"optim.lr": rate} for rate in (0.1, 0.2, 0.3)]
    runs = [trial_files.path_of(tmp_path, sweep.config(sample)).name for sample in samples]
    calls = list[int]()

    def fit(*_: object) -> dict[str, str]:
        calls.append(len(calls) + 1)
        for sample, start in zip(samples, begun_at, strict=True):
            if start == calls[-1]:
                begin(sweep, tmp_path, sample, "finished", 0.5)
        return {run: "it died" for run, start in zip(runs, begun_at, strict=True) if start is None or start > calls[-1]}

    monkeypatch.setattr(runner, "_fit", fit)
    monkeypatch.setattr(runner, "_POLL_S", 0.01)
    monkeypatch.setattr(runner, "ray_with_capacity", lambda *_, **__: contextlib.nullcontext())
    monkeypatch.setattr(runner, "worker_capacity", lambda *_: 3)
    runner.run_sweep(sweep, tmp_path, Console(quiet=True))
    assert len(calls) == starts
    outcomes = {run.name: trial_files.read_outcome(run) for run, _ in trial_files.begun_trials(tmp_path)}
    assert set(outcomes) == {run for run, start in zip(runs, begun_at, strict=True) if start}
    assert all(outcome and outcome["status"] == "finished" for outcome in outcomes.values())
    assert ("failed before they began: it died" in caplog.text) == (starts > 1)
