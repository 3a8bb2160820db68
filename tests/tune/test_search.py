"""A sweep that is started again: which trials Ray Tune gets, as the files of its trials tell."""

from __future__ import annotations

from pathlib import Path

import pytest
from ray.tune.search import Searcher

from cluster.run_directory import RunDirectory
from tests.tune.test_sweep import make
from tune import runner
from tune import space as spaces
from tune.space import Domain, Sample
from tune.sweep import Sweep
from tune.trial_files import Point, path_of, read_outcome, write_outcome

SPACE = {"method.temperature": Domain(uniform=(0.1, 0.5)), "optim.lr": Domain(choice=(0.001, 0.002))}


def begin(sweep: Sweep, directory: Path, sample: Sample, status: str = "", objective: float = 0.0) -> None:
    """Make a trial that has begun, and has ended where a status is given."""
    config = sweep.config(sample)
    RunDirectory.claim(path_of(directory, config), config).release()
    if status:
        write_outcome(path_of(directory, config), status, Point(51, objective, 4))


def test_trials_that_have_ended_are_not_run_again(small_store: Path, tmp_path: Path) -> None:
    sweep = make(small_store, space=SPACE, samples=4)
    samples = sweep.known_samples
    begin(sweep, tmp_path, samples[0], "finished", 0.5)
    begin(sweep, tmp_path, samples[2])
    begin(sweep, tmp_path, samples[3], "failed")
    assert runner._search(sweep, tmp_path) == ({"sample": {"grid_search": [samples[1], samples[2]]}}, {})
    for sample in samples[1:3]:
        begin(sweep, tmp_path, sample, "stopped", 0.1)
    assert runner._search(sweep, tmp_path) is None


def test_optuna_learns_from_ended_trials_and_resumes_the_others_first(small_store: Path, tmp_path: Path) -> None:
    sweep = make(small_store, space=SPACE, samples=6, search="optuna")
    first, second, third = ({"method.temperature": t, "optim.lr": 0.002} for t in (0.2, 0.3, 0.4))
    begin(sweep, tmp_path, first, "finished", 0.7)
    begin(sweep, tmp_path, second)
    begin(sweep, tmp_path, third, "failed")
    found = runner._search(sweep, tmp_path)
    assert found is not None
    search = found[1]["search_alg"]
    assert found[0] is None
    assert found[1]["num_samples"] == 4
    known = {trial.state.name: (trial.params, trial.value) for trial in search._ot_study.trials}
    assert known["COMPLETE"] == (first, 0.7)
    assert known["FAIL"] == (third, None)
    suggested = [search.suggest(str(number)) for number in range(3)]
    assert suggested[0] == second
    assert len({repr(sample) for sample in [first, third, *suggested]}) == 5, "none comes twice"


@pytest.mark.parametrize("begun", [0, 4])
def test_optuna_tries_each_run_of_a_small_space_once(small_store: Path, tmp_path: Path, begun: int) -> None:
    space = {"optim.name": Domain(choice=("sgd", "adamw")), "method.temperature": Domain(choice=(0.2, 0.3, 0.4))}
    sweep = make(small_store, space=space, samples=20, search="optuna", scheduler="none", seed=begun)
    assert sweep.num_trials == 6
    samples = spaces.grid(space)
    for sample in samples[:begun]:
        begin(sweep, tmp_path, sample, "finished", 0.5)
    found = runner._search(sweep, tmp_path)
    assert found is not None
    assert found[1]["num_samples"] == 6 - begun
    search = found[1]["search_alg"]
    suggested = [search.suggest(str(number)) for number in range(6 - begun)]
    assert sorted(map(repr, [*samples[:begun], *suggested])) == sorted(map(repr, samples))
    assert search.suggest("one more") == Searcher.FINISHED
    assert search.suggest("and another") == Searcher.FINISHED


def test_a_result_that_is_there_is_not_replaced_by_a_later_failure(small_store: Path, tmp_path: Path) -> None:
    sweep = make(small_store, space=SPACE, samples=2, search="optuna", scheduler="none")
    samples = [{"method.temperature": t, "optim.lr": 0.002} for t in (0.2, 0.3)]
    begin(sweep, tmp_path, samples[0], "finished", 0.7)
    begin(sweep, tmp_path, samples[1])
    runs = [path_of(tmp_path, sweep.config(sample)) for sample in samples]
    runner._write_missing_outcomes(sweep, tmp_path, {run.name: "is being run by another process" for run in runs})
    assert [(read_outcome(run) or {})["status"] for run in runs] == ["finished", "failed"]
