"""Tests that every method must pass; methods are found by name (test_exactness.py tests gradients over workers)."""

from __future__ import annotations

import importlib
import inspect
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_sample_images
from torch import Tensor, nn

from ssl_dist import methods, store
from ssl_dist.backbones import Backbone
from ssl_dist.collectives import World
from ssl_dist.config import RunConfig
from ssl_dist.data import SamplePlan
from ssl_dist.data.batches import Batch, Batches
from ssl_dist.reading import RECIPE_FOLDER
from ssl_dist.store import ImageStore
from ssl_dist.training.engine import Engine
from ssl_dist.training.exactness import config_of
from ssl_dist.training.health.collapse import FLAT_SHARE, Collapse
from ssl_dist.training.health.embedding import embedding_statistics
from ssl_dist.training.health.rule import PATIENCE
from tests.gloo import GlooPool
from tests.helpers import differences, save, train

Pools = Callable[[int], GlooPool]
NAMES = methods.names()
each_method = pytest.mark.parametrize("name", NAMES)


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build a store of 64 cut-outs of scikit-learn's two photographs, 32 px, in two classes."""
    folder, random = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    for label, photo in enumerate(load_sample_images().images):
        (folder / f"class{label}").mkdir()
        for number in range(32):
            top, left = (int(random.integers(side - 128)) for side in photo.shape[:2])
            cut = Image.fromarray(photo[top : top + 128, left : left + 128]).resize((32, 32))
            cut.save(folder / f"class{label}" / f"{number}.png")
    path = tmp_path_factory.mktemp("stores") / "photos"
    store.build(folder, path, workers=1)
    return path


def on(photos: Path, name: str, num_micro: int = 2, **sections: Any) -> RunConfig:
    """Return the method's recipe with a small network, in float32."""
    config = config_of(name, num_micro)
    data, engine = {"store": str(photos)}, {"precision": "fp32", "zero_stage": 1}
    return RunConfig.from_tree({**config.model_dump(), "data": data, "engine": engine, "probe": None, **sections}, name)


def views_of(config: RunConfig) -> methods.Views:
    plan = SamplePlan(config, ImageStore(config.data.store))
    return Batches(plan, World(), 0, 1).fetch(0).views(0, torch.device("cpu"))


@each_method
def test_every_parameter_is_trained(photos: Path, name: str) -> None:
    """In float64, a gradient that is only rounding error is about 1e-16 of the others."""
    config = on(photos, name, num_micro=1)
    method = config.initial_method().double().train()
    method.before_step(methods.TrainingProgress(50, 100, 50.0))  # past what is frozen at first
    views = views_of(config)
    method.loss(method.embed(methods.Views(tuple(part.double() for part in views.crops), views.labels))).backward()
    gradients = {parameter: value.grad for parameter, value in method.named_parameters()}
    assert all(gradient is not None and torch.isfinite(gradient).all() for gradient in gradients.values())
    sizes = {
        parameter: float(gradient.abs().max()) for parameter, gradient in gradients.items() if gradient is not None
    }
    assert {parameter for parameter, size in sizes.items() if size < 1e-9 * max(sizes.values())} == set()


@each_method
def test_the_papers_loss_is_typed_again(name: str) -> None:
    """The method's own tests have a function ``reference``, and compare the method with it."""
    tests = importlib.import_module(f"tests.methods.test_{name}")
    assert callable(tests.reference)
    assert "reference(" in inspect.getsource(tests).replace("def reference(", "", 1)


@each_method
def test_the_loss_does_not_depend_on_the_order_of_the_batch(photos: Path, name: str) -> None:
    config = on(photos, name, num_micro=1)
    method = config.initial_method().double().train()
    views = views_of(config)
    with torch.no_grad():
        z = method.embed(methods.Views(tuple(part.double() for part in views.crops), views.labels))
        z = z + torch.randn(z.shape, generator=torch.Generator().manual_seed(0), dtype=z.dtype)
        order = torch.randperm(len(z), generator=torch.Generator().manual_seed(1))
        assert method.loss(z[order]).item() == pytest.approx(method.loss(z).item(), rel=1e-12)


@each_method
def test_two_workers_resume_bit_for_bit(gloo: Pools, photos: Path, tmp_path: Path, name: str) -> None:
    """Four steps equal two steps, a checkpoint and two more: weights, optimizer, queues, slow copies, schedules."""
    config = on(photos, name, num_micro=3)
    pool = gloo(2)
    whole = pool.run(train, config, 0, 4)[0]
    first = pool.run(train, config, 0, 2, None, 4)[0]
    save(first.state, tmp_path, 2, config)
    second = pool.run(train, config, 2, 4, tmp_path)[0]
    assert first.losses + second.losses == whole.losses
    for ours, theirs in zip(second.state, whole.state, strict=True):
        assert not differences(ours, theirs)


@each_method
def test_the_loss_of_fixed_images_falls(photos: Path, name: str) -> None:
    """Sixty-four real images are seen 12 times, with other views each time; queues fill up first."""
    optim = {"name": "adamw", "lr": 0.003, "weight_decay": 0.0, "warmup_epochs": 0}
    small = config_of(name, num_micro=8).batch
    batch = {**small.model_dump(), "micro": small.size // 2}
    config = on(photos, name, optim=optim, batch=batch)
    engine = Engine(config.initial_method(), config, World())
    batches = list(Batches(SamplePlan(config, ImageStore(photos)), World(), 0, 12))
    learnt = [engine.step(batch, 0.003).loss for batch in batches][-5:]
    unlearnt = losses_at_rate_0(config, batches)[-5:]
    assert sum(learnt) < 0.97 * sum(unlearnt), (learnt, unlearnt)


@torch.no_grad()
def losses_at_rate_0(config: RunConfig, batches: list[Batch]) -> list[float]:
    """Return the initial weights' losses; queues fill up as in training."""
    method, losses = config.initial_method().train(), []
    for batch in batches:
        views = [batch.views(number, torch.device("cpu")) for number in range(len(batch.micro_batches))]
        method.before_step(batch.progress)
        z = torch.cat([method.embed(part) for part in views])
        losses.append(method.loss(z).item())
        method.after_step(z, batch.progress)
    return losses


class Blind(nn.Module):
    """Backbone that gives all images the same features, plus noise."""

    def __init__(self, backbone: Backbone, noise: float) -> None:
        super().__init__()
        self.dim, self.noise = backbone.dim, noise

    def forward(self, images: Tensor) -> Tensor:
        return 1 + self.noise * torch.randn(len(images), self.dim, dtype=images.dtype)


def judged(start: dict[str, float], statistics: dict[str, float], rows: int) -> str | None:
    """Return what is said of a run that has such statistics when its patience ends."""
    rule = Collapse(0, rows)
    rule.judge({"step": 0, **{f"embedding/{name}": value for name, value in start.items()}})
    now = {f"embedding/{name}": value for name, value in statistics.items()}
    return rule.judge({"step": PATIENCE, "train/loss": 0.0, **now})


@each_method
def test_collapse_is_detected(photos: Path, name: str) -> None:
    """Compare an encoder that gives all images the same features with one of random weights."""
    labelled = 8 if methods.config_of(name).uses_labels == "some" else 0
    config = on(photos, name, num_micro=1, batch={"size": 64, "micro": 64, "labelled": labelled})
    method, views = config.initial_method().train(), views_of(config)
    healthy = method.pairs(method.embed(views))
    if healthy is None:
        pytest.skip("no pairs of views")
    start = embedding_statistics(healthy.detach())
    assert judged(start, start, len(healthy)) is None
    for noise in (0.0, 1e-6, 1e-2):  # which BatchNorm in a head would blow up to a spread of 1
        blind = methods.load(name)(cast(Backbone, Blind(method.backbone, noise)), config.method).train()
        z = torch.cat([blind.embed(views) for _ in range(512 // len(healthy))])  # so many that chance plays no part
        pairs = blind.pairs(z)
        assert pairs is not None
        statistics = embedding_statistics(pairs.detach())
        assert judged(start, statistics, len(z)), statistics
        assert all(math.isfinite(value) for value in statistics.values())


@each_method
def test_the_collapsed_loss_is_the_loss_of_equal_outputs(photos: Path, name: str) -> None:
    config = on(photos, name, num_micro=1)
    method, views = config.initial_method().train(), views_of(config)
    if method.collapsed_loss is None:
        pytest.skip("its loss does not show collapse")
    z = method.embed(views).detach().double()
    alike = z[:1].expand_as(z)
    assert method.loss(alike).item() > FLAT_SHARE * method.collapsed_loss
    assert method.loss(torch.zeros_like(z)).item() == pytest.approx(method.collapsed_loss, rel=1e-5)


@each_method
def test_the_recipe_of_a_method_has_its_command(name: str) -> None:
    text = (RECIPE_FOLDER / f"{name.replace('_', '-')}-cifar10.yaml").read_text()
    assert f"ssl-dist pretrain {name.replace('_', '-')}-cifar10" in text
    assert config_of(name).method.name == name


def test_a_method_changes_nothing_that_it_reads_again(photos: Path) -> None:
    """A method embeds twice, with and without a graph, as with cached gradients."""
    for name in NAMES:
        config = on(photos, name, num_micro=1)
        method, views = config.initial_method().train(), views_of(config)
        before = {key: value.clone() for key, value in method.state_dict().items()}

        def embedded(method: methods.Method = method, views: methods.Views = views) -> Tensor:
            torch.manual_seed(0)
            return method.embed(views)

        with torch.no_grad():
            first = embedded()
            method.loss(first)
        assert torch.allclose(first, embedded().detach(), rtol=0, atol=1e-5), name  # other kernels with a graph
        changed = differences(before, dict(method.state_dict()))
        assert all("running_" in key or "num_batches" in key for key in changed), (name, changed)
