"""What a run's directory holds for a report, however much of it there is; what is damaged is named and left out."""

from __future__ import annotations

import json
import math
import os
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from ssl_dist.config import ResolvedConfig
from ssl_dist.errors import ConfigError, RunError
from ssl_dist.files import RUN_RECIPE
from ssl_dist.report.page.evaluated import Evaluated, Gallery, PerClass
from ssl_dist.report.summary import ProbeCurve
from ssl_dist.training.health import Finding, read_health
from ssl_dist.training.metrics import METRICS, MetricsReader
from ssl_dist.training.starts import Start, read_starts

T = TypeVar("T")

_CONFIG = "config.json"


class RunFiles(NamedTuple):
    """The files of a run, read.

    Attributes:
        path: as the user gave it.
        name: that of its directory, with its parent's where that is ``run``.
        config: None where it is missing or damaged.
        recipe: name of the recipe that the run began with; "" where it is not known.
        lines: of metrics, each with its step and epoch.
        evaluated, per_class, gallery: what ``evaluate all`` wrote; None where it did not.
        problems: a sentence for each file that is damaged.
    """

    path: Path
    name: str
    config: ResolvedConfig | None
    recipe: str
    lines: Sequence[dict[str, Any]]
    starts: Sequence[Start]
    findings: Sequence[Finding]
    evaluated: Evaluated | None
    per_class: PerClass | None
    gallery: Gallery | None
    problems: Sequence[str]

    @classmethod
    def read(cls, path: Path) -> RunFiles:
        """Read a run's directory.

        Raises:
            RunError: it holds neither settings nor metrics of a run.
        """
        if not any((path / name).exists() for name in (_CONFIG, METRICS)):
            raise RunError(f"{path} is no run: it has neither {_CONFIG} nor {METRICS}; give a run's directory")
        problems, place = list[str](), Path(os.path.abspath(path))

        def from_json(name: str, parse: Callable[[Any], T], made_by: str) -> T | None:
            def read() -> T:
                return parse(json.loads((path / name).read_text(encoding="utf-8")))

            return _tried(read, f"{name} is damaged, so what it says is left out{made_by}", problems)

        again = "; `ssl-dist evaluate all` writes it anew"
        return cls(
            path,
            f"{place.parent.name}/{place.name}" if place.name == "run" else place.name,
            config=from_json(_CONFIG, lambda tree: ResolvedConfig.from_tree(tree, str(path / _CONFIG)), ""),
            recipe=_tried(lambda: (path / RUN_RECIPE).read_text(encoding="utf-8").strip(), "", []) or "",
            lines=_tried(lambda: lines_of(path), f"{METRICS} cannot be read, so there are no curves", problems) or [],
            starts=_tried(lambda: read_starts(path), "starts.jsonl cannot be read", problems) or [],
            findings=_tried(lambda: read_health(path), "health.jsonl cannot be read", problems) or [],
            evaluated=from_json("evaluation.json", Evaluated.of, again),
            per_class=from_json("evaluation/classification.json", PerClass.of, again),
            gallery=from_json("evaluation/gallery.json", Gallery.of, again),
            problems=problems,
        )

    @property
    def step(self) -> int:
        """Steps that are done."""
        return max((line["step"] for line in self.lines), default=0)

    @property
    def total_steps(self) -> int | None:
        """Steps of the whole run; None where they are not known."""
        planned = [line["plan/total_steps"] for line in self.lines if "plan/total_steps" in line]
        if planned:
            return int(planned[-1])
        return self.config.plan().total_steps if self.config else None

    @property
    def probe(self) -> ProbeCurve | None:
        return ProbeCurve.of(self.lines)

    def values(self, tag: str) -> list[tuple[float, float | None]]:
        """Return epochs and values of a tag; None where a value is not finite."""
        found = ((line["epoch"], line[tag]) for line in self.lines if tag in line)
        return [(epoch, value if math.isfinite(value) else None) for epoch, value in found]

    def median(self, tag: str) -> float | None:
        found = [value for _, value in self.values(tag) if value is not None]
        return statistics.median(found) if found else None

    @property
    def elapsed_s(self) -> float | None:
        """Seconds from beginning to end of all starts; None where one of them is not known."""
        spans = [None if one.ended is None else one.ended - one.began for one in self.starts]
        return sum(filter(None, spans)) if spans and None not in spans else None

    @property
    def steps_s(self) -> float | None:
        """Seconds in training steps, without pauses for probes and checkpoints; None where they are not known."""
        if not self.config:
            return None
        before, seconds = 0, 0.0
        for line in self.lines:
            if rate := line.get("speed/images_per_s"):
                seconds += (line["step"] - before) * self.config.batch.size / rate
                before = line["step"]
        return seconds or None


def _tried(read: Callable[[], T], complaint: str, problems: list[str]) -> T | None:
    """Return what is read; None where there is no such file, or where it is damaged, which is then a problem."""
    try:
        return read()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError, ConfigError, RecursionError):
        problems.append(complaint)
        return None


def lines_of(run: Path) -> list[dict[str, Any]]:
    """Return the lines of metrics that have a step and an epoch, and numbers alone."""
    lines = (line for line in MetricsReader(run).read_new() if all(map(_is_number, line.values())))
    return [line for line in lines if isinstance(line.get("step"), int) and "epoch" in line]


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
