"""What a rule of the health watch is, and the measures of time that the rules share."""

from __future__ import annotations

import abc
from collections.abc import Mapping
from typing import ClassVar

PATIENCE = 200  # steps after warm-up; runs on digits that learn are below 0.6 of separation after 30, without a warm-up
MAX_ROWS = 1024  # images that statistics of embeddings are of: more cost time and change little
LOGS = 5  # logged steps that are judged together, since a single step of a small batch is noise


class Rule(abc.ABC):
    """Judges a run by the lines of its metrics.jsonl, which it is given one after the other, in their order.

    A rule knows nothing else but the run's settings, so that a run that was interrupted and an undisturbed one, which
    have the same lines, are judged alike.

    Attributes:
        name: of the rule, in health.jsonl and docs/health.md.
        tags: the rule is given the lines that have one of these values.
    """

    name: ClassVar[str]
    tags: tuple[str, ...]

    @abc.abstractmethod
    def judge(self, line: Mapping[str, float]) -> str | None:
        """Take the next line; say what is wrong with the run now, and what to try; None: nothing is."""
