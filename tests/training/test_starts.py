"""Each start of a run notes when it began and ended, with whom and on what; what is damaged is left out."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch

from ssl_dist import __version__
from ssl_dist.collectives import World
from ssl_dist.errors import RunError
from ssl_dist.training import starts
from ssl_dist.training.loop import StopRequests, pretrain
from ssl_dist.training.starts import noted, read_starts
from tests.helpers import resolved_config

ONE = World.current(torch.device("cpu"))


def test_a_run_notes_its_start_and_its_end(small_store: Path, tmp_path: Path) -> None:
    config = resolved_config(small_store, epochs=0.25, probe=None)
    pretrain(config, tmp_path, ONE, StopRequests())
    [start] = read_starts(tmp_path)
    assert start.ended is not None
    assert 0 < start.ended - start.began < 900
    assert (start.workers, start.gpu, start.versions["ssl_dist"]) == (1, None, __version__)
    assert torch.__version__.startswith(start.versions["torch"])
    assert start.cpu
    assert start.memory_bytes > 1 << 28
    pretrain(config, tmp_path, ONE, StopRequests())
    assert len(read_starts(tmp_path)) == 2


def test_an_end_by_an_error_is_noted_and_a_kill_is_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = iter([100.0, 160.0, 300.0, 400.0])
    monkeypatch.setattr(starts.time, "time", lambda: next(ticks))

    def fail() -> None:
        with noted(tmp_path, ONE):
            raise RunError("it fails")

    with pytest.raises(RunError):
        fail()
    killed = noted(tmp_path, ONE)
    killed.__enter__()
    first, second = read_starts(tmp_path)
    assert (first.began, first.ended) == (100, 160)
    assert (second.began, second.ended) == (300, None), "it has written no metrics"
    (tmp_path / "metrics.jsonl").touch()
    os.utime(tmp_path / "metrics.jsonl", (350, 350))
    assert read_starts(tmp_path)[1].ended == 350, "it has trained until then, at least"


def test_a_full_disk_at_the_end_does_not_hide_what_ended_the_run(tmp_path: Path) -> None:
    def fail() -> None:
        with noted(tmp_path, ONE):
            (tmp_path / "starts.jsonl").unlink()
            (tmp_path / "starts.jsonl").mkdir()  # so that nothing can be appended
            raise RunError("it fails")

    with pytest.raises(RunError, match="it fails"):
        fail()


def test_a_line_that_a_kill_cut_off_does_not_swallow_the_next_start(tmp_path: Path) -> None:
    for _ in range(2):
        with noted(tmp_path, ONE):
            pass
        (tmp_path / "starts.jsonl").open("a").write('{"beg')
    assert [start.ended is not None for start in read_starts(tmp_path)] == [True, True]


def test_only_the_first_worker_notes(tmp_path: Path) -> None:
    with noted(tmp_path, World(1, 2)):
        pass
    assert read_starts(tmp_path) == []


def test_damaged_lines_are_left_out(tmp_path: Path) -> None:
    with noted(tmp_path, ONE):
        pass
    whole = (tmp_path / "starts.jsonl").read_text()
    more = ['{"ended": 1}', '{"began": 5}', "7", json.dumps({**json.loads(whole.splitlines()[0]), "new": 1}), '{"beg']
    (tmp_path / "starts.jsonl").write_text("\n".join([*more[:1], whole.strip(), *more[1:]]))
    assert len(read_starts(tmp_path)) == 1
