"""kNN and linear probe against plain formulas."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import nn

from ssl_dist.backbones import Backbone
from ssl_dist.collectives import World
from ssl_dist.config import RunConfig
from ssl_dist.errors import ConfigError
from ssl_dist.evaluate import extract, linear_accuracy
from ssl_dist.evaluate.probe import Probe
from ssl_dist.evaluate.rank import lidar, rankme
from ssl_dist.store import ImageStore, build
from tests.conftest import write_images
from tests.gloo import GlooPool
from tests.helpers import small_config

CPU = torch.device("cpu")


def clusters(n: int, seed: int, spread: float = 1.0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 4, (n,), generator=generator)
    centres = torch.randn(4, 8, generator=torch.Generator().manual_seed(9))
    return centres[labels] + spread * torch.randn(n, 8, generator=generator), labels


def test_the_linear_probe_reaches_the_minimum_of_its_loss() -> None:
    train, train_labels = clusters(400, 0, spread=0.8)
    test, test_labels = clusters(400, 1, spread=0.8)
    mean, std = train.double().mean(0), train.double().std(0, correction=0)
    x, weights, bias = (train.double() - mean) / std, torch.zeros(8, 4, dtype=torch.float64), torch.zeros(4)
    weights, bias = weights.requires_grad_(), bias.double().requires_grad_()
    solver = torch.optim.LBFGS([weights, bias], max_iter=500, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        solver.zero_grad()
        value = torch.nn.functional.cross_entropy(x @ weights + bias, train_labels) + 0.5e-3 * weights.square().sum()
        value.backward()
        return value

    solver.step(loss)
    predicted = ((test.double() - mean) / std @ weights + bias).argmax(1)
    expected = float((predicted == test_labels).double().mean())
    found = linear_accuracy(train, train_labels, test, test_labels)
    assert found > 0.7
    assert abs(found - expected) <= 0.005  # two solvers stop at slightly different places


def test_the_linear_probe_refuses_one_class() -> None:
    train, labels = clusters(20, 0)
    with pytest.raises(ConfigError, match="fewer than two classes"):
        linear_accuracy(train, labels * 0, train, labels)
    with pytest.raises(ConfigError, match="l2 0"):
        linear_accuracy(train, labels, train, labels, l2=0)


def test_features_are_of_whole_images_in_evaluation_mode(small_store: Path) -> None:
    config = small_config(small_store)
    backbone = config.initial_method().backbone.train()
    store, ids = ImageStore(small_store), np.array([3, 50, 3])
    features = extract(backbone, store, ids, CPU, config)
    assert backbone.training
    pixels = torch.from_numpy(store.gather(ids)).permute(0, 3, 1, 2).float() / 255
    assert torch.equal(features, backbone.eval()(pixels)), "images of the views' size are not touched"


class Recorder(nn.Module):
    """Stands in for a backbone, and keeps the shapes of its inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.shapes: list[tuple[int, ...]] = []

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.shapes.append(tuple(images.shape))
        return images.flatten(1)[:, :8]


@pytest.mark.parametrize(
    ("overrides", "size_px", "chunks"),
    [
        ({}, 16, [4, 4, 2]),
        ({"batch": {"size": 12, "micro": 6}}, 16, [6, 4]),
        ({"batch": {"size": 1024, "micro": 512}}, 16, [10]),
        ({"augment__size_px": 8}, 8, [4, 4, 2]),
        ({"augment__size_px": 24}, 24, [4, 4, 2]),
        ({"augment__recipe": "swav-small", "method": {"name": "swav"}}, 32, [4, 4, 2]),
    ],
)
def test_images_are_embedded_in_micro_batches_at_the_size_of_the_largest_view(
    small_store: Path, overrides: dict[str, Any], size_px: int, chunks: list[int]
) -> None:
    recorder, config = Recorder(), small_config(small_store, **overrides)
    done: list[int] = []
    found = extract(recorder, ImageStore(small_store), np.arange(10), CPU, config, done.append)
    assert found.shape == (10, 8)
    assert recorder.shapes == [(count, 3, size_px, size_px) for count in chunks]
    assert done == chunks


@pytest.mark.parametrize("kind", ["knn", "rankme", "lidar"])
def test_the_online_probe_embeds_no_more_than_a_micro_batch_at_once(small_store: Path, kind: str) -> None:
    """Otherwise a run that fits in memory would end at its first probe."""
    probe = {"kind": kind, "bank": 30, "queries": 12, "k": 3}
    recorder, config = Recorder(), small_config(small_store, probe=probe, augment__size_px=8)
    Probe(config, ImageStore(small_store)).score(cast(Backbone, recorder), World())
    assert max(recorder.shapes) == (4, 3, 8, 8)


def test_large_images_are_made_smaller_as_in_the_building_of_a_store(
    image_folder: Path, small_store: Path, tmp_path: Path
) -> None:
    build(image_folder, tmp_path / "small", size_px=11, workers=1)
    config = small_config(small_store, augment__size_px=11)
    backbone, ids = config.initial_method().backbone, np.arange(51)
    found = extract(backbone, ImageStore(small_store), ids, CPU, config)
    assert torch.equal(found, extract(backbone, ImageStore(tmp_path / "small"), ids, CPU, config))


def _probe(rank: int, size: int, config: RunConfig) -> float | None:
    backbone = config.initial_method().backbone
    return Probe(config, ImageStore(config.data.store)).score(backbone, World.current())


@pytest.mark.parametrize("kind", ["knn", "linear", "rankme", "lidar"])
def test_the_online_probe_is_the_same_on_any_number_of_workers(
    gloo: Callable[[int], GlooPool], small_store: Path, kind: str
) -> None:
    config = small_config(small_store, probe={"kind": kind, "bank": 30, "queries": 12, "k": 3})
    [alone] = gloo(1).run(_probe, config)
    assert alone is not None
    low, high = (0.4, 1) if kind in ("knn", "linear") else (1, 30)
    assert low < alone <= high
    for workers in (2, 3):
        assert gloo(workers).run(_probe, config) == pytest.approx([alone] * workers, rel=1e-4)


def test_the_probes_queries_are_not_in_its_bank(small_store: Path) -> None:
    probe = Probe(small_config(small_store, probe={"bank": 1000, "queries": 1000}), ImageStore(small_store))
    assert len(probe.ids) == len(set(probe.ids.tolist())) == 51
    assert probe.num_bank == 40


@pytest.mark.parametrize(("kind", "possible"), [("knn", False), ("linear", False), ("rankme", True), ("lidar", True)])
def test_effective_ranks_need_no_labels(tmp_path: Path, kind: str, possible: bool) -> None:
    write_images(tmp_path / "images", num_classes=1, per_class=12)
    build(tmp_path / "images" / "class0", tmp_path / "store", workers=1)
    config = small_config(tmp_path / "store", probe={"kind": kind})
    value = Probe(config, ImageStore(tmp_path / "store")).score(config.initial_method().backbone, World())
    assert (value is not None) == possible


def test_rankme_counts_the_directions_that_are_used() -> None:
    torch.manual_seed(0)
    orthogonal = torch.linalg.qr(torch.randn(50, 8)).Q
    assert rankme(orthogonal) == pytest.approx(8, rel=1e-5)
    assert rankme(orthogonal[:, :3] @ torch.randn(3, 8).sign() * 2) <= 3.001
    assert rankme(torch.ones(50, 8)) == pytest.approx(1, rel=1e-5)
    sigma = torch.tensor([3.0, 1.0])
    p = sigma / 4
    assert rankme(torch.diag(sigma)) == pytest.approx(float(torch.exp(-(p * p.log()).sum())), rel=1e-6)


def test_lidar_equals_the_discriminant_written_out_and_sees_collapse() -> None:
    generator = torch.Generator().manual_seed(0)
    n, q, dim = 40, 5, 6
    features = torch.randn(n, 1, dim, generator=generator) * torch.arange(1, dim + 1) + 0.5 * torch.randn(
        n, q, dim, generator=generator
    )
    f = features.double().numpy()
    means = f.mean(1)
    within = sum(np.outer(v - m, v - m) for views, m in zip(f, means, strict=True) for v in views) / (n * (q - 1))
    discriminant = np.linalg.inv(within + 1e-4 * np.eye(dim)) @ np.cov(means.T)
    eigenvalues = np.linalg.eigvals(discriminant).real
    p = eigenvalues / eigenvalues.sum()
    assert lidar(features) == pytest.approx(math.exp(-(p * np.log(p)).sum()), rel=1e-6)
    assert lidar(torch.ones(n, q, dim)) == 1
    one_direction = torch.randn(n, 1, 1, generator=generator) * torch.ones(dim)
    assert lidar(one_direction + 0.1 * torch.randn(n, q, dim, generator=generator)) < 2
