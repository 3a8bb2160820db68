"""What is said of long work where no terminal shows a bar, and what is waited for where one does."""

from __future__ import annotations

import io
import json
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from ssl_dist import progress
from ssl_dist.commands import console as consoles
from ssl_dist.commands.console import image_bar, waiting
from ssl_dist.progress import Pace, ProgressLines
from ssl_dist.training.progress_bar import ProgressBar
from tests.command import Command
from tests.store.held import wait_until


@pytest.fixture
def log() -> Console:
    return Console(file=io.StringIO(), width=40)


def lines_of(console: Console) -> list[str]:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue().splitlines()


def screen() -> Console:
    return Console(file=io.StringIO(), force_terminal=True, width=100)


def test_the_newest_text_is_repeated_while_nothing_calls(log: Console, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "_EVERY_S", 0.01)
    with ProgressLines(log, "waiting for a worker") as lines:
        wait_until(lambda: len(lines_of(log)) >= 3)
        assert lines_of(log)[:3] == ["waiting for a worker", *2 * ["waiting for a worker (unchanged for 0:00:00)"]]
        lines.update("step 1 of 2, which is a text of more than forty columns")
        wait_until(lambda: "step 1 of 2, which is a text of more than forty columns" in lines_of(log))
    number = len(lines_of(log))
    time.sleep(0.05)
    assert len(lines_of(log)) == number, "it has ended"


def test_what_is_reached_is_said_at_once_and_the_rest_every_30_s(log: Console) -> None:
    with ProgressLines(log, "starting") as lines:
        lines.update("step 1")
        lines.update("step 2, knn 0.5", reached=True)
    assert lines_of(log) == ["step 2, knn 0.5"]
    assert progress._EVERY_S == 30


def test_a_terminal_gets_no_lines() -> None:
    to = screen()
    with ProgressLines(to, "starting") as lines:
        lines.update("step 2", reached=True)
    assert lines_of(to) == []


def test_the_pace_counts_what_was_done_since_it_began(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([100.0, 110.0, 120.0])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    pace = Pace()
    assert pace(1000, 4000) == (0.0, ""), "a build that goes on did these before"
    assert pace(2000, 4000) == (100.0, "0:00:20 left")
    assert pace(4000, 4000) == (150.0, "0:00:00 left")


def write(run: Path, *lines: dict[str, float]) -> None:
    with (run / "metrics.jsonl").open("a") as file:
        file.writelines(json.dumps(line) + "\n" for line in lines)


def test_a_run_says_a_line_at_each_probe_and_checkpoint(tmp_path: Path, log: Console) -> None:
    with ProgressBar(tmp_path, log) as bar:
        bar.update()
        write(tmp_path, {"step": 0, "plan/total_steps": 20}, {"step": 0, "probe/knn": 0.25})
        bar.update()
        write(tmp_path, {"step": 5, "train/loss": 3.5, "speed/images_per_s": 99.5})
        bar.update()
        (tmp_path / "checkpoints" / "step-00000005").mkdir(parents=True)
        bar.update()
        (tmp_path / "checkpoints" / "step-00000007").mkdir()
        bar.update()
        write(tmp_path, {"step": 10, "probe/knn": 0.5})
        bar.update()
    first, saved, ahead, probed = lines_of(log)
    assert first == "step 0 of 20, knn 0.25"
    assert saved.startswith("step 5 of 20, loss 3.5  knn 0.25  100 img/s, ")
    assert saved.endswith(" left, checkpoint step-00000005")
    assert ahead.startswith("step 7 of 20, ")
    assert ahead.endswith(" left, checkpoint step-00000007")
    assert probed.startswith("step 10 of 20, loss 3.5  knn 0.25 to 0.5 ")


def test_a_resumed_run_is_waited_for_and_its_pace_is_that_of_its_new_steps(
    tmp_path: Path, log: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter([3600.0, 3602.0])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock, 3602.0))
    write(tmp_path, {"step": 0, "plan/total_steps": 20, "probe/knn": 0.25}, {"step": 10, "probe/knn": 0.5})
    write(tmp_path, {"step": 15, "train/loss": 9.0})
    with ProgressBar(tmp_path, log) as bar:
        bar.update()
        kept = (tmp_path / "metrics.jsonl").read_text().splitlines(keepends=True)[:2]
        (tmp_path / "new").write_text("".join(kept))
        (tmp_path / "new").rename(tmp_path / "metrics.jsonl")  # as a worker does that resumes from step 10
        bar.update()
        assert lines_of(log) == [], "nothing is new yet"
        for step in (11, 12):
            write(tmp_path, {"step": step, "train/loss": 3.0, "probe/knn": 0.75})
            bar.update()
    assert lines_of(log) == [
        "step 11 of 20, loss 3  knn 0.25 to 0.75",
        "step 12 of 20, loss 3  knn 0.25 to 0.75, 0:00:16 left",
    ]


def test_a_bar_without_a_total_says_what_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    to = screen()
    with ProgressBar(tmp_path, to) as bar:
        bar.update()
        (tmp_path / "worker-0.log").write_text("worker 0: process 1")
        bar.update()
    text = to.file.getvalue()  # type: ignore[attr-defined]
    assert 0 < text.index("waiting for a worker") < text.index("waiting for the first step")
    monkeypatch.setattr(consoles, "errors", to := screen())
    with image_bar("building", "listing files") as images:
        time.sleep(0.2)  # until the bar is drawn
        images(5, 10)
    text = to.file.getvalue()  # type: ignore[attr-defined]
    assert 0 < text.index("building: listing files") < text.index("5/10")


@pytest.mark.parametrize("title", ["building", "appending", "merging", "embedding", "verifying"])
def test_images_are_counted_in_lines_with_rate_and_time_left(
    title: str, log: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(consoles, "errors", log)
    monkeypatch.setattr(progress, "_EVERY_S", 0.01)
    with image_bar(title, "listing files") as bar:
        wait_until(lambda: f"{title}: listing files" in lines_of(log))
        bar(1000, 4000)
        wait_until(lambda: f"{title}: 1,000 of 4,000 images" in lines_of(log))
        bar(2000, 4000)
        wait_until(lambda: " images/s, 0:00:0" in lines_of(log)[-1])


def test_each_check_of_the_doctor_is_a_line(log: Console) -> None:
    with waiting("reaching Ray", log) as now:
        now("asking the nodes")
        now("dry run of 20 steps")
    assert lines_of(log) == ["asking the nodes", "dry run of 20 steps"]


@pytest.mark.parametrize(
    "call", [lambda s: ("store", "verify", s), lambda s: ("store", "build", s, f"{s}-again", "--workers", 1)]
)
def test_short_commands_say_no_more_than_before(
    call: Callable[[Path], tuple[object, ...]], command: Command, small_store: Path
) -> None:
    assert command(*call(small_store)).err == ""
