"""Graphs that are kept: the same bits, whatever their number, and no more of them than fit into memory."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from ssl_dist import machine
from ssl_dist.collectives import World
from ssl_dist.data import SamplePlan
from ssl_dist.data.batches import Batches
from ssl_dist.store import ImageStore
from ssl_dist.training import kept_graphs
from ssl_dist.training.engine import Engine
from ssl_dist.training.kept_graphs import KeptGraphs
from tests.gloo import GlooPool
from tests.helpers import differences, grid, small_config, train

Pools = Callable[[int], GlooPool]


DROPOUT = {"backbone": {"name": "convnet", "dropout": 0.3}}


@pytest.mark.parametrize(("network", "workers", "zero_stage"), grid(({}, DROPOUT), (1, 2, 3), (0, 1, 2, 3)))
def test_their_number_changes_no_bit(
    gloo: Pools, small_store: Path, network: dict[str, Any], workers: int, zero_stage: int
) -> None:
    """Five micro-batches: three workers have two slots each, one of which is empty."""
    config = small_config(small_store, engine__zero_stage=zero_stage, batch__size=20, **network)
    found = []
    for number in (0, 1, "auto"):
        config = config.model_copy(update={"batch": config.batch.model_copy(update={"keep_graphs": number})})
        found.append(gloo(workers).run(train, config, 0, 2)[0])
    for trace in found[1:]:
        assert trace[:2] == found[0][:2]
        for ours, theirs in zip(trace.state, found[0].state, strict=True):
            assert not differences(ours, theirs)


def counted(monkeypatch: pytest.MonkeyPatch, free: int, workers: int = 1, slots: int = 8) -> int | None:
    """Return how many graphs of 100 bytes are kept of ``slots``, where the machine has ``free`` bytes."""
    used = iter([1000, 1100])
    monkeypatch.setattr(kept_graphs, "resident_bytes", lambda: next(used))
    monkeypatch.setattr(kept_graphs, "free_memory_bytes", lambda: free)
    monkeypatch.setattr(KeptGraphs, "_least", lambda self, number: number)
    kept = KeptGraphs(small_config(Path("none"), batch__keep_graphs="auto"), World(0, workers))
    assert [kept.keeps(slot) for slot in range(3)] == [True, False, False], "the first is measured"
    with kept.measured(slots):
        pass
    assert kept.count is not None
    assert [kept.keeps(slot) for slot in range(slots)] == [slot < kept.count for slot in range(slots)]
    return kept.count


def test_as_many_are_kept_as_half_of_the_free_memory_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Room is left for the graph of a micro-batch that is embedded again."""
    assert [counted(monkeypatch, free) for free in (0, 399, 400, 1000, 10_000)] == [1, 1, 2, 5, 8]
    assert counted(monkeypatch, 1000, workers=2) == 2
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "1")
    assert counted(monkeypatch, 1000, workers=2) == 5, "the other worker is on another machine"


def test_workers_agree_on_the_least_number(gloo: Pools) -> None:
    assert gloo(2).run(_least_of) == [3, 3]


def _least_of(rank: int, size: int) -> int:
    kept = KeptGraphs(small_config(Path("none"), batch__keep_graphs="auto"), World(rank, size))
    return kept._least(3 + rank)


def test_each_micro_batch_is_embedded_once_and_its_graph_ends_with_the_step(small_store: Path) -> None:
    config = small_config(small_store, batch__keep_graphs="auto", batch__size=16)
    engine = Engine(config.initial_method(), config, World())
    graphs = list[torch.Tensor]()
    engine.method.register_forward_hook(lambda module, inputs, z: graphs.append(z))
    for batch in Batches(SamplePlan(config, ImageStore(small_store)), World(), 0, 2):
        engine.step(batch, 0.1)
    assert len(graphs) == 8, "four micro-batches in each of two steps"
    for z in graphs:
        with pytest.raises(RuntimeError, match="second time"):
            z.sum().backward()


def test_a_control_group_limits_what_is_free(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Each group above the process's own has a limit too; memory that caches files can be freed."""
    whole = machine.free_memory_bytes()
    assert 0 < whole <= machine.memory_bytes()
    for folder, limit, used, cached in (("", "max", 700, 0), ("outer", "1000", 900, 500), ("outer/own", "5000", 1, 0)):
        (tmp_path / folder).mkdir(exist_ok=True)
        for name, text in (("max", limit), ("current", used), ("stat", f"anon 3\ninactive_file {cached}\nfile 9")):
            (tmp_path / folder / f"memory.{name}").write_text(f"{text}\n")
    monkeypatch.setattr(machine, "_GROUPS", tmp_path)
    for own, free in (("0::/", whole), ("0::/outer", 600), ("1:cpu:/x\n0::/outer/own\n", 600), ("0::/gone", whole)):
        monkeypatch.setattr(machine, "_OWN_GROUP", tmp_path / "cgroup")
        (tmp_path / "cgroup").write_text(own)
        found = machine.free_memory_bytes()
        assert found == free or (free == whole and found > 10_000)
