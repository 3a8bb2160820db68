"""Evaluation on a GPU gives the CPU's answers: features, neighbours, the online probe and validation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ssl_dist.collectives import World
from ssl_dist.evaluate import extract
from ssl_dist.evaluate.classifier_settings import Distance
from ssl_dist.evaluate.features import extract_view
from ssl_dist.evaluate.knn import knn_answers, nearest
from ssl_dist.evaluate.probe import Probe
from ssl_dist.evaluate.rank import Ranks
from ssl_dist.evaluate.validation import Validation
from ssl_dist.store import ImageStore
from tests.gpu.runs import relative
from tests.helpers import small_config

pytestmark = pytest.mark.gpu
CPU = torch.device("cpu")
FEATURES = 1e-5  # float32 sums in another order, through some ten layers


def test_features_of_images_and_of_views(small_store: Path, device: torch.device) -> None:
    config, store, ids = small_config(small_store, augment__size_px=24), ImageStore(small_store), np.arange(50, 2, -3)
    backbone = config.initial_method().backbone
    here = extract(backbone, store, ids, CPU, config), extract_view(backbone, store, ids, CPU, config, seed=1, number=2)
    backbone = backbone.to(device)
    there = (
        extract(backbone, store, ids, device, config),
        extract_view(backbone, store, ids, device, config, seed=1, number=2),
    )
    for ours, theirs in zip(there, here, strict=True):
        assert ours.device.type == device.type
        assert relative(ours, theirs) <= FEATURES


@pytest.mark.parametrize("distance", ["cosine", "euclidean"])
def test_neighbours_and_their_votes(distance: Distance, device: torch.device) -> None:
    """Both sum in float64, and equal rows of the bank keep the order of their numbers."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 7, (3000,), generator=generator)
    centres = torch.randn(7, 24, generator=generator)
    bank = centres[labels] + torch.randn(3000, 24, generator=generator) * (1 + labels[:, None] / 4)
    bank[2000:2040] = bank[17]
    queries = torch.cat([bank[17:18], torch.randn(700, 24, generator=generator)])
    here = nearest(bank, queries, 20, distance)
    there = nearest(bank.to(device), queries.to(device), 20, distance)
    assert torch.equal(there[1].cpu(), here[1])
    assert (there[0].cpu() - here[0]).abs().max() <= 1e-12 * here[0].abs().max()
    theirs = knn_answers(bank, labels, queries, k=20, temperature=0.1, distance=distance)
    ours = knn_answers(bank.to(device), labels.to(device), queries.to(device), k=20, temperature=0.1, distance=distance)
    assert (ours.classes == theirs.classes).all()
    assert np.abs(ours.confidence - theirs.confidence).max() <= 1e-9


@pytest.mark.parametrize("kind", ["knn", "linear", "rankme", "lidar"])
def test_the_online_probe(kind: str, small_store: Path, device: torch.device) -> None:
    """Compare accuracies of 12 images, of which none lies on a border, and effective ranks of rounded features."""
    config = small_config(small_store, probe={"kind": kind, "bank": 30, "queries": 12, "k": 3})
    probe, backbone = Probe(config, ImageStore(small_store)), config.initial_method().backbone
    expected = probe.score(backbone, World())
    found = probe.score(backbone.to(device), World(0, 1, device))
    assert found == pytest.approx(expected, rel=0 if kind == "knn" else 1e-3)


def test_measures_without_labels(device: torch.device) -> None:
    generator = torch.Generator().manual_seed(0)
    whole = torch.randn(400, 24, generator=generator) * torch.linspace(0.1, 3, 24)
    seen = whole[:, None] + 0.3 * torch.randn(400, 5, 24, generator=generator)
    here, there = Ranks.of(whole, seen), Ranks.of(whole.to(device), seen.to(device))
    assert list(there._asdict().values()) == pytest.approx(list(here._asdict().values()), rel=1e-9)  # float64


def test_validation_of_a_classifier(small_store: Path, tmp_path: Path, device: torch.device) -> None:
    labels = ImageStore(small_store).labels
    numbers = np.arange(len(labels))
    np.save(tmp_path / "train.npy", np.where(numbers % 17 < 12, labels, -1))
    np.save(tmp_path / "held.npy", np.where(numbers % 17 >= 13, labels, -1))
    settings: dict[str, Any] = {
        "method": {"name": "supervised", "num_classes": 3},
        "augment": {"recipe": "weak"},
        "data__label_file": str(tmp_path / "train.npy"),
        "probe": {"kind": "validation", "label_file": str(tmp_path / "held.npy")},
    }
    config = small_config(small_store, **settings)
    method = config.initial_method()
    validation = Validation(config, ImageStore(small_store))
    expected = validation.measure(method, World())
    found = validation.measure(method.to(device), World(0, 1, device))
    assert found.loss == pytest.approx(expected.loss, rel=FEATURES)
    assert found.accuracy == expected.accuracy
