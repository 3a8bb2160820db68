"""Properties shared by Barlow Twins and VICReg, whose losses are statistics of features over the global batch.

Their losses themselves are compared with the papers in test_barlow_twins.py and test_vicreg.py.
"""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType

import pytest
import torch
from torch import Tensor, nn

from ssl_dist.methods import Views
from tests.gloo import GlooPool
from tests.methods import test_barlow_twins, test_vicreg
from tests.methods.sizes import Largest

Pools = Callable[[int], GlooPool]
TESTS = {"barlow_twins": test_barlow_twins, "vicreg": test_vicreg}
each_method = pytest.mark.parametrize("name", TESTS)
each_module = pytest.mark.parametrize("tests", TESTS.values(), ids=TESTS)


@each_module
def test_autocast_changes_nothing(tests: ModuleType) -> None:
    z = tests.embeddings(64).detach().float().requires_grad_()
    plain = tests.small().loss(z)
    with torch.autocast("cpu", torch.bfloat16):
        cast = tests.small().loss(z)
    assert cast.dtype == torch.float32
    assert torch.equal(cast, plain)
    assert torch.equal(torch.autograd.grad(cast, z)[0], torch.autograd.grad(plain, z)[0])


@each_module
def test_no_tensor_is_larger_than_the_embeddings_or_the_features_squared(tests: ModuleType) -> None:
    z = tests.embeddings(300)
    with Largest() as largest:
        tests.small().loss(z).backward()
    assert largest.elements == z.numel()  # 300 * 2 * 6; the batch squared is 90,000


def _local(rank: int, size: int, name: str, row_counts: list[int]) -> tuple[float, Tensor]:
    first = sum(row_counts[:rank])
    z = TESTS[name].embeddings(sum(row_counts)).detach()[first : first + row_counts[rank]].requires_grad_()
    loss = TESTS[name].small().loss(z)
    return loss.item(), torch.autograd.grad(loss, z)[0]


@each_method
@pytest.mark.parametrize("row_counts", [[4, 7], [5, 0, 6]])
def test_uneven_and_empty_ranks_have_the_gradient_of_one_process(gloo: Pools, row_counts: list[int], name: str) -> None:
    results = gloo(len(row_counts)).run(_local, name, row_counts)
    z = TESTS[name].embeddings(sum(row_counts))
    theirs = TESTS[name].reference(z)
    [expected] = torch.autograd.grad(theirs, z)
    assert {loss for loss, _ in results} == {results[0][0]}, "the same on every rank, bit for bit"
    assert results[0][0] == pytest.approx(theirs.item(), rel=1e-12)
    found = torch.cat([grad for _, grad in results])
    assert (found - expected).norm() <= 1e-10 * expected.norm()


@each_module
def test_each_view_has_its_own_batch_norm_statistics(tests: ModuleType) -> None:
    method = tests.small()
    crops = torch.rand(2, 6, 3, 16, 16) * torch.tensor([1.0, 0.4]).view(2, 1, 1, 1, 1)
    found = method.embed(Views((crops,), torch.full((6,), -1)))
    assert found.shape == (6, 2, 6)
    for view in (0, 1):
        torch.testing.assert_close(found[:, view], method.projection_head(method.backbone(crops[view])))


@each_module
def test_settings_shape_the_head(tests: ModuleType) -> None:
    def shapes(**settings: int) -> list[tuple[int, ...]]:
        layers = tests.small(**settings).projection_head
        return [tuple(layer.weight.shape) for layer in layers if isinstance(layer, nn.Linear)]

    assert shapes() == [(24, 16), (24, 24), (6, 24)]
    assert shapes(projection_layers=2, projection_hidden=20, projection_dim=10) == [(20, 16), (10, 20)]
