"""The battery that users run: it finds our gradients equal to one process's, and would find others'."""

from __future__ import annotations

from collections.abc import Callable
from unittest import mock

import pytest

from ssl_dist import engine, methods
from ssl_dist.collectives import World
from ssl_dist.exactness import STAGES, Finding, examine
from tests.gloo import GlooPool

Pools = Callable[[int], GlooPool]


def _examine(rank: int, size: int, averaging: bool) -> list[Finding]:
    config = engine._deepspeed_config

    def settings(*arguments: object) -> dict[str, object]:
        average = {"gradient_allreduce_op": "mean"} if averaging else {}
        return {**config(*arguments), **average}  # type: ignore[arg-type]

    with mock.patch.object(engine, "_deepspeed_config", settings):
        return list(examine(World.current()))


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_every_method_is_exact_over_these_workers(gloo: Pools, workers: int) -> None:
    findings = gloo(workers).run(_examine, False)[0]
    assert [one for one in findings if not one.exact] == []
    for name in methods.names():
        parts = [(one.part, one.workers, one.zero_stage) for one in findings if one.method == name]
        losses = [("loss", size, None) for size in range(1, workers + 1)]
        assert parts == losses + [("step", workers, stage) for stage in STAGES]


def test_an_averaged_gradient_is_found(gloo: Pools) -> None:
    findings = {one.zero_stage: one for one in gloo(2).run(_examine, True)[0] if one.part == "step"}
    for stage in (0, 1, 2):  # stage 3 averages anyway, which the engine undoes
        assert findings[stage].ratio == pytest.approx(0.5, abs=1e-4)
        assert not findings[stage].exact
    assert findings[3].exact
