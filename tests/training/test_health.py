"""Signs of collapse: embedding statistics, and the loss of a constant embedding, judged against a run's own step 0."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ssl_dist import store
from ssl_dist.collectives import World
from ssl_dist.evaluate.rank import rankme
from ssl_dist.training.health import read_health
from ssl_dist.training.health.collapse import Collapse
from ssl_dist.training.health.embedding import embedding_statistics
from ssl_dist.training.health.rule import PATIENCE
from ssl_dist.training.loop import StopRequests, pretrain
from ssl_dist.training.metrics import read_metrics
from tests.helpers import resolved_config


def line(step: int, statistics: Mapping[str, float], loss: float = 1.0, limit: float | None = None) -> dict[str, float]:
    """Return a line of metrics of a step."""
    found = {"step": step, **{f"embedding/{name}": value for name, value in statistics.items()}}
    found |= {"train/loss": loss} if step else {}
    return found | ({} if limit is None else {"train/loss_if_collapsed": limit})


ONE_POINT = "all embeddings are in one point"
UNLIKE = "two views of an image differ as much as two images"


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
    rule = Collapse(0, 500)
    assert rule.judge(line(0, found)) is None
    assert rule.judge(line(1, found)) is None
    assert ONE_POINT in str(rule.judge(line(2, constant)))


@pytest.mark.parametrize("shape", [(40, 64), (300, 64), (12, 100)])
def test_the_rank_of_embeddings_is_their_rankme(shape: tuple[int, int]) -> None:
    """Eigenvalues of squares have half the digits of singular values: 1e-8, over up to 256 of them."""
    torch.manual_seed(0)
    for scale in (1.0, 1e-4):  # of all dimensions but five
        pairs = torch.randn(shape[0], 2, shape[1])
        pairs[:, :, 5:] *= scale
        found = embedding_statistics(pairs)
        whole = rankme(torch.nn.functional.normalize(pairs[:256, 0], dim=1))
        assert found["rank"] == pytest.approx(whole, rel=1e-3)
        assert found["rank_limit"] == min(256, *shape)


def test_embeddings_that_are_not_finite_do_not_end_a_run() -> None:
    pairs = torch.randn(8, 2, 4)
    pairs[3, 0, 1] = torch.inf
    assert math.isnan(embedding_statistics(pairs)["rank"])


def reasons(separations: dict[int, float], *, rows: int, warmup: int = 0, std: float = 0.8) -> dict[int, str]:
    """Return what is said at some steps of a run whose separation is known, also that of step 0."""
    rule = Collapse(warmup, rows)
    rule.judge(line(0, {"separation": separations.pop(0), "std": 0.8}))
    curve = {step: {"separation": value, "std": std} for step, value in separations.items()}
    said = {step: rule.judge(line(step, statistics)) for step, statistics in curve.items()}
    return {step: reason for step, reason in said.items() if reason}


LOGGED = (1, 2, 3, 5, 8, 10, 15, 20, 30)
HEALTHY = [  # images of a batch, and separations on digits without a warm-up: untrained views are as unlike as digits
    (8, (0.88, 0.92, 0.86, 1.08, 0.70, 0.59, 0.81, 0.77, 0.41)),
    (8, (0.88, 0.79, 0.66, 0.65, 0.87, 0.72, 0.68, 0.80, 0.88)),
    (24, (0.91, 1.00, 0.78, 0.81, 0.78, 0.58, 0.50, 0.52, 0.38)),
    (24, (0.85, 0.83, 0.92, 0.75, 0.73, 0.76, 0.56, 0.55, 0.37)),
    (64, (0.92, 0.86, 0.86, 0.78, 0.61, 0.50, 0.37, 0.37, 0.31)),
    (64, (0.88, 0.82, 0.88, 0.80, 0.64, 0.61, 0.46, 0.47, 0.35)),
]


@pytest.mark.parametrize(("rows", "curve"), HEALTHY)
def test_short_runs_that_learn_are_not_called_collapsed(rows: int, curve: tuple[float, ...]) -> None:
    separations = dict(zip(LOGGED, curve, strict=True))
    assert reasons({0: curve[0], **separations}, rows=rows) == {}


@pytest.mark.parametrize("rows", [8, 24, 256])
def test_untrained_weights_are_not_called_collapsed_before_they_had_time(rows: int) -> None:
    """Pictures of noise: no two views of one are more alike than two of them."""
    noise = np.random.default_rng(0).normal(1.0, 0.6 / rows**0.5, 4 * PATIENCE)
    said = reasons(dict(enumerate(noise)), rows=rows, warmup=50)
    assert said
    assert 50 + PATIENCE <= min(said) <= 50 + 300
    assert all(UNLIKE in reason for reason in said.values())


@pytest.mark.parametrize(
    ("warmup", "rows", "start", "then", "std", "first", "reason"),
    [
        (0, 64, 0.6, 1.0, 0.8, 1, UNLIKE),  # worse than step 0 beyond chance
        (40, 64, 0.6, 1.0, 0.8, 41, UNLIKE),  # not while the rate still rises
        (40, 8, 0.6, 1.0, 0.8, 40 + PATIENCE, UNLIKE),  # eight images may seem so by chance
        (40, 512, 0.95, 1.0, 0.8, 40 + PATIENCE, UNLIKE),  # much as at step 0, and no better
        (0, 8, 0.95, 0.95, 0.001, 1, ONE_POINT),
        (30, 512, 0.6, 0.5, 0.001, 31, ONE_POINT),
        (5000, 512, 0.6, 1.0, 0.8, PATIENCE + 1, UNLIKE),  # a long warm-up hides it no longer
    ],
)
def test_collapse_is_named_after_warm_up(
    warmup: int, rows: int, start: float, then: float, std: float, first: int, reason: str
) -> None:
    said = reasons({0: start, **dict.fromkeys(range(1, 400), then)}, rows=rows, warmup=warmup, std=std)
    assert min(said) == first
    assert reason in said[first]


def test_a_run_whose_step_0_is_not_known_is_judged_after_its_patience() -> None:
    rule = Collapse(0, 64)
    statistics = {"separation": 1.0, "std": 0.8}
    assert rule.judge(line(PATIENCE - 1, statistics)) is None
    assert UNLIKE in str(rule.judge(line(PATIENCE, statistics)))
    assert ONE_POINT in str(rule.judge(line(PATIENCE, {"separation": 0.5, "std": 0.0})))


def test_a_loss_is_compared_with_the_loss_of_a_constant_embedding() -> None:
    rule = Collapse(10, 0)
    assert rule.judge(line(10 + PATIENCE - 1, {}, 4.99, 5.0)) is None
    message = "the loss is 4.990; if all images had the same embedding, it would be 5.000"
    assert message in str(rule.judge(line(10 + PATIENCE, {}, 4.99, 5.0)))
    assert [rule.judge(line(10 + PATIENCE + step, {}, 4.8, 5.0)) for step in range(1, 6)][-1] is None


def test_six_steps_on_pictures_of_noise_say_nothing_and_note_step_0(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    random = np.random.default_rng(0)
    for number in range(24):
        (tmp_path / "images" / f"class{number % 2}").mkdir(parents=True, exist_ok=True)
        pixels = random.integers(0, 256, (16, 16, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "images" / f"class{number % 2}" / f"{number}.png")
    store.build(tmp_path / "images", tmp_path / "store", workers=1)
    config = resolved_config(tmp_path / "store", probe=None, epochs=3, monitor__every_steps=1)
    (tmp_path / "run").mkdir()
    with caplog.at_level(logging.WARNING, "ssl_dist.training"):
        assert pretrain(config, tmp_path / "run", World(), StopRequests())["step"] == 6
    assert "collapse" not in caplog.text
    assert read_health(tmp_path / "run") == []
    first = next(line for line in read_metrics(tmp_path / "run") if "train/loss_at_start" in line)
    assert first["step"] == 0
    assert first["embedding/separation"] > 0.6
