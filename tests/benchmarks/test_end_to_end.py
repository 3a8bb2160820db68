"""The benchmark of whole training steps measures each loop in a process of its own, and names what cannot be."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from benchmarks import end_to_end
from benchmarks.cuda.end_to_end import Net


@pytest.mark.slow  # five processes import torch and DeepSpeed
def test_each_loop_is_measured_and_the_others_are_named(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "lightly.transforms", None)  # its import fails
    monkeypatch.setitem(end_to_end.NETS, "tiny", Net("resnet8", "half", 32, 8, 4, 24))
    monkeypatch.setitem(end_to_end.LOOPS, "ours, 1 worker", (end_to_end._ours, 0, 0))  # no thread
    loops = "ours, 1 worker;ours, 2 workers;bare loop;lightly, our views"
    end_to_end.main("tiny", loops, seconds=0.01, rounds=2, docs=tmp_path)
    missing, failed, ours, bare = map(json.loads, capsys.readouterr().out.splitlines())
    assert missing == {"net": "tiny", "loop": "lightly, our views", "missing": "lightly"}
    assert (failed["loop"], failed["failed"]) == (
        "ours, 1 worker",
        "RuntimeError: set_num_threads expects a positive integer",
    )
    for one in (ours, bare):
        assert len(one["all_images_per_s"]) == 2
        assert one["images_per_s"] > 0
        assert 1e8 < one["peak_bytes"] < 1e10
    text = (tmp_path / "performance.md").read_text()
    assert text.count("| ours, 2 workers |") == text.count("| bare loop |") == 1
