"""What a run has reached is said with plain names and units, and beside what its initial weights had."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from cluster.commands.pretrain import _next_commands
from ssl_dist.commands.runs import show_summary
from ssl_dist.config import RunConfig
from ssl_dist.report.summary import ProbeCurve, summary
from ssl_dist.training.progress_bar import ProgressBar
from tests.command import Command
from tests.helpers import with_facts

Lines = list[dict[str, Any]]


def curve(tag: str, *values: float) -> Lines:
    """Return the lines of a run whose probe was measured at step 0 and after each ten steps."""
    probed = [{"step": 10 * number, "epoch": float(number), tag: value} for number, value in enumerate(values)]
    numbers = {"train/loss": 4.25148, "speed/images_per_s": 1390.905, "memory/peak_mb": 1091.6}
    last = {"step": 10 * (len(values) - 1), "epoch": float(len(values) - 1), **numbers}
    return [{"step": 0, "epoch": 0.0, "plan/total_steps": 40}, *probed, last]


@pytest.mark.parametrize(
    ("lines", "shown", "says"),
    [
        (curve("probe/knn", 0.5, 0.75), "75.0% (50.0% at step 0)", None),
        (
            curve("probe/knn", 0.5, 0.5),
            "50.0% (50.0% at step 0)",
            "online kNN is no better than at step 0, 50.0% after 50.0%",
        ),
        (
            curve("probe/linear", 0.5, 0.625, 0.375),
            "37.5% (50.0% at step 0, best 62.5% at step 10)",
            "online linear probe is no better than at step 0, 37.5% after 50.0%",
        ),
        (curve("probe/rankme", 20.5, 30.25, 28.0), "rank 28 (rank 20.5 at step 0, best rank 30.25 at step 10)", None),
        (curve("probe/lidar", 20.5, 3.0), "rank 3 (rank 20.5 at step 0)", "online LiDAR is no better than at step 0"),
        (curve("probe/knn", 0.5), "50.0% (at step 0)", None),  # nothing is trained yet
        (curve("probe/knn", 0.5, 0.4)[2:], "40.0%", None),  # an earlier version wrote no step 0
    ],
)
def test_the_probe_is_shown_beside_step_0(lines: Lines, shown: str, says: str | None) -> None:
    probe = ProbeCurve.of(lines)
    assert probe is not None
    assert shown in summary(lines).values()
    verdict = probe.verdict()
    assert verdict is None if says is None else verdict is not None and verdict.startswith(says)


def test_the_table_has_plain_names_and_units() -> None:
    rows = summary([*curve("probe/knn", 0.5, 0.75), {"step": 10, "epoch": 1.0, "my/own": 0.123456789}])
    assert rows["steps"] == "10 of 40, 1 epochs"
    assert (rows["loss"], rows["speed"], rows["peak memory"]) == ("4.251", "1,391 images/s (median)", "1,092 MB")
    assert rows["my/own"] == "0.123457"
    assert [name for name in rows if "/" in name or "_" in name] == ["my/own"]


def test_the_speed_is_that_of_the_whole_run() -> None:
    rates = [
        {"step": step, "epoch": 1.0, "speed/images_per_s": rate} for step, rate in ((1, 90.0), (2, 100.0), (3, 5.0))
    ]
    assert summary(rates)["speed"] == "90 images/s (median)"


def test_a_run_without_a_probe_has_none() -> None:
    lines = [{"step": 10, "epoch": 1.0, "train/loss": 1.0}]
    assert ProbeCurve.of(lines) is None
    assert summary(lines) == {"steps": "10, 1 epochs", "loss": "1"}
    assert summary([]) == {}


def test_a_finished_run_that_its_mirror_restored_has_no_metrics_and_is_shown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    show_summary("a run", tmp_path, {"step": 6}, as_json=True)
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == {"step": 6, "probe_at_step_0": None, "health": []}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    lines = curve("probe/knn", 0.5, 0.25)
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return tmp_path


def test_a_report_shows_it_and_says_so(command: Command, run: Path) -> None:
    done = command("report", run, "--json")
    assert "25.0% (50.0% at step 0)" in done.out + done.err
    assert "online kNN is no better than at step 0" in done.out + done.err
    assert (done.json["probe/knn"], done.json["probe_at_step_0"], done.json["step"]) == (0.25, 0.5, 10)


def test_the_bar_shows_it(run: Path) -> None:
    screen = io.StringIO()
    lines = (run / "metrics.jsonl").read_text()
    (run / "metrics.jsonl").unlink()
    with ProgressBar(run, Console(file=screen, force_terminal=True, width=80)) as bar:
        (run / "metrics.jsonl").write_text(lines)
        bar.update()
    assert "knn 0.5 to 0.25" in screen.getvalue()


def test_the_next_commands_can_be_copied(tmp_path: Path) -> None:
    run, store = tmp_path / "a run of long name", tmp_path / "store"
    config = with_facts(RunConfig.load("simclr-cifar10", {"data.store": str(store)}), 51)
    features = f"its features: ssl-dist evaluate knn '{run}' --train {store} --test "
    assert _next_commands(run, config) == [f"its report: ssl-dist report '{run}'", f"{features}TEST_STORE"]
    (tmp_path / "store-held-out").mkdir()
    assert _next_commands(run, config)[1] == f"{features}{store}-held-out"
