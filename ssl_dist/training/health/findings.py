"""What the health watch has said of a run: RUN/health.jsonl, one JSON object a line. Nothing heavy is imported here."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from ssl_dist.training.metrics import MetricsReader

HEALTH = "health.jsonl"


class Finding(NamedTuple):
    """A sentence about a run's health.

    Attributes:
        step: steps that were done when it was said.
        epoch: the same in epochs.
        rule: name of the rule, see docs/health.md.
        text: what is wrong, and what to try, in plain words.
    """

    step: int
    epoch: float
    rule: str
    text: str


def read_health(run: Path) -> list[Finding]:
    """Return what was said of a run so far, in its order; an empty list where nothing was."""
    lines = MetricsReader(run, HEALTH).read_new()
    return [Finding(*(line[name] for name in Finding._fields)) for line in lines if {*Finding._fields} <= line.keys()]
