"""A training step on a GPU: every method, ZeRO stage and optimizer follows the CPU in float64; bfloat16 stays near."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from ssl_dist import methods
from ssl_dist.config import RunConfig
from ssl_dist.training.exactness import config_of
from tests.gpu.runs import moved, relative_over, train_in_double, train_on
from tests.helpers import small_config

pytestmark = pytest.mark.gpu
InDouble = Callable[..., Any]

# float32 rounds to 6e-8. Networks have no kinks, so a step's gradient differs by some tens of that (measured on CPUs:
# 8e-6), more with Winograd convolutions; six steps multiply it. A lost micro-batch or view changes a gradient by
# 1e-1, TF32 by 1e-3.
GRADIENT_BOUND = 1e-4
TRACE_BOUND = 1e-4
STEPS = 6
LARS = {"name": "lars", "lr": 0.05, "trust_coefficient": 0.02, "weight_decay": 0.01, "warmup_epochs": 0}
OPTIMIZERS: dict[str, dict[str, Any]] = {
    "sgd": {},
    "adamw": {"optim": {"name": "adamw", "lr": 1e-3, "weight_decay": 0.05, "warmup_epochs": 0}},
    "lars": {"optim": LARS},
}


@pytest.fixture(scope="module")
def expected(in_double: InDouble) -> InDouble:
    """Return traces of float64 on the CPU at ZeRO 0 by the config; each is made once."""
    known: dict[str, Any] = {}

    def trace(config: RunConfig, steps: int) -> Any:
        engine = config.engine.model_copy(update={"zero_stage": 0, "precision": "fp32"})
        config = config.model_copy(update={"engine": engine})
        key = f"{steps} {config!r}"
        if key not in known:
            known[key] = in_double(train_in_double, config, steps)
        return known[key]

    return trace


def of_method(store: Path, name: str) -> RunConfig:
    """Return a config of the method with a small network, three micro-batches a step and plain SGD at rate 1."""
    tree = config_of(name, num_micro=3).model_dump()
    tree |= {"data": {"store": str(store)}, "engine": {"precision": "fp32", "zero_stage": 1}, "probe": None}
    tree["optim"] |= {"lr": 1.0}
    if "noise" in tree["method"]:
        tree["method"] |= {"noise": 0.0}  # a GPU draws other normal numbers
    return RunConfig.from_tree(tree, name)


@pytest.mark.parametrize("name", methods.names())
def test_the_update_of_every_method_is_its_gradient(
    name: str, small_store: Path, expected: InDouble, device: torch.device
) -> None:
    """Compare what a step takes off the weights, and the queues, slow copies and statistics that it leaves."""
    config = of_method(small_store, name)
    theirs, ours = expected(config, 1), train_on(0, 1, str(device), config, 0, 1)
    assert ours.losses[0] == pytest.approx(theirs.losses[0], rel=GRADIENT_BOUND)
    assert ours.grad_norms[0] == pytest.approx(theirs.grad_norms[0], rel=GRADIENT_BOUND)
    before = config.initial_method()
    learnt, start = dict(before.named_parameters()), before.state_dict()
    updates = [moved(start, {key: trace.state.model[key] for key in start}) for trace in (ours, theirs)]
    assert relative_over(*({key: update[key] for key in learnt} for update in updates)) <= GRADIENT_BOUND
    kept = [{key: trace.state.model[key] for key in start if key not in learnt} for trace in (ours, theirs)]
    assert relative_over(*kept) <= GRADIENT_BOUND


@pytest.mark.parametrize(
    ("zero_stage", "optimizer"),
    [(stage, name) for stage in range(4) for name in OPTIMIZERS if (stage, name) != (3, "lars")],  # which is refused
)
def test_every_zero_stage_follows_float64(
    zero_stage: int, optimizer: str, small_store: Path, expected: InDouble, device: torch.device
) -> None:
    """Train six steps of three micro-batches; a gradient of a lost one would be off by a third."""
    config = small_config(small_store, engine__zero_stage=zero_stage, **OPTIMIZERS[optimizer])
    theirs, ours = expected(config, STEPS), train_on(0, 1, str(device), config, 0, STEPS)
    assert ours.losses == pytest.approx(theirs.losses, rel=TRACE_BOUND)
    assert ours.grad_norms == pytest.approx(theirs.grad_norms, rel=10 * TRACE_BOUND)
    start = config.initial_method().state_dict()
    assert relative_over(moved(start, ours.state.model), moved(start, theirs.state.model)) <= 10 * TRACE_BOUND
    assert ours.state.optimizer.keys() == theirs.state.optimizer.keys()
    assert relative_over(ours.state.optimizer, theirs.state.optimizer) <= 10 * TRACE_BOUND


@pytest.mark.parametrize("micro", [12, 6, 3])
def test_micro_batches_of_any_size(micro: int, small_store: Path, expected: InDouble, device: torch.device) -> None:
    """One micro-batch keeps its graph; with two and four, gradients are cached."""
    config = small_config(small_store, batch__micro=micro)
    theirs, ours = expected(config, 2), train_on(0, 1, str(device), config, 0, 2)
    assert ours.losses == pytest.approx(theirs.losses, rel=TRACE_BOUND)
    assert ours.grad_norms == pytest.approx(theirs.grad_norms, rel=TRACE_BOUND)


@pytest.mark.parametrize("zero_stage", [0, 1, 2, 3])
def test_bfloat16_stays_near_float64(
    zero_stage: int, small_store: Path, expected: InDouble, device: torch.device
) -> None:
    """Eight bits of mantissa round by 4e-3, in a score of 1/t = 5 by 0.02; three steps add up to less than 0.1."""
    config = small_config(small_store, engine__precision="bf16", engine__zero_stage=zero_stage)
    theirs, ours = expected(config, 3), train_on(0, 1, str(device), config, 0, 3)
    assert ours.losses != pytest.approx(theirs.losses, rel=1e-6)
    assert max(abs(a - b) for a, b in zip(ours.losses, theirs.losses, strict=True)) < 0.1
    assert ours.grad_norms == pytest.approx(theirs.grad_norms, rel=0.1)
