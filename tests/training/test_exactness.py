"""The exactness check that users run: it finds no fault in our methods, and finds faults that are put in."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor, nn

from ssl_dist import methods
from ssl_dist.backbones import build
from ssl_dist.collectives import World
from ssl_dist.methods import Method
from ssl_dist.training import exactness, zero
from ssl_dist.training.exactness import STAGES, Finding, config_of, examine, smooth
from tests.gloo import GlooPool

Pools = Callable[[int], GlooPool]
STEPS = [f"step, ZeRO {stage}, float32" for stage in STAGES]


def _stages(method: str, every: bool) -> tuple[int, ...]:
    return STAGES if every else STAGES[methods.names().index(method) % 4 :][:1]


def _examine(rank: int, size: int, every_stage: bool) -> list[Finding]:
    found = []
    for name in methods.names():
        with mock.patch.object(exactness, "STAGES", _stages(name, every_stage)):
            found += examine(World.current(), [name])
    return found


@pytest.mark.parametrize(
    ("workers", "every_stage"), [(2, False), *(pytest.param(W, True, marks=pytest.mark.slow) for W in (1, 2, 3))]
)
def test_every_method_is_exact_over_these_workers(gloo: Pools, workers: int, every_stage: bool) -> None:
    findings = gloo(workers).run(_examine, every_stage)[0]
    assert [one for one in findings if not one.exact] == []
    for name in methods.names():
        parts = [(one.part, one.workers) for one in findings if one.method == name]
        losses = [("loss, float64", size) for size in range(2, workers + 1)]
        assert parts == [
            ("loss, difference quotient", 1),
            *losses,
            *((STEPS[stage], workers) for stage in _stages(name, every_stage)),
        ]


def _examine_with(rank: int, size: int, fault: str) -> list[Finding]:
    settings, load = zero._deepspeed_config, methods.load
    if fault == "averaged":
        broken: Any = mock.patch.object(
            zero, "_deepspeed_config", lambda *of: {**settings(*of), "gradient_allreduce_op": "mean"}
        )
    else:
        broken = mock.patch.object(methods, "load", lambda name: _broken(load(name), fault))
    with broken:
        return list(examine(World.current(), ["simclr"]))


def _broken(method: type[Method], fault: str) -> type[Method]:
    """Return the method with a loss whose value is right and whose gradient is wrong."""

    class Broken(method):  # type: ignore[valid-type, misc]
        def loss(self, outputs: Tensor, group: Any = None) -> Tensor:
            if fault == "one view detached":
                outputs = torch.cat([outputs[:, :1], outputs[:, 1:2].detach(), outputs[:, 2:]], dim=1)
            if fault == "wrong on the last rank" and torch.distributed.get_rank() == 1:
                outputs = outputs.detach() + 1.01 * (outputs - outputs.detach())
            return super().loss(outputs, group)  # type: ignore[no-any-return]

    return Broken


def test_an_averaged_gradient_is_found(gloo: Pools) -> None:
    findings = {one.part: one for one in gloo(2).run(_examine_with, "averaged")[0]}
    for step in STEPS[:3]:  # stage 3 averages anyway, which the engine undoes
        assert findings[step].ratio == pytest.approx(0.5, abs=1e-4)
        assert not findings[step].exact
    assert findings[STEPS[3]].exact


def test_a_gradient_that_is_wrong_in_one_process_is_found(gloo: Pools) -> None:
    findings = gloo(1).run(_examine_with, "one view detached")[0]
    assert not findings[0].exact
    assert findings[0].part == "loss, difference quotient"


def test_a_gradient_that_is_wrong_on_another_rank_is_found(gloo: Pools) -> None:
    findings = gloo(2).run(_examine_with, "wrong on the last rank")[0]
    assert findings[0].exact, "rank 0's own loss is right"
    assert not any(one.exact for one in findings if one.part.startswith("step"))


@pytest.mark.parametrize("backbone", ["resnet8", "wrn45-2"])
def test_a_smooth_method_has_no_kinks(backbone: str) -> None:
    kind = methods.load("simclr")
    method = smooth(kind(build(backbone), kind.Config(name="simclr")))
    assert not [module for module in method.modules() if isinstance(module, (nn.ReLU, nn.LeakyReLU))]
    assert sum(isinstance(module, nn.SiLU) for module in method.modules()) >= 5


def test_each_micro_batch_has_labelled_images_where_the_recipe_has_some() -> None:
    batch = config_of("fixmatch", 5).batch
    assert (batch.size, batch.micro, batch.labelled) == (40, 8, 15)
    assert config_of("simclr", 5).batch.labelled == 0
