"""NT-Xent's part of the GPU benchmark: it runs on a CPU, and what it calls exact is."""

from __future__ import annotations

import json
import sys

import pytest
import torch

from benchmarks import gpu
from benchmarks.contenders import LOSSES
from benchmarks.cuda import exact, nt_xent
from tests.losses.test_nt_xent import embeddings


@pytest.mark.parametrize("most_rows", [exact.MOST_ROWS, 0])  # all float64, and with our log-sum-exps of the columns
def test_exact_is_dense_autograd_in_float64(monkeypatch: pytest.MonkeyPatch, most_rows: int) -> None:
    monkeypatch.setattr(exact, "MOST_ROWS", most_rows)
    monkeypatch.setattr(exact, "IMAGES", 9)
    monkeypatch.setattr(exact, "CHUNK_BYTES", 8 * 38 * 5)  # five rows at a time
    views = embeddings(19)
    loss = LOSSES["dense autograd"](*views, 0.2)
    errors = exact.Exact.of(*views, 0.2).errors(loss.item(), torch.autograd.grad(loss, views))
    assert set(errors) == ({"gradient", "loss"} if most_rows else {"gradient", "lse_of_ours_at_most"})
    assert max(errors.values()) <= (1e-12 if most_rows else 1e-6)  # ours are float32


def test_each_size_and_contender_has_a_record(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(nt_xent.MOST_ROWS, "dense autograd", 32)
    monkeypatch.setitem(sys.modules, "lightly.loss", None)  # its import fails
    nt_xent.main(rows=[32, 48], device="cpu", calls=1)
    rates, missing, *found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert all(rate > 0 for rate in rates["matmul_tflops"].values())
    assert missing["missing"] == "lightly"
    names = ["ours", "dense autograd", nt_xent.TILES]
    assert [(one["rows"], one["contender"]) for one in found] == [(rows, name) for rows in (32, 48) for name in names]
    assert [one.get("skipped") for one in found] == [None] * 4 + ["more than 32 rows", None]
    for one in found:
        assert "skipped" in one or (one["ms"] > one["forward_ms"] > 0 and one["error"]["gradient"] < 1e-5)


def test_a_part_is_imported_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["gpu", "nt-xent"])
    assert [command.name for command in gpu.app().registered_commands] == ["nt-xent"]
    monkeypatch.setattr(sys, "argv", ["gpu", "--help"])
    assert [command.name for command in gpu.app().registered_commands] == list(gpu.PARTS)
