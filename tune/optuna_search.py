"""Optuna's search of a sweep: it knows the results of ended trials, and no run comes twice."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import optuna
from optuna.trial import TrialState
from ray.tune.search import Searcher
from ray.tune.search.optuna import OptunaSearch

from tune import space as spaces
from tune import trial_files
from tune.sweep import Sweep

_TRIES = 20  # after so many suggestions of known runs, one that is new is drawn
_DRAWN = 1000


class DistinctOptunaSearch(OptunaSearch):  # type: ignore[misc]
    """Suggests the trials of a sweep that have begun first, and then new ones, each of another run.

    Optuna itself may suggest a sample again; its run would be trained twice, or by two trials at once.
    """

    def __init__(self, sweep: Sweep, directory: Path) -> None:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        trials = [
            (sweep.sample_of(config), trial_files.read_outcome(run), run.name)
            for run, config in trial_files.begun_trials(directory)
        ]
        super().__init__(
            space={key: domain.distribution() for key, domain in sweep.space.items()},
            metric="objective",
            mode="max",
            seed=sweep.seed + len(trials),  # the first start's seed would draw the first samples again
            points_to_evaluate=[spaces.encode(sweep.space, sample) for sample, outcome, _ in trials if outcome is None],
        )
        self._sweep, self._taken = sweep, {run for _, outcome, run in trials if outcome}
        for sample, outcome, _ in trials:
            if outcome:
                point, failed = spaces.encode(sweep.space, sample), outcome["status"] == "failed"
                self.add_evaluated_point(point, outcome["objective"], error=failed)

    def suggest(self, trial_id: str) -> Any:
        """Return the sample of a trial, in Optuna's values; ``Searcher.FINISHED`` where no run is left."""
        for tries_left in reversed(range(_TRIES)):
            values: dict[str, Any] = super().suggest(trial_id)
            run = self._run_of(self._sweep.sample_from(values))
            if run not in self._taken:
                self._taken.add(run)
                return values
            self._ot_study.tell(self._ot_trials.pop(trial_id), state=TrialState.FAIL)
            if not tries_left and (new := self._draw_new()):
                self._ot_study.enqueue_trial(new)
                self._taken.add(self._run_of(spaces.decode(self._sweep.space, new)))
                return super().suggest(trial_id)
        return Searcher.FINISHED

    def _draw_new(self) -> spaces.Sample | None:
        """Return a sample of a run that no trial has, as Optuna takes it."""
        drawn = spaces.draw(self._sweep.space, _DRAWN, self._sweep.seed)
        new = (sample for sample in drawn if self._run_of(sample) not in self._taken)
        found = next(new, None)
        return None if found is None else spaces.encode(self._sweep.space, found)

    def _run_of(self, sample: spaces.Sample) -> str:
        return self._sweep.config(sample).fingerprint()
