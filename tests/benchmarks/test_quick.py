"""The guard against slower code names the ratios that fell beyond their noise, and no others."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import typer

from benchmarks import quick
from benchmarks.quick import Pair, main
from ssl_dist.machine import cpu_name

BEFORE = {"a": [1.0, 1.1, 1.2], "b": [2.0, 2.1, 2.2]}


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[float]]:
    """Measured ratios by name, in place of real ones."""
    ratios = {"a": [0.9, 1.0, 0.8], "b": [1.97, 1.98, 1.99], "c": [3.0, 3.1]}
    monkeypatch.setattr(quick, "pairs", lambda folder: [Pair(name, list, list) for name in ratios])
    monkeypatch.setattr(quick, "_ratios", lambda pair, rounds: ratios[pair.name])
    return ratios


def test_a_ratio_fell_where_all_rounds_are_below_all_committed_ones(
    now: dict[str, list[float]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "quick.json"
    file.write_text(json.dumps({cpu_name(): BEFORE, "another": {"a": [9.0, 9.0]}}))
    with pytest.raises(typer.Exit) as ended:
        main(3, write=False, file=file, only=None)
    *lines, last = capsys.readouterr().out.splitlines()
    assert (ended.value.exit_code, last) == (1, "b fell from 2.10 to 1.98 (1.97 to 1.99)")
    assert json.loads(lines[0]) == {"ratio": "a", "now": "0.90 (0.80 to 1.00)", "committed": "1.10 (1.00 to 1.20)"}
    assert json.loads(lines[2]) == {"ratio": "c", "now": "3.05 (3.00 to 3.10)"}
    now["b"] = [2.0, 1.5]
    code(file, 0)
    del now["b"]
    code(file, 1)
    assert capsys.readouterr().out.endswith("\nb was not measured\n")


def code(file: Path, expected: int) -> None:
    with pytest.raises(typer.Exit) as ended:
        main(3, write=False, file=file, only=None)
    assert ended.value.exit_code == expected


def test_ratios_are_committed_for_each_cpu(
    now: dict[str, list[float]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "quick.json"
    main(3, write=False, file=file, only=None)
    assert capsys.readouterr().out.endswith("are committed: --write does it\n")
    file.write_text(json.dumps({cpu_name(): BEFORE, "another": {"a": [9.0, 9.0]}}))
    main(3, write=True, file=file, only="b")
    assert json.loads(file.read_text()) == {
        cpu_name(): {"a": BEFORE["a"], "b": [1.97, 1.98, 1.99]},
        "another": {"a": [9.0, 9.0]},
    }


def test_both_sides_of_a_real_pair_are_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quick, "_LEAST_S", 0.001)
    main(2, write=True, file=tmp_path / "quick.json", only="store")
    [(name, ratios)] = json.loads((tmp_path / "quick.json").read_text())[cpu_name()].items()
    assert name == "256 images of a store: NumPy by ours"
    assert 0 < ratios[0] <= ratios[1] < 10
