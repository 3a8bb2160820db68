"""The cluster files are valid by Ray's own checks and by KubeRay's types, and have the settings a cluster needs."""

from __future__ import annotations

import copy
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError
from ray._private.ray_constants import RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S
from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr
from ray.autoscaler._private.util import prepare_config, validate_config

from cluster.launch import command_on_head
from ssl_dist.commands.main import command_of
from ssl_dist.config import RunConfig
from ssl_dist.reading import parse_override
from tests.cluster.kuberay_schema import RESOURCE

ROOT = Path(__file__).parents[2]
FILES = ("ray_cluster.yaml", "cluster/local.yaml")
KUBERAY = ("cluster/kuberay/raycluster.yaml", "cluster/kuberay/rayjob.yaml")


def load(name: str) -> dict[str, Any]:
    config: dict[str, Any] = yaml.safe_load((ROOT / name).read_text())
    return config


def cluster_spec(resource: dict[str, Any]) -> dict[str, Any]:
    """Return the spec of a RayCluster, or of the RayCluster inside a RayJob."""
    spec: dict[str, Any] = resource["spec"].get("rayClusterSpec", resource["spec"])
    return spec


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


@pytest.mark.parametrize("name", KUBERAY)
def test_kuberay_takes_the_file(name: str) -> None:
    RESOURCE.validate_python(load(name))


@pytest.mark.parametrize("name", KUBERAY)
@pytest.mark.parametrize(
    ("path", "value", "complaint"),
    [
        ("enableAutoscaling", True, "Extra inputs are not permitted"),
        ("authOptions.mode", "tokens", "'disabled' or 'token'"),
        ("rayVersion", 2.6, "valid string"),
        ("headGroupSpec.rayStartParams.num-cpus", 0, "valid string"),
        ("headGroupSpec.rayStartParams.num-cpus", "none", "not a valid integer"),
        ("headGroupSpec.rayStartParams.num-cpu", "0", "No such option"),
        ("headGroupSpec.template.spec.restartpolicy", "Never", "'restartpolicy' was unexpected"),
        ("workerGroupSpecs.0.maxReplicas", "4", "valid integer"),
        ("workerGroupSpecs.0.minReplicas", 5, "not between"),
        ("workerGroupSpecs.0.template.spec.terminationGracePeriodSeconds", "60", "not of type 'integer'"),
        ("workerGroupSpecs.0.template.spec.containers.0.resources.limit", {}, "'limit' was unexpected"),
        ("workerGroupSpecs.0.template.spec.containers.0.resources.limits.memory", "32 GB", "not a quantity"),
        ("workerGroupSpecs.0.template.spec.containers.0.volumeMounts.0.mountPath", None, "not of type 'string'"),
    ],
)
def test_kuberay_refuses(name: str, path: str, value: Any, complaint: str) -> None:
    resource = load(name)
    *way, last = path.split(".")
    place: Any = cluster_spec(resource)
    for step in way:
        place = place[int(step) if step.isdigit() else step]
    place[last] = value
    with pytest.raises(ValidationError, match=complaint):
        RESOURCE.validate_python(resource)


@pytest.mark.parametrize("name", KUBERAY)
def test_kubernetes_pods_share_a_folder_a_token_and_a_ray(name: str) -> None:
    spec = cluster_spec(load(name))
    assert spec["authOptions"] == {"mode": "token"}
    assert f"ray=={spec['rayVersion']}" in (ROOT / "constraints.txt").read_text().splitlines()
    for pod in [spec["headGroupSpec"], *spec["workerGroupSpecs"]]:
        inside = pod["template"]["spec"]
        mounted = {mount["name"] for container in inside["containers"] for mount in container["volumeMounts"]}
        assert mounted == {volume["name"] for volume in inside["volumes"]} == {"shared"}


@pytest.mark.parametrize("name", KUBERAY)
def test_kubernetes_gives_each_worker_a_gpu_and_time_to_shut_down(name: str) -> None:
    """Ray's autoscaler reads: no worker beside the driver, one GPU for each worker, one node before a run asks."""
    metadata = {"name": "ssl-dist", "namespace": "default"}
    read = _derive_autoscaling_config_from_ray_cr({"metadata": metadata, "spec": cluster_spec(load(name))})
    head, gpu = (read["available_node_types"][group] for group in ("headgroup", "gpu"))
    assert head["resources"]["CPU"] == 0
    assert gpu["resources"]["GPU"] == 1
    assert gpu["min_workers"] >= 1
    for group in cluster_spec(load(name))["workerGroupSpecs"]:
        grace_s = group["template"]["spec"]["terminationGracePeriodSeconds"]
        assert grace_s > RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S, "or Kubernetes kills what still tells the run"


def test_a_job_of_kubernetes_reaches_its_cluster_and_fills_it() -> None:
    job = load("cluster/kuberay/rayjob.yaml")["spec"]
    spec = job["rayClusterSpec"]
    assert spec["headGroupSpec"]["rayStartParams"]["dashboard-host"] == "0.0.0.0", "the submitter is another pod"
    assert shlex.split(job["entrypoint"])[:2] == ["ssl-dist", "pretrain"]
    given = command_of("pretrain").make_context("pretrain", shlex.split(job["entrypoint"])[2:]).params
    cluster = RunConfig.load(given["recipe"], dict(map(parse_override, given["settings"]))).cluster
    assert cluster.gpu
    assert [group["replicas"] for group in spec["workerGroupSpecs"]] == [cluster.workers.max]


def test_a_submitted_job_pretrains_unless_it_names_another_command() -> None:
    assert command_on_head(["recipe", "--set", "epochs=1"])[1:] == ["pretrain", "recipe", "--set", "epochs=1"]
    assert command_on_head(["tune", "recipe"])[1:] == ["tune", "recipe"]
    assert command_on_head([])[0].endswith("ssl-dist")
