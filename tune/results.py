"""The results of a sweep: its trials, the winner, the importance of each setting, and a picture."""

from __future__ import annotations

import hashlib
import itertools
import json
import logging
import shlex
import warnings
from pathlib import Path
from typing import Any, NamedTuple

from ssl_dist.files import replacing, write_text
from tune import space as spaces
from tune import trial_files
from tune.space import Domain
from tune.sweep import Sweep

RESULTS = "results.json"  # the importances, and a digest of the trials of which all results are
_MIN_TRIALS = 4  # fewer say nothing about the importance of a setting
_LABEL = 24  # letters of a value in the picture

log = logging.getLogger(__name__)


class Trial(NamedTuple):
    """One trial.

    Attributes:
        status: finished, stopped (by the scheduler), replaced (in a population), diverged, failed, or unfinished.
        images: the rung's number of images at which ``objective`` was measured.
        images_seen: number of images that the trial has trained on.
        reason: why the trial diverged or failed; empty in other cases.
        parent: in a population, the run from whose checkpoint after ``parent_step`` steps the trial started.
    """

    run: Path
    sample: spaces.Sample
    status: str
    images: int
    images_seen: int
    objective: float
    reason: str
    parent: str | None
    parent_step: int

    def plain(self) -> dict[str, Any]:
        """Return the fields as plain values for JSON."""
        return {**self._asdict(), "run": str(self.run)}


def read_trials(sweep: Sweep, directory: Path) -> list[Trial]:
    """Read the trials that have begun: finished ones before the others, the best objective first."""
    trials = []
    for run, config in trial_files.begun_trials(directory):
        origin = trial_files.read_origin(run) or {"run": "", "step": 0}
        end = trial_files.read_outcome(run)
        if end is None:
            point = trial_files.last_point(sweep, config, run)
            end = {"status": "unfinished", **point._asdict(), "reason": ""}
        sample, seen = sweep.sample_of(config), trial_files.images_seen(run, config)
        result = end["status"], end["images"], seen, end["objective"], end["reason"]
        trials.append(Trial(run, sample, *result, parent=origin["run"] or None, parent_step=origin["step"]))
    return sorted(trials, key=lambda one: (one.status == "finished", one.objective, -one.images), reverse=True)


def lineage(trials: list[Trial], last: Trial) -> list[Trial]:
    """Return a trial and the trials whose checkpoints it continued, oldest first; only itself outside populations."""
    by_name = {one.run.name: one for one in trials}
    line = [last]
    while line[0].parent:
        line.insert(0, by_name[line[0].parent])
    return line


def winner(trials: list[Trial]) -> Trial | None:
    """Return the trial with the best objective among those that finished; the cheaper one where two are equal."""
    return trials[0] if trials and trials[0].status == "finished" else None


def write_results(sweep: Sweep, directory: Path) -> tuple[list[Trial], dict[str, float]]:
    """Write ``best`` (links to the winner's files), ``best.yaml`` and ``parallel.png``; nothing without a winner.

    What was written for the same trials before is left as it is. Where the directory cannot be written, a warning says
    so.

    Returns:
        The trials, as ``read_trials`` does, and ``importances``.
    """
    trials = read_trials(sweep, directory)
    best = winner(trials)
    if best is None:
        return trials, importances(sweep, trials)
    digest = hashlib.sha256(json.dumps([one.plain() for one in trials]).encode()).hexdigest()
    known = _read(directory / RESULTS)
    if known.get("digest") == digest:
        return trials, known["importance"]
    weights = importances(sweep, trials)
    try:
        _link(best.run, directory / "best")
        write_text(directory / "best.yaml", _recipe_of(sweep, directory, trials, best))
        draw(sweep, trials, directory / "parallel.png")
        write_text(directory / RESULTS, json.dumps({"digest": digest, "importance": weights}))
    except OSError as error:
        log.warning("%s cannot be written (%s): its best, best.yaml and parallel.png are old", directory, error)
    return trials, weights


def _read(file: Path) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found


def _link(run: Path, best: Path) -> None:
    """Make ``best`` a run directory of links.

    There is none to TensorBoard's files: TensorBoard follows links, and would show the run twice.
    """
    if best.is_symlink():  # older versions linked the whole run
        best.unlink()
    with replacing(best) as aside:
        aside.mkdir()
        for entry in run.iterdir():
            if entry.name not in ("tensorboard", "lock", "stop"):
                (aside / entry.name).symlink_to(Path("..") / run.relative_to(best.parent) / entry.name)


def _recipe_of(sweep: Sweep, directory: Path, trials: list[Trial], best: Trial) -> str:
    config = spaces.apply(sweep.recipe, best.sample)
    header = [
        f"# Command:  ssl-dist pretrain {shlex.quote(str(directory / 'best.yaml'))}",
        f"# Found:    {sweep.search} search with {sweep.scheduler}, {len(trials)} trials: {_overrides(best)}",
        f"# Result:   {sweep.objective} {best.objective:.4f} on images of the pretraining store",
    ]
    for one, following in itertools.pairwise(lineage(trials, best)):
        header.append(f"#           that run had {_overrides(one)} until step {following.parent_step}")
    return "\n".join(header) + "\n" + config.to_yaml()


def _overrides(trial: Trial) -> str:
    return "  ".join(f"{key}={spaces.show_value(value)}" for key, value in trial.sample.items())


def importances(sweep: Sweep, trials: list[Trial]) -> dict[str, float]:
    """Return each setting's share of the objective's variance, by Optuna's fANOVA.

    Where trials were stopped early, their objectives are compared at the number of images that all of them have seen.
    The result is empty where trials are too few or too alike, and in a population, whose settings change in training.
    """
    shown = [one for one in trials if one.status in ("finished", "stopped", "diverged")]
    values = _comparable_objectives(sweep, shown)
    if sweep.scheduler == "pbt" or len(shown) < _MIN_TRIALS or len(set(values)) == 1:
        return {}
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(direction="maximize")
    space = {key: domain.distribution() for key, domain in sweep.space.items()}
    for one, value in zip(shown, values, strict=True):
        params = spaces.encode(sweep.space, one.sample)
        study.add_trial(optuna.trial.create_trial(params=params, distributions=space, value=value))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
        try:
            return dict(optuna.importance.get_param_importances(study, evaluator=evaluator))
        except RuntimeError:  # its trees cannot tell values apart that differ by 1e-9
            return {}


def _comparable_objectives(sweep: Sweep, trials: list[Trial]) -> list[float]:
    if all(one.status != "stopped" for one in trials):
        return [one.objective for one in trials]
    common = min(one.images for one in trials if one.status != "diverged")
    curves = [trial_files.read_curve(sweep, one.run).points for one in trials]
    reached = [[point for point in points if point.images <= common] for points in curves]
    return [max(points, default=trial_files.NO_POINT).objective for points in reached]


def draw(sweep: Sweep, trials: list[Trial], picture: Path) -> None:
    """Draw parallel coordinates: one line for each trial, from setting to setting, coloured by its objective."""
    import matplotlib
    import numpy as np
    from matplotlib.figure import Figure

    shown = [one for one in trials if one.status in ("finished", "stopped")]
    keys = [*sweep.space, sweep.objective]
    scales = [_scale([one.sample[key] for one in shown], domain) for key, domain in sweep.space.items()]
    scales.append(_scale([one.objective for one in shown], Domain(uniform=(0, 1))))
    figure = Figure(figsize=(1.2 + 1.8 * len(keys), 3.6), layout="constrained")
    axis = figure.subplots()
    colours = matplotlib.colormaps["viridis"](np.asarray(scales[-1].heights) * 0.9)
    for number in reversed(range(len(shown))):  # the best on top
        heights = [scale.heights[number] for scale in scales]
        width, dashes = (2, "-") if shown[number].status == "finished" else (1, ":")
        axis.plot(heights, color=colours[number], lw=width, ls=dashes)
    for place, scale in enumerate(scales):
        axis.axvline(place, color="0.7", lw=0.8, zorder=0)
        for height, text in scale.ticks:
            label = text if len(text) <= _LABEL else f"{text[:_LABEL]}..."
            near: dict[str, Any] = {"textcoords": "offset points", "fontsize": 8, "va": "center"}
            axis.annotate(label, (place, height), (4, 0), parse_math=False, **near)
    axis.set(xticks=range(len(keys)), xticklabels=keys, yticks=[], ylim=(-0.05, 1.05), xlim=(-0.1, len(keys) - 0.6))
    axis.spines[:].set_visible(False)
    axis.set_title("solid: finished, dotted: stopped by the scheduler", fontsize=9, loc="left")
    with warnings.catch_warnings(), replacing(picture) as aside:
        warnings.simplefilter("ignore")  # letters that the font lacks
        figure.savefig(aside, dpi=110, format="png")


class _Scale(NamedTuple):
    """An axis of the picture: heights of values in [0, 1], and (height, text) of its labels."""

    heights: list[float]
    ticks: list[tuple[float, str]]


def _scale(values: list[Any], domain: Domain) -> _Scale:
    """Place values on an axis: many numbers by their size, other values equally far apart."""
    import numpy as np

    numeric = all(isinstance(value, (int, float)) for value in values)
    distinct = sorted(set(values)) if numeric else [one for one in domain.values or () if one in values]
    if len(distinct) <= 6 or not numeric:
        places = [number / max(1, len(distinct) - 1) for number in range(len(distinct))]
        ticks = [(place, spaces.show_value(value)) for place, value in zip(places, distinct, strict=True)]
        return _Scale([places[distinct.index(value)] for value in values], ticks)
    logarithmic = domain.log_uniform or domain.powers_of_two
    numbers = np.log(np.asarray(values, float)) if logarithmic else np.asarray(values, float)
    low, high = numbers.min(), numbers.max()
    heights = ((numbers - low) / (high - low)).tolist()
    marks = np.linspace(low, high, 5)
    texts = [spaces.show_value(float(value)) for value in (np.exp(marks) if logarithmic else marks)]
    return _Scale(heights, list(zip((0, 1 / 4, 2 / 4, 3 / 4, 1), texts, strict=True)))
