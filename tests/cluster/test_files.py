"""The cluster files: valid by Ray's own checks, and what they must not forget."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

from cluster.launch import COMMANDS, on_the_head
from tune.cli import app

ROOT = Path(__file__).parents[2]
FILES = ("ray_cluster.yaml", "cluster/local.yaml")


def load(name: str) -> dict[str, Any]:
    config: dict[str, Any] = yaml.safe_load((ROOT / name).read_text())
    return config


@pytest.mark.parametrize("name", FILES)
def test_ray_accepts_the_file(name: str) -> None:
    validate_config(prepare_config(copy.deepcopy(load(name))))
    with pytest.raises(Exception, match="max_worker"):
        validate_config(prepare_config({**load(name), "max_worker": 3}))


@pytest.mark.parametrize("name", FILES)
def test_a_cluster_is_locked_pinned_and_on_loopback(name: str) -> None:
    config = load(name)
    setup, head = "\n".join(config["setup_commands"]), "\n".join(config["head_start_ray_commands"])
    assert "-c ~/ssl_dist/constraints.txt" in setup
    assert "RAY_AUTH_MODE=token" in setup
    assert "chmod 600 ~/.ray/auth_token" in setup
    assert config["file_mounts"]["~/.ray/auth_token"] == "~/.ray/auth_token"
    assert "--dashboard-host=127.0.0.1" in head
    for start in (head, "\n".join(config["worker_start_ray_commands"])):
        assert "ulimit -n 65536" in start
        assert "--object-store-memory=" in start
    assert len((ROOT / name).read_text().splitlines()) < 70


def test_aws_has_spot_workers_and_a_head_without_any() -> None:
    types = load("ray_cluster.yaml")["available_node_types"]
    assert types["head"]["resources"]["CPU"] == 0
    assert types["gpu"]["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}


@pytest.mark.parametrize("name", ["raycluster", "rayjob"])
def test_kubernetes_pods_share_a_folder_and_a_token(name: str) -> None:
    resource = load(f"cluster/kuberay/{name}.yaml")
    assert resource["apiVersion"] == "ray.io/v1"
    spec = resource["spec"] if resource["kind"] == "RayCluster" else resource["spec"]["rayClusterSpec"]
    assert spec["authOptions"] == {"mode": "token"}
    pods = [spec["headGroupSpec"], *spec["workerGroupSpecs"]]
    for pod in pods:
        assert all(isinstance(value, str) for value in pod["rayStartParams"].values()), "strings, by the schema"
        inside = pod["template"]["spec"]
        mounted = {mount["name"] for container in inside["containers"] for mount in container["volumeMounts"]}
        assert "shared" in mounted
        assert mounted == {volume["name"] for volume in inside["volumes"]}


def test_what_is_submitted_is_a_pretraining_unless_it_says_otherwise() -> None:
    assert on_the_head(["recipe", "--set", "epochs=1"])[1:] == ["pretrain", "recipe", "--set", "epochs=1"]
    assert on_the_head(["tune", "recipe"])[1:] == ["tune", "recipe"]
    assert on_the_head([])[0].endswith("ssl-dist")
    known = {command.name or command.callback.__name__ for command in app.registered_commands if command.callback}
    assert set(COMMANDS) == known | {group.name for group in app.registered_groups}
