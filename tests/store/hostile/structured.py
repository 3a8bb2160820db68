"""Endless values from hypothesis; the harness, not hypothesis, tries them and finds what is wrong."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import TypeVar

import hypothesis
from hypothesis import strategies as st

Value = TypeVar("Value")
_AT_ONCE = 100


def drawn(strategy: st.SearchStrategy[Value], seed: int) -> Iterator[Value]:
    """Yield values of a strategy; the same seed gives the same values with the same version of hypothesis."""
    for part in itertools.count():
        values: list[Value] = []

        @hypothesis.seed(seed << 32 | part)
        @hypothesis.settings(
            max_examples=_AT_ONCE,
            database=None,
            deadline=None,
            phases=[hypothesis.Phase.generate],
            suppress_health_check=list(hypothesis.HealthCheck),
        )
        @hypothesis.given(strategy)
        def collect(value: Value) -> None:
            values.append(value)  # noqa: B023  (called before the next turn)

        collect()
        yield from values
