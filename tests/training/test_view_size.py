"""Runs whose views are small at first: the side of a view is a function of the step, and of nothing else."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from ssl_dist.collectives import World
from ssl_dist.config import RunConfig
from ssl_dist.data import SamplePlan
from ssl_dist.data.batches import Batches
from ssl_dist.errors import ConfigError
from ssl_dist.store import ImageStore
from ssl_dist.training import kept_graphs
from ssl_dist.training.kept_graphs import KeptGraphs
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


def test_what_is_measured_has_the_last_side(small_store: Path) -> None:
    config = resolved_config(small_store, augment__start_px=8)
    assert {view.size_px for view in config.augment.views()} == {None}
    side = config.facts.image_shape[0]
    assert config.view_sizes == (side, side, 8, 8)
    with pytest.raises(ConfigError, match="vit_b_16 takes"):
        small_config(small_store, augment__size_px=32, augment__start_px=16, backbone={"name": "vit_b_16"})


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


def test_graphs_are_counted_again_for_larger_views(monkeypatch: pytest.MonkeyPatch, small_store: Path) -> None:
    config = small_config(small_store, augment__start_px=8, batch__keep_graphs="auto")
    first, last = config.augment.views(0.0), config.augment.views()
    monkeypatch.setattr(kept_graphs, "free_memory_bytes", lambda: 1 << 20)
    monkeypatch.setattr(kept_graphs, "num_cores", torch.get_num_threads)
    method = nn.Linear(50, 1, bias=False)
    kept, counts = KeptGraphs(method, config, World()), []
    for policy, rows in ((first, 50), (first, 50), (last, 3000)):
        kept.count_anew_for(policy)
        with kept.counting(8):
            method(torch.ones(rows, 50))
        counts.append(kept.count)
    assert counts == [8, 8, 1]
    fixed = KeptGraphs(method, small_config(small_store, augment__start_px=8, batch__keep_graphs=3), World())
    for policy in (first, last):
        fixed.count_anew_for(policy)
        assert fixed.count == 3
