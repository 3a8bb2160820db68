"""What came out of a run and what ran, in words: the rows and sentences of a report."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

from ssl_dist.config import ResolvedConfig
from ssl_dist.config.comparing import as_written
from ssl_dist.report.page.charts import value_text
from ssl_dist.report.page.evaluated import Accuracy
from ssl_dist.report.page.run_files import RunFiles
from ssl_dist.uris import is_remote, without_secrets

UNKNOWN = object()
"""Stands for the value of a setting that is not known; None is a value."""


class Headline(NamedTuple):
    """A figure that a report begins with; shares in [0, 1], None where there is nothing beside it or no interval."""

    name: str
    value: float
    shown: str
    is_share: bool
    interval: tuple[float, float] | None
    beside: float | None
    beside_text: str
    beside_name: str
    detail: str


def headlines(run: RunFiles) -> list[Headline]:
    """Return the accuracies of the run's evaluation, or where there is none its online probe."""
    if run.evaluated:
        return [_of_accuracy(one) for one in run.evaluated.accuracies]
    if not (probe := run.probe):
        return []
    start = probe.start if max(probe.values) else None
    now, before = value_text(probe.last, probe.is_share), "" if start is None else value_text(start, probe.is_share)
    return [Headline(probe.name, probe.last, now, probe.is_share, None, start, before, "at step 0", "during training")]


def _of_accuracy(one: Accuracy) -> Headline:
    row = one.rows[0]
    return Headline(
        one.name,
        row.top1,
        value_text(row.top1, True),
        True,
        (row.low, row.high),
        one.random,
        "" if one.random is None else value_text(one.random, True),
        "random weights",
        f"{one.num_test:,} test images, {one.num_train:,} labels",
    )


def in_a_sentence(run: RunFiles) -> str:
    """Say what came out, to somebody who reads one sentence."""
    found = headlines(run)
    if not found:
        return "Nothing has been measured of this run yet."
    if not run.evaluated:
        start = f", from {found[0].beside_text} at step 0" if found[0].beside_text else ""
        return f"During training, {found[0].name} came to {found[0].shown}{start}."
    best = max(found, key=lambda one: one.value)
    right = f"With frozen features, {best.name} gets {best.shown} of the test images right"
    if best.beside is None:
        return f"{right}."
    gain = 100 * (best.value - best.beside)
    sign = "more" if gain >= 0 else "fewer"
    return f"{right}: {abs(gain):.1f} points {sign} than with the random weights that training began with."


def status(run: RunFiles) -> str:
    """Say how far the run came."""
    total = run.total_steps
    if not run.lines:
        return "no step was measured yet"
    if total is None or run.step >= total:
        return f"finished: {run.step:,} steps"
    return f"not finished: {run.step:,} of {total:,} steps"


def what_ran(run: RunFiles, price_per_hour: float | None) -> list[tuple[str, str]]:
    """Return the rows that say what ran, on which data, where and how long."""
    rows = list[tuple[str, str]]()
    if config := run.config:
        rows += _of_settings(config)
    if run.lines:
        rows.append(("length", f"{run.step:,} steps, {run.lines[-1]['epoch']:.4g} epochs"))
    rows += _of_machine(run)
    rows += _of_time(run, price_per_hour)
    return rows


def _small(config: ResolvedConfig) -> str:
    start_px = config.augment.start_px
    return "" if start_px is None else f", of {start_px} px in the first {config.small_steps:,} steps"


def _of_settings(config: ResolvedConfig) -> list[tuple[str, str]]:
    method, optim = config.method, config.optim
    temperature = getattr(method, "temperature", None)
    labels = "" if method.uses_labels == "none" else f", with {method.uses_labels} labels"
    return [
        ("data", _data(config)),
        ("method", method.name + ("" if temperature is None else f", temperature {temperature:g}") + labels),
        ("network", network(config.backbone.model_dump(mode="json"))),
        ("views", f"policy {config.augment.recipe}, {len(config.augment.views())} views of an image{_small(config)}"),
        ("batch", f"{config.batch.size:,} images, in micro-batches of {config.batch.micro:,}"),
        ("optimizer", f"{optim.name}, learning rate {optim.lr:g}, schedule {optim.schedule}"),
        ("seed", str(config.seed)),
    ]


def _data(config: ResolvedConfig) -> str:
    store, facts = config.data.store, config.facts
    high, wide, _ = facts.image_shape
    name = without_secrets(store) if is_remote(store) else Path(store).name  # folders above it are the machine's
    part = "" if facts.num_samples == facts.num_images else f", of which an epoch has {facts.num_samples:,}"
    digest = f", digest {facts.store_digest}" if facts.store_digest else ""
    return f"{name}: {facts.num_images:,} images of {wide} x {high} px{part}{digest}"


def network(backbone: Mapping[str, object]) -> str:
    """Return a network's name, stem and width in words; ``backbone`` are its settings as plain values."""
    stem = "" if backbone["stem"] == "standard" else f" (stem {backbone['stem']})"
    return f"{backbone['name']}{stem}" + (f" of width {backbone['width']}" if backbone["width"] else "")


def _of_machine(run: RunFiles) -> list[tuple[str, str]]:
    if not run.starts:
        if not run.config:
            return []
        low, high = run.config.cluster.workers.min, run.config.cluster.workers.max
        asked = str(high) if low == high else f"{low} to {high}"
        return [("workers", f"{asked} by the settings"), ("machine", "not recorded by the version that ran it")]
    last = run.starts[-1]
    workers = dict.fromkeys(one.workers for one in run.starts)
    where = f"{last.host}: {last.cpu}, {last.cores} cores, {last.memory_bytes / 2**30:,.0f} GiB"
    return [
        ("began", f"{datetime.fromtimestamp(run.starts[0].began, UTC):%Y-%m-%d %H:%M} UTC"),
        (
            "workers",
            ", then ".join(map(str, workers)) + (f", in {len(run.starts)} starts" if len(run.starts) > 1 else ""),
        ),
        ("machine", where + (f", {last.gpu}" if last.gpu else "")),
        ("versions", ", ".join(f"{name} {number}" for name, number in last.versions.items())),
    ]


def _of_time(run: RunFiles, price_per_hour: float | None) -> list[tuple[str, str]]:
    rows, whole, steps = list[tuple[str, str]](), run.elapsed_s, run.steps_s
    if whole is not None:
        inner = f", of which {duration(steps)} in training steps" if steps else ""
        rows.append(("time", duration(whole) + inner))
    elif steps is not None:
        rows.append(("time", f"{duration(steps)} in training steps; pauses and starts were not recorded"))
    if (rate := run.median("speed/images_per_s")) is not None:
        memory = run.median("memory/peak_mb")
        peak = "" if memory is None else f"; {memory:,.0f} MB of memory for the first worker"
        rows.append(("speed", f"{rate:,.0f} images/s (median){peak}"))
    if price_per_hour is not None:
        known, of = (steps, ", of the training steps alone") if whole is None else (whole, "")
        said = f"{cost(known, price_per_hour):,.2f} at {price_per_hour:g} an hour{of}" if known else "not known"
        rows.append(("cost", said))
    return rows


def cost(seconds: float, price_per_hour: float) -> float:
    """Return what a time costs at a price per hour."""
    return price_per_hour * seconds / 3600


def duration(seconds: float) -> str:
    """Return a time as people say it."""
    if seconds < 90:
        return f"{seconds:.0f} seconds"
    if seconds < 5400:
        return f"{seconds / 60:.1f} minutes"
    return f"{seconds / 3600:.1f} hours" if seconds < 172_800 else f"{seconds / 86_400:.1f} days"


def evaluate_command(run: RunFiles) -> str:
    """Return the command that measures the run as its last evaluation did, or as a first one may."""
    where, command = shlex.quote(str(run.path)), "ssl-dist evaluate all"
    if run.evaluated and run.evaluated.stores:
        train, test = map(shlex.quote, run.evaluated.stores)
        return f"{command} {where} --train {train} --test {test}"
    train = shlex.quote(without_secrets(run.config.data.store)) if run.config else "TRAIN_STORE"
    return f"{command} {where} --train {train} --test TEST_STORE"


def setting(value: object) -> str:
    """Return a setting's value for a table, a dash where it is not known (``UNKNOWN``) or empty."""
    return "\N{EM DASH}" if value is UNKNOWN else as_written(value) or "\N{EM DASH}"


def warnings_of(run: RunFiles) -> Sequence[tuple[str, str]]:
    """Return what its health watch said of a run, and its probe's verdict, each with where it was seen."""
    found = [(one.text, f"step {one.step:,}") for one in run.findings]
    if (probe := run.probe) and (verdict := probe.verdict()):
        found.append((verdict, f"step {max(probe.values):,}"))
    return found
