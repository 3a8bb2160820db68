"""What a sweep found: its trials, the winner, what mattered, a picture."""

from __future__ import annotations

import itertools
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from ssl_dist.config import RunConfig
from tune.space import Sample
from tune.sweep import Sweep
from tune.trial_files import NO_POINT, begun_trials, curve_of, images_seen, read_origin, read_outcome, read_points

_ENOUGH = 4  # trials, for an importance to mean something


class Trial(NamedTuple):
    """One trial.

    Attributes:
        status: finished, stopped (by the scheduler), replaced (in a population), diverged, failed, or unfinished.
        images: at which ``objective`` was measured, of the rung; ``images_seen`` is what the trial cost.
        parent: name of the run from whose checkpoint after ``parent_step`` steps it went on, in a population.
    """

    run: Path
    sample: Sample
    status: str
    images: int
    images_seen: int
    objective: float
    parent: str | None
    parent_step: int

    def plain(self) -> dict[str, Any]:
        """For JSON."""
        return {**self._asdict(), "run": str(self.run)}


def read(sweep: Sweep, directory: Path) -> list[Trial]:
    """The trials that have begun, best first; those that came to their end before the others."""
    trials = []
    for run, config in begun_trials(directory):
        outcome, origin = read_outcome(run), read_origin(run) or {"run": "", "step": 0}
        if outcome is None:
            points = read_points(sweep, config, run)
            outcome = {"status": "unfinished", **(points[-1] if points else NO_POINT)._asdict()}
        trials.append(
            Trial(
                run=run,
                sample=sample_of(sweep, config),
                status=outcome["status"],
                images=outcome["images"],
                images_seen=images_seen(run, config),
                objective=outcome["objective"],
                parent=origin["run"] or None,
                parent_step=origin["step"],
            )
        )
    return sorted(trials, key=lambda one: (one.status == "finished", one.objective, -one.images), reverse=True)


def lineage(trials: list[Trial], last: Trial) -> list[Trial]:
    """A trial and those it went on from, the first one first; but in a population only itself."""
    by_name = {one.run.name: one for one in trials}
    line = [last]
    while line[0].parent:
        line.insert(0, by_name[line[0].parent])
    return line


def sample_of(sweep: Sweep, config: RunConfig) -> Sample:
    """What of a trial's config was searched."""
    flat = config.flat()
    return {key: flat[key] for key in sweep.space}


def winner(trials: list[Trial]) -> Trial | None:
    """The best objective among trials that came to their end; of equal ones the cheaper."""
    return trials[0] if trials and trials[0].status == "finished" else None


def conclude(sweep: Sweep, directory: Path) -> None:
    """Write ``best`` (a link to the winner's run), ``best.yaml`` and ``parallel.png``, as far as there is a winner."""
    trials = read(sweep, directory)
    best = winner(trials)
    if best is None:
        return
    link = directory / "best"
    link.unlink(missing_ok=True)
    link.symlink_to(best.run.relative_to(directory))
    config = sweep.recipe_of(best.sample)
    header = [
        f"# Command:  ssl-dist pretrain {directory / 'best.yaml'}",
        f"# Found:    {sweep.search} search with {sweep.scheduler}, {len(trials)} trials: {_overrides(best)}",
        f"# Result:   {sweep.objective} {best.objective:.4f} on images of the pretraining store",
    ]
    line = lineage(trials, best)
    for one, following in itertools.pairwise(line):
        header.append(f"#           that run had {_overrides(one)} until step {following.parent_step}")
    tree = yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)
    (directory / "best.yaml").write_text("\n".join(header) + "\n" + tree, encoding="utf-8")
    draw(sweep, trials, directory / "parallel.png")


def _overrides(trial: Trial) -> str:
    return "  ".join(f"{key}={value}" for key, value in trial.sample.items())


def importances(sweep: Sweep, trials: list[Trial]) -> dict[str, float]:
    """Share of each setting in the objective's variance, by Optuna's fANOVA; empty where trials are too few, and in a
    population, whose settings change on the way. Where trials were stopped early, their objectives are compared at the
    images that all of them have seen."""
    shown = [one for one in trials if one.status in ("finished", "stopped", "diverged")]
    values = _comparable(sweep, shown)
    if sweep.scheduler == "pbt" or len(shown) < _ENOUGH or len(set(values)) == 1:
        return {}
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(direction="maximize")
    space = {key: domain.distribution() for key, domain in sweep.space.items()}
    for one, value in zip(shown, values, strict=True):
        study.add_trial(optuna.trial.create_trial(params=one.sample, distributions=space, value=value))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found: dict[str, float] = optuna.importance.get_param_importances(
            study, evaluator=optuna.importance.FanovaImportanceEvaluator(seed=0)
        )
    return dict(found)


def _comparable(sweep: Sweep, trials: list[Trial]) -> list[float]:
    if all(one.status != "stopped" for one in trials):
        return [one.objective for one in trials]
    common = min(one.images for one in trials if one.status != "diverged")
    curves = [curve_of(sweep, one.run).points for one in trials]
    return [max([p for p in points if p.images <= common], default=NO_POINT).objective for points in curves]


def draw(sweep: Sweep, trials: list[Trial], picture: Path) -> None:
    """Parallel coordinates: a line a trial, from setting to setting, coloured by its objective."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt
    import numpy as np

    shown = [one for one in trials if one.status in ("finished", "stopped")]
    keys = [*sweep.space, sweep.objective]
    scales = [_scale([one.sample[key] for one in shown], bool(sweep.space[key].log_uniform)) for key in sweep.space]
    objectives = [one.objective for one in shown]
    scales.append(_scale(objectives, False))
    figure, axis = plt.subplots(figsize=(1.2 + 1.8 * len(keys), 3.6), layout="constrained")
    colours = plt.get_cmap("viridis")(np.asarray(scales[-1].heights) * 0.9)
    for number in reversed(range(len(shown))):  # the best on top
        heights = [scale.heights[number] for scale in scales]
        finished = shown[number].status == "finished"
        axis.plot(
            range(len(keys)), heights, color=colours[number], lw=2 if finished else 1, ls="-" if finished else ":"
        )
    for place, scale in enumerate(scales):
        axis.axvline(place, color="0.7", lw=0.8, zorder=0)
        for height, text in scale.ticks:
            axis.annotate(text, (place, height), (4, 0), textcoords="offset points", fontsize=8, va="center")
    axis.set(xticks=range(len(keys)), xticklabels=keys, yticks=[], ylim=(-0.05, 1.05), xlim=(-0.1, len(keys) - 0.6))
    axis.spines[:].set_visible(False)
    axis.set_title("solid: came to its end, dotted: stopped by the scheduler", fontsize=9, loc="left")
    figure.savefig(picture, dpi=110)
    plt.close(figure)


class _Scale(NamedTuple):
    """Heights of values in [0, 1], and where to write which."""

    heights: list[float]
    ticks: list[tuple[float, str]]


def _scale(values: list[Any], logarithmic: bool) -> _Scale:
    import numpy as np

    distinct = sorted(set(values), key=lambda value: (str(type(value)), value))
    if len(distinct) <= 6 or not all(isinstance(value, (int, float)) for value in distinct):
        places = {value: number / max(1, len(distinct) - 1) for number, value in enumerate(distinct)}
        return _Scale([places[value] for value in values], [(place, _text(value)) for value, place in places.items()])
    numbers = np.log(np.asarray(values, float)) if logarithmic else np.asarray(values, float)
    low, high = numbers.min(), numbers.max()
    heights = ((numbers - low) / (high - low)).tolist()
    marks = [low + (high - low) * part / 4 for part in range(5)]
    return _Scale(heights, [(part / 4, _text(float(np.exp(m) if logarithmic else m))) for part, m in enumerate(marks)])


def _text(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
