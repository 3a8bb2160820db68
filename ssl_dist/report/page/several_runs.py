"""What the page of several runs shows: their results, the settings that differ, and their curves over one another."""

from __future__ import annotations

import math
import os
import shlex
from collections.abc import Sequence
from typing import Any

from ssl_dist.config.comparing import settings_of
from ssl_dist.report.page import words
from ssl_dist.report.page.charts import value_text
from ssl_dist.report.page.panels import charts_together
from ssl_dist.report.page.run_files import RunFiles

STYLES = 10  # colours with dashes that can be told apart


def ranked(runs: Sequence[RunFiles]) -> list[RunFiles]:
    """Sort runs by their online probe, the best first, and those without one last; equal ones stay as they are.

    Where their probes are of several kinds, accuracies come before ranks, and each kind stands together.
    """

    def order(run: RunFiles) -> tuple[bool, bool, str, bool, float]:
        if not (probe := run.probe):
            return True, False, "", False, 0.0
        unknown = math.isnan(probe.last)
        return False, not probe.is_share, probe.tag, unknown, 0.0 if unknown else -probe.last

    return sorted(runs, key=order)


def content_of_several(runs: Sequence[RunFiles], price_per_hour: float | None) -> dict[str, Any]:
    """Return what the template ``runs.html`` is filled with; the title is the caller's."""
    if len({run.name for run in runs}) < len(runs):
        runs = [run._replace(name=str(run.path)) for run in runs]
    drawn = [(run, style) for style, run in enumerate(runs[:STYLES])]
    columns = list(dict.fromkeys(one.name for run in runs if run.evaluated for one in run.evaluated.accuracies))
    differing = settings_that_differ(runs)
    protocols = dict.fromkeys(
        f"{one.name}: {one.protocol}" for run in runs if run.evaluated for one in run.evaluated.accuracies
    )
    return {
        "subtitle": "By online probe, the best first" + (" of each kind." if len(_probes(runs)) > 1 else "."),
        "sentence": _sentence(runs),
        "columns": columns,
        "protocols": list(protocols),
        "rows": [
            {**_row(run, price_per_hour), "accuracies": _accuracies(run, columns), "settings": values, "style": style}
            for run, values, style in zip(
                runs,
                zip(*differing.values(), strict=True) if differing else [()] * len(runs),
                [*range(len(drawn)), *[None] * (len(runs) - len(drawn))],
                strict=True,
            )
        ],
        "price_per_hour": price_per_hour,
        "with_cost": price_per_hour is not None,
        "evaluate_commands": "\n".join(words.evaluate_command(run) for run in runs if not run.evaluated),
        "warnings": [(text, f"{run.name}, {where}") for run in runs for text, where in words.warnings_of(run)],
        "problems": [f"{run.name}: {text}" for run in runs for text in run.problems],
        "differing": list(differing),
        "charts": charts_together(drawn),
        "num_drawn": len(drawn),
        "report_commands": "\n".join(f"ssl-dist report {shlex.quote(str(run.path))}" for run in runs),
    }


def settings_that_differ(runs: Sequence[RunFiles]) -> dict[str, list[Any]]:
    """Return the settings in which runs differ: the value of each run by key, UNKNOWN where it has none."""
    known = [settings_of(run.config) if run.config else None for run in runs]
    keys = dict.fromkeys(key for one in known if one for key in one)
    columns = {key: [words.UNKNOWN if one is None else one.get(key, words.UNKNOWN) for one in known] for key in keys}
    return {
        key: values
        for key, values in columns.items()
        if any(one is not None and one.get(key) != first.get(key) for first in known if first for one in known)
    }


def _row(run: RunFiles, price_per_hour: float | None) -> dict[str, Any]:
    probe, rate = run.probe, run.median("speed/images_per_s")
    seconds, total = run.elapsed_s or run.steps_s, run.total_steps
    rough = "" if run.elapsed_s else "~"
    return {
        "name": run.name,
        "steps": f"{run.step:,}" if total is None or run.step >= total else f"{run.step:,} of {total:,}",
        "probe": "" if probe is None else value_text(probe.last, probe.is_share),
        "start": "" if probe is None or probe.start is None else value_text(probe.start, probe.is_share),
        "speed": "" if rate is None else f"{rate:,.0f}",
        "time": "" if seconds is None else f"{rough}{words.duration(seconds)}",
        "cost": f"{rough}{words.cost(seconds, price_per_hour):,.2f}" if seconds and price_per_hour is not None else "",
    }


def _accuracies(run: RunFiles, columns: Sequence[str]) -> list[words.Headline | None]:
    found = {one.name: one for one in words.headlines(run)} if run.evaluated else {}
    return [found.get(name) for name in columns]


def _sentence(runs: Sequence[RunFiles]) -> str:
    """Say which run is best by what was measured of all, on the same images."""
    if all(run.evaluated for run in runs):
        for name in (one.name for one in reversed(words.headlines(runs[0]))):
            if len({_measured(run, name) for run in runs}) == 1 and _measured(runs[0], name):
                scores = {run.name: next(one for one in words.headlines(run) if one.name == name) for run in runs}
                best = max(scores, key=lambda run: scores[run].value)
                return f"{best} has the best {name}: {scores[best].shown} of the test images."
    probed = [run for run in runs if run.probe and not math.isnan(run.probe.last)]
    stores = {run.config and run.config.facts.store_digest for run in probed}
    if len(_probes(probed)) == len(stores) == 1 and (probe := ranked(probed)[0].probe):
        best_value = value_text(probe.last, probe.is_share)
        return f"{ranked(probed)[0].name} has the best {probe.name}: {best_value}."
    return "The runs were not measured by the same measure on the same images, so none is best."


def _measured(run: RunFiles, name: str) -> tuple[object, ...] | None:
    """Return what an accuracy is of: the stores and how many of their images; None where it was not measured."""
    if not run.evaluated or run.evaluated.stores is None:  # an earlier version did not note the stores
        return None
    found = (one for one in run.evaluated.accuracies if one.name == name)
    return next(((*map(os.path.abspath, run.evaluated.stores), one.num_train, one.num_test) for one in found), None)


def _probes(runs: Sequence[RunFiles]) -> set[str]:
    """Return the tags of the runs' online probes."""
    return {run.probe.tag for run in runs if run.probe}
