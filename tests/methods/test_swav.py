"""Tests of SwAV: its loss and codes over the global batch, with several crops, a queue and frozen prototypes."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from ssl_dist import backbones
from ssl_dist.config import RunConfig
from ssl_dist.methods import TrainingProgress, Views
from ssl_dist.methods.swav import SwAV, sinkhorn
from ssl_dist.training import exactness
from tests.gloo import GlooPool
from tests.helpers import differences, save, small_config, train

Pools = Callable[[int], GlooPool]
K, D = 7, 5
START = TrainingProgress(0, 10, 0.0)


def build(**settings: Any) -> SwAV:
    config = SwAV.Config(**{"prototypes": K, "projection_dim": D, "freeze_prototypes_epochs": 0, **settings})
    torch.manual_seed(0)
    return SwAV(backbones.build("resnet8", stem="half", width=4), config).double().train()


def embeddings(n: int, views: int = 5) -> Tensor:
    """Return [n, views, K + D] whose views differ in scale and shift; the last two are targets."""
    z = torch.randn(n, views, K + D, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return 0.3 * z * torch.linspace(1, 2, views)[:, None] + torch.linspace(0, 0.2, views)[:, None]


def codes(scores: Tensor, epsilon: float = 0.05, iterations: int = 3) -> Tensor:
    """Turn scores [B, K] into codes [B, K], with the sums and divisions of appendix A.1, number by number."""
    q = (scores / epsilon).exp().T  # [K, B]
    q = q / q.sum()
    for _ in range(iterations):
        q = torch.stack([row / row.sum() / len(q) for row in q])
        q = torch.stack([column / column.sum() / q.shape[1] for column in q.T]).T
    return (q * q.shape[1]).T


def reference(z: Tensor, queued: Tensor | None = None, temperature: float = 0.1, **of_codes: Any) -> Tensor:
    """Compute equations 1 and 2 for several crops; scores ``queued`` [Q, 2, K] take part in the assignment."""
    scores, given = z[:, :-2, :K], z[:, -2:, :K].detach()
    terms = []
    for a in range(2):
        rows = given[:, a] if queued is None else torch.cat([queued[:, a], given[:, a]])
        code = codes(rows, **of_codes)[-len(z) :]
        for v in range(scores.shape[1]):
            if v != a:
                p = (scores[:, v] / temperature).exp()
                p = p / p.sum(1, keepdim=True)
                terms.append(-(code * p.log()).sum(1).mean())
    return torch.stack(terms).mean()


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"temperature": 0.3},
        {"epsilon": 0.03},
        {"sinkhorn_iterations": 1},
        {"epsilon": 0.5, "sinkhorn_iterations": 9},
    ],
)
@pytest.mark.parametrize(("n", "views"), [(2, 4), (11, 4), (11, 8)])
def test_loss_and_gradient_are_the_papers(n: int, views: int, settings: dict[str, Any]) -> None:
    z = embeddings(n, views).requires_grad_()
    names = {"sinkhorn_iterations": "iterations"}
    theirs = reference(z, **{names.get(name, name): value for name, value in settings.items()})
    ours = build(**settings).loss(z)
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-12)
    [found], [expected] = torch.autograd.grad(ours, z), torch.autograd.grad(theirs, z)
    assert (found - expected).norm() <= 1e-12 * expected.norm()  # float64 sums in another order
    assert not found[:, -2:].any(), "codes take no gradient"


def test_codes_of_two_images_by_hand() -> None:
    """With exp(scores) = [[4, 1], [1, 1]], columns sum to 5 and 2, then rows to 1.3 and 0.7."""
    scores = torch.tensor([[4.0, 1.0], [1.0, 1.0]], dtype=torch.float64).log()
    once = torch.tensor([[0.8 / 1.3, 0.5 / 1.3], [0.2 / 0.7, 0.5 / 0.7]], dtype=torch.float64)
    torch.testing.assert_close(sinkhorn(scores, 1.0, 1), once, rtol=1e-14, atol=0)
    # in the limit shares are equal, and q00 q11 / (q01 q10) is still 4
    limit = torch.tensor([[2.0, 1.0], [1.0, 2.0]], dtype=torch.float64) / 3
    torch.testing.assert_close(sinkhorn(scores, 1.0, 60), limit, rtol=1e-12, atol=0)


def test_prototypes_get_equal_use() -> None:
    scores = embeddings(21)[:, :2, :K] + torch.linspace(-1, 1, K)  # some prototypes are strongly preferred
    codes_found = sinkhorn(scores, 0.3, 200)
    torch.testing.assert_close(codes_found.sum(0), torch.full((2, K), 21 / K, dtype=torch.float64), rtol=1e-9, atol=0)
    torch.testing.assert_close(codes_found.sum(2), torch.ones(21, 2, dtype=torch.float64))


@pytest.mark.parametrize("epsilon", [0.05, 0.03, 0.01, 0.001])
@pytest.mark.parametrize("shift", [0.0, 3.0, -3.0])
def test_codes_in_float32_do_not_overflow(epsilon: float, shift: float) -> None:
    """Without logarithms exp(3 / 0.03) would overflow, and a row whose largest term is below 1e-45 be divided by 0."""
    generator = torch.Generator().manual_seed(0)
    scores = normalize(torch.randn(64, 32, generator=generator)) + shift
    found = sinkhorn(scores, epsilon, 3)
    assert torch.isfinite(found).all()
    exact = sinkhorn(scores.double(), epsilon, 3)
    # float32 rounds scores / epsilon of up to 4 / epsilon by 6e-8, a few times; exp makes it a share of the code
    assert (found - exact).abs().max() <= 2e-6 / epsilon


def _assigned(rank: int, size: int, row_counts: list[int]) -> Tensor:
    first = sum(row_counts[:rank])
    return sinkhorn(embeddings(sum(row_counts))[first : first + row_counts[rank], :2, :K], 0.05, 3)


def _local(rank: int, size: int, row_counts: list[int], filled: int) -> tuple[float, Tensor]:
    first = sum(row_counts[:rank])
    method = build(queue=8, queue_from_epoch=0) if filled else build()
    if filled:
        method.after_step(embeddings(filled)[rank::size], START)
    z = embeddings(sum(row_counts))[first : first + row_counts[rank]].requires_grad_()
    loss = method.loss(z)
    return loss.item(), torch.autograd.grad(3 * loss, z)[0]  # 3: the incoming gradient counts


@pytest.mark.parametrize("filled", [0, 8])
@pytest.mark.parametrize("row_counts", [[4, 7], [5, 0, 6], [0, 11]])
def test_uneven_and_empty_ranks_have_the_codes_and_gradient_of_one_process(
    gloo: Pools, row_counts: list[int], filled: int
) -> None:
    pool = gloo(len(row_counts))
    torch.testing.assert_close(
        torch.cat(pool.run(_assigned, row_counts)), sinkhorn(embeddings(11)[:, :2, :K], 0.05, 3), rtol=1e-12, atol=0
    )
    results = pool.run(_local, row_counts, filled)
    z = embeddings(11).requires_grad_()
    queued = None
    if filled:  # images' order does not matter to the codes
        queued = embeddings(filled)[:, -2:, K:] @ normalize(build().prototypes.detach(), dim=1).T
    theirs = reference(z, queued)
    [expected] = torch.autograd.grad(3 * theirs, z)
    assert len({loss for loss, _ in results}) == 1, "the same bits on every rank"
    assert results[0][0] == pytest.approx(theirs.item(), rel=1e-12)
    found = torch.cat([gradient for _, gradient in results])
    assert (found - expected).norm() <= 1e-12 * expected.norm()


def test_collapse_is_a_loss_of_ln_k() -> None:
    """If all images are equal, codes are uniform whatever the scores are, and the best prediction has loss ln K."""
    alike = embeddings(1).expand(9, -1, -1)
    torch.testing.assert_close(sinkhorn(alike[:, 0, :K], 0.05, 3), torch.full((9, K), 1 / K, dtype=torch.float64))
    method = build()
    assert method.loss(alike).item() > math.log(K) + 0.1
    assert method.loss(torch.zeros_like(alike)).item() == pytest.approx(math.log(K), rel=1e-12)
    assert method.loss(torch.eye(K + D, dtype=torch.float64)[:K, None].expand(-1, 5, -1)).item() < 1e-2


def views(n: int, sizes: tuple[tuple[int, int], ...] = ((2, 32), (4, 16)), dtype: torch.dtype = torch.float64) -> Views:
    generator = torch.Generator().manual_seed(2)
    crops = tuple(torch.rand(count, n, 3, size, size, generator=generator, dtype=dtype) for count, size in sizes)
    return Views(crops, torch.full((n,), -1))


def test_crops_of_two_sizes_are_embedded_and_only_the_first_two_give_codes() -> None:
    method = build()
    given = views(6)
    rows = method.embed(given)
    assert rows.shape == (6, 6 + 2, K + D)
    assert method.num_targets == 2
    assert torch.equal(rows[:, -2:], rows[:, :2])
    [gradient] = torch.autograd.grad(rows[:, -2:].sum() + 0 * rows.sum(), method.prototypes)
    assert not gradient.any()
    scores, z = rows.split([K, D], dim=2)
    torch.testing.assert_close(z.norm(dim=2), torch.ones(6, 8, dtype=torch.float64))
    torch.testing.assert_close(scores, z @ normalize(method.prototypes, dim=1).T)
    assert torch.equal(method.pairs(rows), z[:, :2])
    # each size by itself through the backbone, with that size's statistics
    other = method.embed(Views((given.crops[0], given.crops[1].flip(0)), given.labels))
    torch.testing.assert_close(other[:, :2], rows[:, :2])
    torch.testing.assert_close(other[:, 2:6], rows[:, 2:6].flip(1))


def test_the_length_of_a_prototype_does_not_matter() -> None:
    method, given = build(), views(6)
    before = method.embed(given)
    with torch.no_grad():
        method.prototypes *= torch.arange(1, K + 1)[:, None]
    torch.testing.assert_close(method.embed(given), before)


def test_scores_are_float32_under_autocast_and_the_loss_does_not_change() -> None:
    method = build(queue=8, queue_from_epoch=0).float()
    method.after_step(embeddings(8).float(), START)
    z = embeddings(64).float().requires_grad_()
    plain = method.loss(z)
    with torch.autocast("cpu", torch.bfloat16):
        rows = method.embed(views(6, dtype=torch.float32))
        cast = method.loss(z)
    assert rows.dtype == cast.dtype == torch.float32
    torch.testing.assert_close(rows[:, :, :K], rows[:, :, K:] @ normalize(method.prototypes, dim=1).T)
    assert torch.equal(cast, plain)
    assert torch.equal(torch.autograd.grad(cast, z)[0], torch.autograd.grad(plain, z)[0])


def test_prototypes_are_not_trained_in_the_first_epochs() -> None:
    method, given = build(freeze_prototypes_epochs=1.5), views(6)

    def gradient() -> Tensor:
        return torch.autograd.grad(method.loss(method.embed(given)), method.prototypes)[0]

    assert not gradient().any(), "before the first step"
    rows = method.embed(given)
    method.before_step(TrainingProgress(14, 100, 1.4))
    assert not gradient().any()
    method.before_step(TrainingProgress(15, 100, 1.5))
    assert gradient().abs().max() > 0
    torch.testing.assert_close(method.embed(given), rows)
    method.before_step(TrainingProgress(3, 100, 0.3))
    assert not gradient().any(), "a function of the progress alone"


def test_the_queue_takes_in_the_embeddings_of_both_views_and_wraps() -> None:
    method = build(queue=7)
    first, second = embeddings(4), embeddings(5) + 1
    method.after_step(first, START)
    method.after_step(second, START)
    assert torch.equal(method.queue[4:], second[:3, -2:, K:])
    assert torch.equal(method.queue[:2], second[3:, -2:, K:])
    assert torch.equal(method.queue[2:4], first[2:, -2:, K:])
    large = embeddings(10) - 1
    method.after_step(large, START)
    assert {tuple(row.flatten().tolist()) for row in method.queue} == {
        tuple(row.flatten().tolist()) for row in large[3:, -2:, K:]
    }
    assert int(method.taken) == 4 + 5 + 7


def test_the_queue_is_used_when_it_is_due_and_full() -> None:
    method, z = build(queue=8, queue_from_epoch=2), embeddings(6)
    without = reference(z)
    due = TrainingProgress(20, 100, 2.0)
    method.before_step(due)
    method.after_step(embeddings(7), due)
    assert method.loss(z).item() == pytest.approx(without.item(), rel=1e-12), "not full"
    method.after_step(embeddings(1), due)
    queued = method.queue @ method.codebook.T
    assert method.loss(z).item() == pytest.approx(reference(z, queued).item(), rel=1e-12)
    assert abs(method.loss(z).item() - without.item()) > 1e-3
    method.before_step(TrainingProgress(19, 100, 1.9))
    assert method.loss(z).item() == pytest.approx(without.item(), rel=1e-12), "not due"


def test_the_queue_is_scored_with_the_prototypes_as_they_are_now() -> None:
    method, z = build(queue=8, queue_from_epoch=0), embeddings(6)
    with torch.no_grad():
        method.prototypes += torch.randn(K, D, generator=torch.Generator().manual_seed(3))
    method.after_step(embeddings(8), START)
    queued = method.queue @ normalize(method.prototypes.detach(), dim=1).T
    assert method.loss(z).item() == pytest.approx(reference(z, queued).item(), rel=1e-12)


def _config(store: Path, **settings: Any) -> RunConfig:
    method = {"name": "swav", "prototypes": 12, "projection_dim": 8, "queue": 20, "queue_from_epoch": 0.5, **settings}
    return small_config(store, method=method, augment={"recipe": "swav-small"}, engine__zero_stage=0)


def test_a_run_with_a_queue_is_the_same_with_other_workers_and_after_a_resume(
    gloo: Pools, small_store: Path, tmp_path: Path
) -> None:
    """Prototypes train from the third step on; the queue is full after the second and used from the fourth on."""
    config = _config(small_store, freeze_prototypes_epochs=0.4)
    pool = gloo(1)
    [whole] = pool.run(train, config, 0, 6)
    tree = config.model_dump()
    others = RunConfig.from_tree({**tree, "engine": {**tree["engine"], "zero_stage": 3}}, "")
    assert gloo(3).run(train, others, 0, 6)[0].losses == pytest.approx(whole.losses, rel=1e-5)  # float32 sums
    [first] = pool.run(train, config, 0, 4)
    save(first.state, tmp_path, 4, config)
    [second] = pool.run(train, config, 4, 6, tmp_path)
    assert first.losses + second.losses == whole.losses
    assert not differences(second.state.model, whole.state.model)
    without = _config(small_store, freeze_prototypes_epochs=0.4, queue=0)
    [other] = pool.run(train, without, 0, 6)
    changed = [a != b for a, b in zip(other.losses, whole.losses, strict=True)]
    assert changed == [False, False, False, True, True, True]


@pytest.mark.parametrize(
    ("optimizer", "stage"),
    [
        *(("adamw", 1), ("lars", 2), ("sgd", 3)),
        *(pytest.param("adamw", stage, marks=pytest.mark.slow) for stage in (0, 2, 3)),
        *(pytest.param("lars", stage, marks=pytest.mark.slow) for stage in (0, 1)),
    ],
)
def test_frozen_prototypes_stay_bit_for_bit_at_every_zero_stage(
    gloo: Pools, small_store: Path, tmp_path: Path, optimizer: str, stage: int
) -> None:
    """They are frozen for three steps, over a resume too; AdamW's first step after that has the length of the rate."""
    optim = {"name": optimizer, "lr": 0.01, "weight_decay": 0.5, "warmup_epochs": 0}
    config = _config(small_store, freeze_prototypes_epochs=0.6, queue=0)
    tree = {**config.model_dump(), "optim": optim, "engine": {"precision": "fp32", "zero_stage": stage}}
    config = RunConfig.from_tree(tree, "")
    start = config.initial_method().state_dict()["prototypes"]
    pool = gloo(2)
    frozen = pool.run(train, config, 0, 2)[0]
    assert torch.equal(frozen.state.model["prototypes"], start)
    assert not [name for name in frozen.state.optimizer if name.startswith("prototypes/")]
    save(frozen.state, tmp_path, 2, config)
    assert torch.equal(pool.run(train, config, 2, 3, tmp_path)[0].state.model["prototypes"], start)
    thawed = pool.run(train, config, 2, 4, tmp_path)[0].state
    moved = thawed.model["prototypes"] - start
    assert moved.abs().max() > 0
    if optimizer == "adamw":
        decayed = start * (1 - 0.01 * 0.5)
        lengths = (thawed.model["prototypes"] - decayed).abs()
        assert lengths.max() <= 0.01 * 1.001  # float32
        assert lengths.median() == pytest.approx(0.01, rel=1e-3)  # g / (|g| + 1e-8) of its first step
        assert thawed.optimizer["prototypes/step"] == 1


def _steps_when_trained(rank: int, size: int) -> list[exactness.Finding]:
    config_of = exactness.config_of

    def trained(method: str, num_micro: int = 1) -> RunConfig:
        tree = config_of(method, num_micro).model_dump()
        settings = {"freeze_prototypes_epochs": 0, "prototypes": 2000}  # so many that ZeRO-3 cuts them into parts
        return RunConfig.from_tree({**tree, "method": {**tree["method"], **settings}}, "")

    world = exactness.World.current()
    alone = [torch.distributed.new_group([number]) for number in range(size)][rank]
    with mock.patch.object(exactness, "config_of", trained):
        return list(exactness._steps(trained("swav"), world, alone))


def test_a_step_is_exact_for_prototypes_that_are_not_frozen(gloo: Pools) -> None:
    findings = gloo(2).run(_steps_when_trained)[0]
    assert [one for one in findings if not one.exact] == []
    assert len(findings) == len(exactness.STAGES)
