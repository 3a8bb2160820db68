"""`ssl-dist doctor` on workers that Ray Train started."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cluster import doctor
from cluster.cli import app
from ssl_dist.errors import ClusterError, ConfigError
from ssl_dist.exactness import STAGES, Finding


def test_exact_prints_the_gradient_ratio_of_every_method(local_ray: None, tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["doctor", "--exact", "--workers", "2", "--shared", str(tmp_path), "--json"])
    assert result.exit_code == 0, result.output
    found = json.loads(result.output.splitlines()[-1])["exact"]
    assert [(one["part"], one["workers"]) for one in found] == [("loss", 1), ("loss", 2)] + [("step", 2)] * len(STAGES)
    assert all(one["is_exact"] and one["ratio"] == pytest.approx(1, abs=1e-5) for one in found)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("error", [0.5, math.nan])
def test_a_gradient_that_depends_on_the_workers_is_exit_code_1(monkeypatch: pytest.MonkeyPatch, error: float) -> None:
    finding = Finding("simclr", "step", 2, 1, 0.5, error, 1e-4)
    monkeypatch.setattr(doctor, "exactness", lambda *_: [finding])
    result = CliRunner().invoke(app, ["doctor", "--exact"])
    assert result.exit_code == 1
    assert "over 0.0001" in result.output


def test_more_workers_than_there_is_room_for_are_refused(local_ray: None, tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["doctor", "--exact", "--workers", "999", "--shared", str(tmp_path)])
    assert isinstance(result.exception, ClusterError)
    assert "have room for 4" in str(result.exception)
    assert list(tmp_path.iterdir()) == []


def test_a_check_must_be_chosen() -> None:
    result = CliRunner().invoke(app, ["doctor"])
    assert isinstance(result.exception, ConfigError)
