"""Runs whose views are small at first: the side of a view follows from the step and the run's length alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from cluster.prepare import _what_follows_length
from ssl_dist.checkpoint import State
from ssl_dist.collectives import World
from ssl_dist.config import ResolvedConfig, RunConfig
from ssl_dist.data import SamplePlan
from ssl_dist.data.batches import Batches
from ssl_dist.encoder import load_encoder
from ssl_dist.errors import ConfigError
from ssl_dist.store import ImageStore
from ssl_dist.training import kept_graphs
from ssl_dist.training.engine import Engine
from tests.gloo import GlooPool
from tests.helpers import differences, resolved_config, save, small_config, train

Pools = Callable[[int], GlooPool]
STEPS, SWITCH = 6, 4  # of a share of 0.6, which no step begins with


def growing(store: Path) -> RunConfig:
    return small_config(store, augment__start_px=8, augment__start_share=0.6)


def test_the_views_of_a_step_are_those_of_a_run_with_its_side_throughout(small_store: Path) -> None:
    store, cpu = ImageStore(small_store), torch.device("cpu")

    def batches(config: RunConfig) -> Batches:
        return Batches(SamplePlan(config, store), World(), 0, STEPS)

    small, whole = batches(small_config(small_store, augment__size_px=8)), batches(small_config(small_store))
    for step in range(STEPS):
        [crops] = batches(growing(small_store)).fetch(step).views(1, cpu).crops
        [expected] = (small if step < SWITCH else whole).fetch(step).views(1, cpu).crops
        assert torch.equal(crops, expected), step
    assert small.fetch(0).views(0, cpu).crops[0].shape[-1] == 8


def test_what_is_measured_has_the_last_side(small_store: Path, tmp_path: Path) -> None:
    config = resolved_config(small_store, augment__start_px=8)
    assert {view.size_px for view in config.augment.views()} == {None}
    side = config.facts.image_shape[0]
    assert config.view_sizes == (side, side)
    save(State(config.initial_method().state_dict(), {}), tmp_path, 1, config)
    assert load_encoder(tmp_path).image_size == side


@pytest.mark.parametrize("stopped", [SWITCH - 1, SWITCH, SWITCH + 1])
def test_a_run_resumes_with_the_same_bits_around_the_switch(
    gloo: Pools, small_store: Path, tmp_path: Path, stopped: int
) -> None:
    config, pool = growing(small_store), gloo(2)
    whole = pool.run(train, config, 0, STEPS)[0]
    begun = pool.run(train, config, 0, stopped, None, STEPS)[0]
    save(begun.state, tmp_path, stopped, config)
    rest = pool.run(train, config, stopped, STEPS, tmp_path)[0]
    assert begun.losses + rest.losses == whole.losses
    assert not differences(rest.state.model, whole.state.model)
    assert not differences(rest.state.optimizer, whole.state.optimizer)


def test_the_number_of_workers_changes_rounding_alone(gloo: Pools, small_store: Path) -> None:
    """The bound is that of test_elastic.py."""
    alone, two, three = (gloo(size).run(train, growing(small_store), 0, STEPS)[0].losses for size in (1, 2, 3))
    for losses in (two, three):
        assert max(abs(a - b) / b for a, b in zip(losses, alone, strict=True)) <= 1e-5


def test_graphs_are_counted_for_the_largest_views(monkeypatch: pytest.MonkeyPatch, small_store: Path) -> None:
    """Views of half the side have graphs of about a quarter of the size, and a run must not run out of memory later."""
    monkeypatch.setattr(kept_graphs, "num_cores", torch.get_num_threads)
    monkeypatch.setattr(kept_graphs, "free_memory_bytes", lambda: 3 << 20)

    def counted(**augment: int) -> int | None:
        config = small_config(small_store, **augment, batch__keep_graphs="auto", batch__size=40, batch__micro=4)
        engine, counts = Engine(config.initial_method(), config, World()), []
        for batch in Batches(SamplePlan(config, ImageStore(small_store)), World(), 0, 2):
            engine.step(batch, 0.0)
            counts.append(engine._graphs.count)
        assert counts[0] == counts[1]
        return counts[0]

    small, large, growing = counted(augment__size_px=8), counted(), counted(augment__start_px=8)
    assert large is not None
    assert small is not None
    assert small > large > 1
    assert growing == pytest.approx(large, abs=1)


def test_a_batch_tells_how_much_larger_later_views_are(small_store: Path) -> None:
    batches = Batches(SamplePlan(growing(small_store), ImageStore(small_store)), World(), 0, STEPS)
    side = ImageStore(small_store).image_shape[0]
    assert [batches.fetch(step).growth for step in (0, SWITCH - 1, SWITCH)] == [(side / 8) ** 2, (side / 8) ** 2, 1]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"augment__start_px": 16, "augment__size_px": 16}, r"augment.start_px 16: views have 16 px later"),
        ({"augment__start_share": 0.4}, "augment.start_share 0.4 without augment.start_px"),
        ({"augment__start_px": 8, "augment__start_share": 1}, "augment.start_share"),
        (
            {"augment": {"recipe": "swav-small", "start_px": 8}, "method": {"name": "swav"}},
            "augment.start_px with augment.recipe swav-small, whose views have several sizes",
        ),
        (
            {"augment": {"recipe": "none", "size_px": 16, "start_px": 9}, "method": {"name": "denoising"}},
            "one has 9 px: set augment.start_px to 8",
        ),
        ({"augment__size_px": 32, "augment__start_px": 16, "backbone": {"name": "vit_b_16"}}, "vit_b_16 takes"),
    ],
    ids=["not smaller", "a share alone", "all steps", "several sizes", "a map", "one size"],
)
def test_what_cannot_be_is_refused(small_store: Path, settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        small_config(small_store, **settings)


def test_stored_images_are_as_large_as_the_last_views(small_store: Path) -> None:
    with pytest.raises(ConfigError, match=r"augment.start_px 64: views have \d+ px later"):
        resolved_config(small_store, augment__start_px=64)


@pytest.mark.parametrize(("step", "is_refused"), [(6, False), (7, True), (9, True)])
def test_a_longer_run_must_have_had_the_same_small_views(small_store: Path, step: int, is_refused: bool) -> None:
    """Of 10 steps 6 have small views, of 20 steps 12."""

    def of_steps(steps: int) -> ResolvedConfig:
        settings = {"augment__start_px": 8, "augment__start_share": 0.6, "optim__schedule": "constant"}
        return resolved_config(small_store, **settings, epochs=steps * 12 / 51 + 1e-6)

    assert (of_steps(10).small_steps, of_steps(20).small_steps) == (6, 12)
    follows = _what_follows_length(of_steps(10), of_steps(20), step)
    assert follows == ("the size of views (augment.start_px 8)" if is_refused else "")
