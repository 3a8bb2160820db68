"""Signs of collapse: embedding statistics, and the loss of a constant embedding."""

from __future__ import annotations

import pytest
import torch

from ssl_dist.training.health import collapsed, embedding_statistics, reason_of_collapse


def test_embedding_statistics_tell_spread_from_collapse() -> None:
    torch.manual_seed(0)
    spread = torch.randn(500, 1, 64).expand(-1, 2, -1)
    found = embedding_statistics(spread)
    assert found["alignment"] == 0
    assert found["uniformity"] == pytest.approx(-4, abs=0.2)
    assert found["std"] == pytest.approx(1, abs=0.05)
    constant = embedding_statistics(torch.ones(500, 2, 64) + 1e-4 * torch.randn(500, 2, 64))
    assert constant["uniformity"] == pytest.approx(0, abs=1e-3)
    assert constant["std"] < 1e-3
    assert collapsed(constant)
    assert not collapsed(found)


def test_a_loss_is_compared_with_the_loss_of_a_constant_embedding() -> None:
    healthy = {"std": 1.0, "separation": 0.5}
    assert reason_of_collapse(healthy, 4.99, None) is None
    assert reason_of_collapse(healthy, 4.8, 5.0) is None
    message = "the loss is 4.990; if all images had the same embedding, it would be 5.000"
    assert reason_of_collapse(healthy, 4.99, 5.0) == message
    assert "all embeddings are in one point" in (reason_of_collapse({"std": 0.0, "separation": 0.5}, 4.8, 5.0) or "")
