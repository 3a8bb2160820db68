"""`ssl-dist doctor`: the nodes' answers, the trials of workers, and the complaints about both."""

from __future__ import annotations

import json
import math
import time
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from cluster.doctor import workers
from cluster.doctor.complaints import find_complaints
from cluster.doctor.nodes import Node, describe_this_node
from ssl_dist import __version__
from ssl_dist.commands.main import app
from ssl_dist.errors import RunError
from ssl_dist.training.exactness import Finding
from tests.helpers import RECIPE


def invoke(*arguments: object) -> Any:
    return CliRunner().invoke(app, ["doctor", *map(str, arguments)])


@pytest.mark.slow  # make test-cluster runs the command on three hosts
@pytest.mark.parametrize("exact", [False, True])
def test_everything_of_a_healthy_machine(local_ray: None, small_store: Path, tmp_path: Path, exact: bool) -> None:
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    settings = ("--set", f"data.store={small_store}", "--workers", 2, "--storage", tmp_path / "shared")
    settings += ("--exact",) * exact
    started = time.monotonic()
    result = invoke(tmp_path / "recipe.yaml", *settings, "--json")
    lasted_s = time.monotonic() - started
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found["healthy"] is True
    [node] = found["nodes"]
    assert node["versions"]["ssl_dist"] == __version__
    assert node["devices"]["CPU"] == 4
    assert abs(node["clock_s"]) < lasted_s, "one machine has one clock, read between the question and the answer"
    assert node["storage_seen"]
    assert min(node["disk_free"], node["shared_memory"]) > 1e6
    assert 0 < min(node["write_rate"], node["read_rate"]) <= max(node["write_rate"], node["read_rate"]) < math.inf
    assert found["link"]["workers"] == 2
    assert 0 < found["link"]["latency_s"] < math.inf
    assert 0 < found["link"]["rate"] < math.inf
    assert {one["method"] for one in found["findings"]} == ({"simclr"} if exact else set()), "the recipe's"
    assert all(one["ratio"] == pytest.approx(1, abs=1e-5) for one in found["findings"])
    run = found["dry_run"]
    assert run["whole_run_s"] == pytest.approx(100 * 51 / run["images_per_s"], rel=0.01)
    assert 50 < run["peak_mb"] < 20_000
    assert list((tmp_path / "shared").iterdir()) == [], "nothing stays"


@pytest.mark.parametrize("error", [0.5, math.nan])
def test_a_gradient_that_depends_on_the_workers_is_exit_code_1(
    monkeypatch: pytest.MonkeyPatch, local_ray: None, tmp_path: Path, error: float
) -> None:
    finding = Finding("simclr", "step, ZeRO 1, float32", 2, 0.5, error, 1e-4)
    monkeypatch.setattr(workers, "try_workers", lambda *_: (workers.Link(2, 1e-3, 1e9), [finding]))
    result = invoke("--exact", "--storage", tmp_path, "--json")
    assert result.exit_code == 1
    assert "over 0.0001" in result.output
    found = json.loads(result.stdout)
    assert found["healthy"] is False
    assert found["findings"][0]["error"] == (None if math.isnan(error) else error)


def test_a_worker_that_fails_is_named_beside_what_the_nodes_said(
    local_ray: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workers, "_try", _fail)
    result = invoke("--workers", 1, "--storage", tmp_path, "--json")
    assert result.exit_code == 1
    found = json.loads(result.stdout)
    assert len(found["nodes"]) == 1
    assert found["link"] is None
    [grave] = [one for one in found["complaints"] if one["grave"]]
    assert grave["what"] == "failed: the workers could not be checked: worker 0 failed (no such device)"


def _fail(settings: dict[str, Any]) -> None:
    raise ValueError("no such device")


def test_a_cluster_that_is_too_small_is_looked_at_all_the_same(local_ray: None, tmp_path: Path) -> None:
    result = invoke("--workers", 999, "--storage", tmp_path)
    assert result.exit_code == 1
    assert "the cluster has room for 4 of 999 workers: ask for fewer" in " ".join(result.output.split())


def test_mistakes_are_refused(local_ray: None, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    result = invoke("--storage", tmp_path / "file")
    assert isinstance(result.exception, RunError)
    assert "cannot be written from here" in str(result.exception)


def healthy(name: str, **changes: Any) -> Node:
    versions = {"python": "3.11.7", "ssl_dist": "1", "ray": "2", "torch": "2", "deepspeed": "0", "pyarrow": "20"}
    well = Node(name, f"10.0.0.{name[-1]}", versions, {"CPU": 4.0}, 0.01, 10**11, 2**33, 1e8, 1e9, "", True, True)
    return well._replace(**changes)


@pytest.mark.parametrize(
    ("changes", "what", "mend", "grave"),
    [
        ({"clock_s": -61.0}, "its clock is -61.0 s off", "chrony", True),
        ({"disk_free": 10**9}, "1.0 GB are free in /tmp", "--temp-dir", True),
        ({"shared_memory": 2**26}, "/dev/shm has 0.1 GB", "--shm-size", False),
        ({"storage_error": "Read-only file system"}, "/s cannot be written: Read-only file system", "mount it", True),
        ({"storage_seen": False}, "/s is another folder there", "same shared file system", True),
        ({"token": False}, "runs without token authentication", "RAY_AUTH_MODE=token", False),
        ({"versions": {"python": "3.11.7"}}, "torch is none, elsewhere 2", "constraints.txt", True),
    ],
)
def test_each_fault_is_named_with_its_host_and_its_mend(
    changes: dict[str, Any], what: str, mend: str, grave: bool
) -> None:
    nodes = [healthy("host1"), healthy("host2", **changes), healthy("host3")]
    found = [one for one in find_complaints(nodes, [], "/s") if one.what == what]
    assert [(one.where, one.grave) for one in found] == [("host2", grave)]
    assert mend in found[0].mend
    assert {one.where for one in find_complaints(nodes, [], "/s")} == {"host2"}


def test_hosts_that_are_missing_are_named() -> None:
    nodes = [healthy("host1"), healthy("host2")]
    assert find_complaints(nodes, ["host1", "10.0.0.2"], "/s") == []
    [one] = find_complaints(nodes, ["host1", "10.0.0.3"], "/s")
    assert (one.where, one.what) == ("10.0.0.3", "is not in the cluster")
    assert "auth_token" in one.mend
    assert find_complaints([healthy("host1", token=False)], [], "/s", alone=True) == []


def test_a_host_on_which_ray_runs_twice_is_named() -> None:
    [one] = find_complaints([healthy("host1"), healthy("host2"), healthy("host2")], [], "/s")
    assert (one.where, one.grave) == ("host2", False)
    assert "in the cluster 2 times" in one.what


def test_a_storage_that_cannot_be_written_is_an_answer(tmp_path: Path) -> None:
    answer = describe_this_node(str(tmp_path / "nowhere"), "marker")
    assert answer.storage_error == "No such file or directory"
    assert not answer.storage_seen
