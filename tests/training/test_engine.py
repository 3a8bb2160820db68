"""One exact step: the number of workers, the ZeRO stage and interruptions do not change a run."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from ssl_dist import augment
from ssl_dist.collectives import World
from ssl_dist.config import RunConfig
from ssl_dist.data import SamplePlan, permutation
from ssl_dist.data.batches import Batch, Batches
from ssl_dist.errors import Diverged
from ssl_dist.store import ImageStore
from ssl_dist.training.engine import Engine
from tests.double import double_method, double_update, one_shot_gradient, worst_difference
from tests.gloo import GlooPool
from tests.helpers import differences, grid, save, small_config, smooth_method, train
from tests.losses.test_nt_xent import reference

Pools = Callable[[int], GlooPool]
STEPS = 6  # an epoch of 51 images ends within the fifth
WORKERS, STAGES = (1, 2, 3), (0, 1, 2, 3)
ALONE = (1,)  # at ZeRO 0 it is what the others are compared with
OPTIMIZERS: tuple[dict[str, Any], ...] = ({}, {"optim__name": "adamw", "optim__lr": 1e-4})

# float32 rounds to 6e-8, and sums in another order differ by a few of that; training multiplies it (20 steps, measured:
# to 1e-6 in the loss, 5e-6 in the gradient's norm). A lost micro-batch changes both by 1e-1, a gradient averaged and
# not summed changes the norm by 1/W.
LOSS_TOLERANCE = 1e-5
NORM_TOLERANCE = 1e-4


def assert_same(found: Any, expected: Any) -> None:
    for ours, theirs, tolerance in zip(found, expected, (LOSS_TOLERANCE, NORM_TOLERANCE), strict=True):
        assert len(ours) == len(theirs)
        assert max(abs(a - b) / b for a, b in zip(ours, theirs, strict=True)) <= tolerance


@pytest.fixture(scope="module")
def alone(gloo: Pools, small_store: Path) -> Callable[..., Any]:
    """Return the trace of one worker at ZeRO 0 by overrides; each is run once."""
    known: dict[str, Any] = {}

    def trace(**overrides: Any) -> Any:
        key = repr(sorted(overrides.items()))
        if key not in known:
            config = small_config(small_store, **{"engine__zero_stage": 0, **overrides})
            [known[key]] = gloo(1).run(train, config, 0, STEPS)
        return known[key]

    return trace


@pytest.mark.parametrize(("workers", "zero_stage", "optimizer"), grid(WORKERS, STAGES, OPTIMIZERS, slow=ALONE))
def test_workers_and_zero_stage_do_not_change_the_losses(
    gloo: Pools, small_store: Path, alone: Any, workers: int, zero_stage: int, optimizer: dict[str, Any]
) -> None:
    """Share out three micro-batches: one worker has all, two have one and two, three have one each."""
    config = small_config(small_store, engine__zero_stage=zero_stage, **optimizer)
    traces = gloo(workers).run(train, config, 0, STEPS)
    expected = alone(**optimizer)
    for trace in traces:
        assert trace.losses == traces[0].losses, "the loss is the same on every worker, bit for bit"
    assert_same(traces[0][:2], expected[:2])
    for name, tensor in expected.state.model.items():
        torch.testing.assert_close(traces[0].state.model[name], tensor, rtol=1e-3, atol=1e-5)
    assert traces[0].state.optimizer.keys() == expected.state.optimizer.keys()


@pytest.mark.parametrize(("size", "micro"), [(12, 12), (20, 4), (12, 6)])
def test_micro_batches_that_do_not_divide_evenly(
    gloo: Pools, small_store: Path, alone: Any, size: int, micro: int
) -> None:
    """Share out one, five and two micro-batches to three workers, some of which have empty slots, or only such."""
    batch = {"batch": {"size": size, "micro": micro}}
    trace = gloo(3).run(train, small_config(small_store, **batch), 0, STEPS)[0]
    assert_same(trace[:2], alone(**batch)[:2])


def test_dropout_does_not_depend_on_workers(gloo: Pools, small_store: Path, alone: Any) -> None:
    net = {"backbone": {"name": "convnet", "dropout": 0.3}}
    trace = gloo(2).run(train, small_config(small_store, **net), 0, STEPS)[0]
    assert_same(trace[:2], alone(**net)[:2])
    assert trace.losses[0] != alone(backbone={"name": "convnet"}).losses[0]


@pytest.mark.parametrize(("workers", "zero_stage", "micro"), grid(WORKERS, STAGES, [12, 3], slow=ALONE))
def test_the_update_is_the_gradient_of_the_papers_loss(
    gloo: Pools, small_store: Path, workers: int, zero_stage: int, micro: int
) -> None:
    """Compare in float64, with one and four micro-batches, of which some workers have fewer or none."""
    plain = {"name": "sgd", "lr": 1.0, "momentum": 0.0, "weight_decay": 0.0, "warmup_epochs": 0}
    config = small_config(small_store, optim=plain, batch__micro=micro, engine__zero_stage=zero_stage)
    found = gloo(workers).run(double_update, config)[0]
    expected = one_shot_gradient(config, lambda z_a, z_b: reference(z_a, z_b, 0.2))
    assert (
        worst_difference(found, expected) <= 1e-12
    )  # of any parameter: float64 sums in another order, and weights less updated weights


@pytest.mark.parametrize(("workers", "zero_stage", "clip_norm"), grid(WORKERS, STAGES, [0.5, 50.0], slow=ALONE))
def test_the_global_gradient_is_clipped_and_weights_decay(
    gloo: Pools, small_store: Path, workers: int, zero_stage: int, clip_norm: float
) -> None:
    """Clip a gradient of norm about 5; weight decay leaves out biases and norm layers, and is not clipped."""
    optim = {"name": "sgd", "momentum": 0.0, "weight_decay": 0.1, "warmup_epochs": 0, "clip_norm": clip_norm}
    config = small_config(small_store, optim=optim, engine__zero_stage=zero_stage)
    found = gloo(workers).run(double_update, config)[0]
    gradient = one_shot_gradient(config, lambda z_a, z_b: reference(z_a, z_b, 0.2))
    norm = torch.stack([one.norm() for one in gradient.values()]).norm()
    assert 0.5 < norm < 50
    factor = min(1.0, clip_norm / (norm + 1e-6))  # as torch.nn.utils.clip_grad_norm_ has it
    weights = dict(double_method(config).named_parameters())
    expected = {
        name: factor * grad + (0.1 * weights[name].detach() if grad.dim() > 1 else 0.0)
        for name, grad in gradient.items()
    }
    tolerance = 1e-7 if factor < 1 else 1e-12  # DeepSpeed rounds the norm to float32
    assert worst_difference(found, expected) <= tolerance


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_running_statistics_are_the_mean_over_all_micro_batches(gloo: Pools, small_store: Path, workers: int) -> None:
    config = small_config(small_store)
    after = gloo(workers).run(train, config, 0, 1)[0].state.model
    method, images = smooth_method(config).train(), ImageStore(config.data.store)
    stem = method.backbone.body[:1]
    ids, _ = permutation.stream(config.seed, 0, 12, len(images))
    means, variances = [], []
    for part in torch.from_numpy(ids).split(4):
        pixels = torch.from_numpy(images.gather(part.numpy()))
        views = augment.views(pixels, part, seed=config.seed, epoch=0, recipe=config.augment.views())
        maps = stem(views.flatten(0, 1)).transpose(0, 1).flatten(1)  # [channels, everything else]
        means.append(maps.mean(1))
        variances.append(maps.var(1))
    prefix = "backbone.body.1."
    torch.testing.assert_close(after[prefix + "running_mean"], 0.1 * torch.stack(means).mean(0), rtol=1e-4, atol=1e-6)
    expected = 0.9 + 0.1 * torch.stack(variances).mean(0)
    torch.testing.assert_close(after[prefix + "running_var"], expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("zero_stage", "optimizer"), grid(STAGES, OPTIMIZERS))
def test_six_steps_are_three_and_three_bit_for_bit(
    gloo: Pools, small_store: Path, tmp_path: Path, zero_stage: int, optimizer: dict[str, Any]
) -> None:
    config = small_config(small_store, engine__zero_stage=zero_stage, **optimizer)
    whole = gloo(2).run(train, config, 0, STEPS)[0]
    save(gloo(2).run(train, config, 0, 3)[0].state, tmp_path, 3, config)
    rest = gloo(2).run(train, config, 3, STEPS, tmp_path)[0]
    assert rest.losses == whole.losses[3:]
    assert differences(rest.state.model, whole.state.model) == []
    assert differences(rest.state.optimizer, whole.state.optimizer) == []


@pytest.mark.parametrize(
    ("change", "optimizer"),
    grid([((2, 1), (3, 2)), ((3, 3), (1, 0)), ((1, 0), (2, 3)), ((2, 2), (3, 3))], OPTIMIZERS),
)
def test_a_run_resumes_with_other_workers_and_another_zero_stage(
    gloo: Pools,
    small_store: Path,
    tmp_path: Path,
    alone: Any,
    change: tuple[tuple[int, int], tuple[int, int]],
    optimizer: dict[str, Any],
) -> None:
    before, after = change
    first, second = (small_config(small_store, engine__zero_stage=stage, **optimizer) for _, stage in (before, after))
    begun = gloo(before[0]).run(train, first, 0, 4)[0]
    save(begun.state, tmp_path, 4, first)
    rest = gloo(after[0]).run(train, second, 4, STEPS, tmp_path)[0]
    both = (begun.losses + rest.losses, begun.grad_norms + rest.grad_norms)
    assert_same(both, alone(**optimizer)[:2])


@pytest.mark.parametrize("zero_stage", [0, 1, 2])
@pytest.mark.parametrize("workers", [1, 2, 3])
def test_lars_sees_whole_parameters_where_zero_holds_slices(
    gloo: Pools, small_store: Path, tmp_path: Path, alone: Any, workers: int, zero_stage: int
) -> None:
    """Compare also after a resume; a worker's slice begins and ends within parameters.

    The rate is one at which rounding stays rounding: at 0.1 a twentieth step would multiply it by ten.
    """
    lars = {"optim": {"name": "lars", "lr": 0.05, "trust_coefficient": 0.02, "weight_decay": 0.01, "warmup_epochs": 0}}
    expected = alone(**lars)
    config = small_config(small_store, engine__zero_stage=zero_stage, **lars)
    begun = gloo(workers).run(train, config, 0, 4)[0]
    save(begun.state, tmp_path, 4, config)
    rest = gloo(workers).run(train, config, 4, STEPS, tmp_path)[0]
    assert_same((begun.losses + rest.losses, begun.grad_norms + rest.grad_norms), expected[:2])
    for name, velocity in expected.state.optimizer.items():  # measured: 3e-5
        assert (rest.state.optimizer[name] - velocity).norm() <= 1e-4 * velocity.norm(), name


@pytest.mark.parametrize("workers", [1, 2])
def test_bf16_keeps_the_loss_near_fp32s(gloo: Pools, small_store: Path, alone: Any, workers: int) -> None:
    config = small_config(small_store, engine__precision="bf16")
    losses = gloo(workers).run(train, config, 0, 3)[0].losses
    expected = alone().losses[:3]
    assert losses != expected
    assert max(abs(a - b) for a, b in zip(losses, expected, strict=True)) < 0.1  # 8 bits of mantissa, three steps


def _poisoned(rank: int, size: int, config: RunConfig, what: str) -> tuple[str, bool]:
    """Return (message, whether weights are unchanged) of a step whose loss or gradient is not finite."""
    world = World.current()
    method = config.initial_method()
    engine = Engine(method, config, world)
    batch = Batches(SamplePlan(config, ImageStore(config.data.store)), world, 0, 4).fetch(3)
    before = {name: tensor.clone() for name, tensor in engine.state().model.items()}
    poison = float("nan") if what == "loss" else float("inf")
    if what == "loss":
        engine.method.loss = lambda z: z.sum() * poison  # type: ignore[method-assign]
    else:
        engine.method.loss = lambda z: (z - z.detach()).abs().sqrt().sum()  # type: ignore[method-assign]
    try:
        engine.step(batch, 0.1)
    except Diverged as error:
        after = engine.state().model
        same = all(torch.equal(before[n], after[n]) for n in before if "running" not in n and "tracked" not in n)
        return str(error), same
    return "went on", False


@pytest.mark.parametrize("zero_stage", [0, 1, 3])
@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_every_worker_stops_before_the_update_of_a_step_that_is_not_finite(
    gloo: Pools, small_store: Path, zero_stage: int, what: str
) -> None:
    config = small_config(small_store, engine__zero_stage=zero_stage)
    for message, same in gloo(2).run(_poisoned, config, what):
        assert message.startswith("step 3: the ")
        assert same


def _modules_after_a_step(rank: int, size: int, config: RunConfig) -> set[str]:
    train(rank, size, config, 0, 1)
    return set(sys.modules)


@pytest.mark.parametrize(
    ("zero_stage", "optimizer", "network"),
    [(0, "adamw", "mobilenet_v3_small"), (2, "lars", "resnet20"), (3, "sgd", "resnet20")],
)
def test_a_start_does_not_import_a_compiler(small_store: Path, zero_stage: int, optimizer: str, network: str) -> None:
    """ZeRO 3 itself imports torch's front part."""
    pool = GlooPool(1)  # of its own: other tests compile
    several = {"optim": {"name": optimizer}, "backbone": {"name": network}, "augment__size_px": 32}
    config = small_config(small_store, engine__zero_stage=zero_stage, **several)
    found = pool.run(_modules_after_a_step, config)[0]
    pool.close()
    assert "deepspeed.runtime.zero.muon.original_muon" in found
    assert "torch._inductor.lowering" not in found
    assert zero_stage == 3 or not {"torch._dynamo", "torch._inductor"} & found


def test_a_batch_has_the_same_views_at_each_call(small_store: Path) -> None:
    config = small_config(small_store)
    batch: Batch = Batches(SamplePlan(config, ImageStore(small_store)), World(0, 2), 0, 5).fetch(4)
    assert (batch.micro_batches, batch.num_slots, len(batch.ids)) == (range(2), 2, 8)
    cpu = torch.device("cpu")
    assert torch.equal(batch.views(1, cpu).stacked, batch.views(1, cpu).stacked)
    spare = Batches(SamplePlan(config, ImageStore(small_store)), World(1, 2), 0, 5).fetch(4)
    assert (spare.micro_batches, spare.num_slots) == (range(2, 3), 2)
    assert spare.views(1, cpu).stacked.abs().max() == 0


@pytest.mark.parametrize("count", range(8))
@pytest.mark.parametrize("workers", [1, 2, 3, 4])
def test_shares_are_even_and_in_order(count: int, workers: int) -> None:
    shares = [World(rank, workers).share(count) for rank in range(workers)]
    assert [number for share in shares for number in share] == list(range(count))
    assert max(map(len, shares)) == len(shares[0]) == -(-count // workers)
    assert len(shares[0]) - min(map(len, shares)) <= 1
