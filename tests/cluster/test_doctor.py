"""`ssl-dist doctor` on workers that Ray Train started."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from typer.testing import CliRunner

from cluster import doctor
from cluster.cli import app
from ssl_dist import methods
from ssl_dist.errors import ClusterError, ConfigError, SslDistError
from ssl_dist.exactness import Finding


def test_exact_prints_the_gradient_ratio_of_every_method(local_ray: None) -> None:
    result = CliRunner().invoke(app, ["doctor", "--exact", "--workers", "2", "--json"])
    assert result.exit_code == 0, result.output
    found = json.loads(result.output.splitlines()[-1])
    assert found["exact"] is True
    assert {one["method"] for one in found["findings"]} == set(methods.names())
    assert all(one["exact"] and one["ratio"] == pytest.approx(1, abs=1e-5) for one in found["findings"])
    assert {one["workers"] for one in found["findings"]} == {1, 2}


@pytest.mark.parametrize("error", [0.5, math.nan])
def test_a_gradient_that_depends_on_the_workers_is_exit_code_1(monkeypatch: pytest.MonkeyPatch, error: float) -> None:
    finding = Finding("simclr", "step, ZeRO 1, float32", 2, 0.5, error, 1e-4)
    monkeypatch.setattr(doctor, "exactness", lambda _: [finding])
    result = CliRunner().invoke(app, ["doctor", "--exact", "--json"])
    assert result.exit_code == 1
    assert "over 0.0001" in result.output
    found = json.loads(result.output.splitlines()[-1])
    assert found["exact"] is False
    assert found["findings"][0]["error"] == (None if math.isnan(error) else error)


def test_a_worker_that_fails_is_named(local_ray: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_examine", _fail)
    result = CliRunner().invoke(app, ["doctor", "--exact", "--workers", "1"])
    assert isinstance(result.exception, SslDistError)
    assert str(result.exception) == "the gradients could not be compared: worker 0 failed (no such device)"
    assert result.exception.exit_code == 1


def _fail(settings: dict[str, Any]) -> None:
    raise ValueError("no such device")


def test_more_workers_than_there_is_room_for_are_refused(local_ray: None) -> None:
    result = CliRunner().invoke(app, ["doctor", "--exact", "--workers", "999"])
    assert isinstance(result.exception, ClusterError)
    assert "have room for 4" in str(result.exception)


def test_a_check_must_be_chosen() -> None:
    result = CliRunner().invoke(app, ["doctor"])
    assert isinstance(result.exception, ConfigError)
