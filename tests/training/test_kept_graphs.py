"""Graphs that are kept: the same bits, whatever their number, and no more of them than fit into memory."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

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
BF16 = {"engine__precision": "bf16", "engine__memory_format": "channels_last"}


@pytest.mark.parametrize(("network", "workers", "zero_stage"), grid(({}, DROPOUT, BF16), (1, 2, 3), (0, 1, 2, 3)))
def test_their_number_changes_no_bit(
    gloo: Pools, small_store: Path, network: dict[str, Any], workers: int, zero_stage: int
) -> None:
    """Five micro-batches: three workers have two slots each, one of which is empty."""
    config = small_config(small_store, engine__zero_stage=zero_stage, batch__size=20, **network)
    found = []
    for number in (0, 1, 2, "auto"):
        config = config.model_copy(update={"batch": config.batch.model_copy(update={"keep_graphs": number})})
        found.append(gloo(workers).run(train, config, 0, 2)[0])
    for trace in found[1:]:
        assert trace[:2] == found[0][:2]
        for ours, theirs in zip(trace.state, found[0].state, strict=True):
            assert not differences(ours, theirs)


def counted(
    monkeypatch: pytest.MonkeyPatch, free: int, workers: int = 1, slots: int = 8, **settings: Any
) -> int | None:
    """Return how many graphs of 400 bytes are kept of ``slots``, where the machine has ``free`` bytes.

    The method has 200 bytes of weights, a gradient of as many, and as many again of momentum.
    """
    method = nn.Linear(50, 1, bias=False)
    monkeypatch.setattr(kept_graphs, "free_memory_bytes", lambda: free)
    monkeypatch.setattr(kept_graphs, "num_cores", torch.get_num_threads)
    monkeypatch.setattr(KeptGraphs, "_least", lambda self, number: number)
    config = small_config(Path("none"), **{"batch__keep_graphs": "auto", **settings})
    kept = KeptGraphs(method, config, World(0, workers))
    with kept.counting(slots):
        x = torch.ones(2, 50)
        assert method(x).requires_grad, "saves x, and not the weights"
    return kept.count


def test_as_many_are_kept_as_half_of_the_free_memory_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Room is left for gradients and momentum, and for what a backward pass takes."""
    for free, number in ((0, 1), (800, 1), (2399, 1), (2400, 2), (3200, 3), (20_000, 8)):
        assert counted(monkeypatch, free) == number, free
    assert counted(monkeypatch, 2 * 2400, workers=2) == 2
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "1")
    assert counted(monkeypatch, 2400, workers=2) == 2, "the other worker is on another machine"
    assert counted(monkeypatch, 2400, optim__name="adamw", optim__lr=1e-4) == 1, "it keeps more"
    assert [counted(monkeypatch, 0, batch__keep_graphs=number) for number in (0, 3)] == [0, 3]
    assert counted(monkeypatch, 10**9, engine__zero_stage=3) == 0


def test_runs_that_leave_cores_to_others_leave_memory_to_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """The one-worker trials of a sweep begin together, and do not know of each other."""
    cores = torch.get_num_threads()
    assert counted(monkeypatch, 3200) == 3
    counting = KeptGraphs(nn.Linear(1, 1), small_config(Path("none")), World())
    monkeypatch.setattr(kept_graphs, "free_memory_bytes", lambda: 8000)
    alone = counting._room()
    monkeypatch.setattr(kept_graphs, "num_cores", lambda: 4 * cores)
    assert counting._room() == pytest.approx(alone / 4, rel=0.05)


def test_the_first_slot_is_measured(small_store: Path) -> None:
    kept = KeptGraphs(nn.Linear(1, 1), small_config(small_store, batch__keep_graphs="auto"), World())
    assert (kept.count, [kept.keeps(slot) for slot in range(3)]) == (None, [True, False, False])
    with kept.counting(3):
        pass
    assert [kept.keeps(slot) for slot in range(3)] == [True, True, True]


def test_workers_agree_on_the_least_number(gloo: Pools) -> None:
    assert gloo(2).run(_least_of) == [3, 3]


def _least_of(rank: int, size: int) -> int:
    kept = KeptGraphs(nn.Linear(1, 1), small_config(Path("none")), World(rank, size))
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


@pytest.mark.parametrize(
    ("controllers", "limit", "used", "cached"),
    [("", "max", "current", "inactive_file"), ("memory", "limit_in_bytes", "usage_in_bytes", "total_inactive_file")],
    ids=["version 2", "version 1"],
)
def test_a_control_group_limits_what_is_free(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, controllers: str, limit: str, used: str, cached: str
) -> None:
    """Each group above the process's own has a limit too; memory that caches files can be freed."""
    assert 0 < machine.free_memory_bytes() <= machine.memory_bytes()
    root = tmp_path / controllers
    none = "max" if not controllers else str(2**63 - 4096)
    for folder, most, now, files in (("", none, 700, 0), ("outer", "1000", 900, 500), ("outer/own", "5000", 1, 0)):
        (root / folder).mkdir(exist_ok=True, parents=True)
        for name, text in ((limit, most), (used, now), ("stat", f"anon 3\n{cached} {files}\nfile 9")):
            (root / folder / f"memory.{name}").write_text(f"{text}\n")
    own = tmp_path / "own"
    monkeypatch.setattr(machine, "_GROUPS", tmp_path)
    monkeypatch.setattr(machine, "_OWN_GROUPS", own)
    for groups in (f"0:{controllers}:/outer", f"1:cpu:/x\n0:{controllers}:/outer/own\n"):
        own.write_text(groups)
        assert machine.free_memory_bytes() == 600
    for groups in (f"0:{controllers}:/", f"0:{controllers}:/gone", "3:cpu:/outer"):
        own.write_text(groups)
        assert machine.free_memory_bytes() > 10_000
