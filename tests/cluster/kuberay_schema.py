"""KubeRay's RayCluster and RayJob as strict types: the part of its CRD that our files need.

Ray's own fields are typed from the reference that KubeRay generates from its Go types, at v1.7.0, with some of what its
operator refuses beyond types. Most fields that no file of ours needs are left out, and so refused: add them here first.
https://github.com/ray-project/kuberay/blob/97509c3a7216cf3440af381646560a1885afb53b/docs/reference/api.md

Pods are read by Kubernetes' JSON schemas, which know names and types but neither enumerations nor quantities (so these
are read here), and the parameters of `ray start` by `ray start`.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, Self

import click
import kubernetes_validate
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, TypeAdapter, model_validator
from pydantic.alias_generators import to_camel
from ray.scripts.scripts import start

KUBERNETES = "1.34"  # the first with the newest field seen in that CRD's pods, fileKeyRef
_QUANTITY = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([KMGTPE]i|[numkMGTPE]|[eE][+-]?(\d+\.?\d*|\.\d+))?")  # the CRD's


def _pod(template: dict[str, Any]) -> dict[str, Any]:
    resource = {"apiVersion": "v1", "kind": "PodTemplate", "template": template}
    try:
        kubernetes_validate.validate(resource, KUBERNETES, strict=True)
    except kubernetes_validate.ValidationError as error:
        raise ValueError(f"{error.json_path}: {error.message}") from None
    for container in template["spec"]["containers"]:
        for part in ("requests", "limits"):
            for name, value in container.get("resources", {}).get(part, {}).items():
                if not _QUANTITY.fullmatch(str(value)):
                    raise ValueError(f"{name}: {value} is not a quantity, such as 500m or 16Gi")
    return template


def _ray_start(parameters: dict[str, str]) -> dict[str, str]:
    try:
        start.make_context("ray start", [f"--{name}={value}" for name, value in parameters.items()])
    except click.ClickException as error:
        raise ValueError(error.format_message()) from None
    return parameters


Count = Annotated[int, Field(ge=0, lt=2**31)]
Name = Annotated[str, Field(pattern=r"^[a-z]([-a-z0-9]*[a-z0-9])?$", max_length=47)]  # a RayJob's; RayCluster has 53
PodTemplate = Annotated[dict[str, Any], AfterValidator(_pod)]
RayStartParams = Annotated[dict[str, str], AfterValidator(_ray_start)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, alias_generator=to_camel)


class Metadata(_Strict):
    name: Name
    namespace: Name = "default"
    labels: dict[str, str] = {}
    annotations: dict[str, str] = {}


class AuthOptions(_Strict):
    mode: Literal["disabled", "token"] = "token"
    secret_name: str = ""


class AutoscalerOptions(_Strict):
    idle_timeout_seconds: Count = 60
    upscaling_mode: Literal["Default", "Aggressive", "Conservative"] = "Default"
    version: Literal["v1", "v2"] = "v2"


class HeadGroupSpec(_Strict):
    ray_start_params: RayStartParams = {}
    service_type: Literal["ClusterIP", "NodePort", "LoadBalancer"] = "ClusterIP"
    template: PodTemplate


class WorkerGroupSpec(_Strict):
    group_name: Name
    replicas: Count = 0
    min_replicas: Count = 0
    max_replicas: Count = 2**31 - 1
    num_of_hosts: Count = 1
    idle_timeout_seconds: Count = 60
    ray_start_params: RayStartParams = {}
    template: PodTemplate

    @model_validator(mode="after")
    def _in_range(self) -> Self:
        if not self.min_replicas <= self.replicas <= self.max_replicas:
            raise ValueError("replicas are not between minReplicas and maxReplicas")
        return self


class RayClusterSpec(_Strict):
    ray_version: Annotated[str, Field(pattern=r"^\d+\.\d+\.\d+$")]  # the operator demands it beside a token
    auth_options: AuthOptions
    enable_in_tree_autoscaling: bool = False
    autoscaler_options: AutoscalerOptions = AutoscalerOptions()
    head_group_spec: HeadGroupSpec
    worker_group_specs: list[WorkerGroupSpec] = []


class RayJobSpec(_Strict):
    entrypoint: str
    runtime_env: Annotated[str, Field(alias="runtimeEnvYAML")] = ""
    submission_mode: Literal["K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode"] = "K8sJobMode"
    backoff_limit: Count = 0
    shutdown_after_job_finishes: bool = False
    ttl_seconds_after_finished: Count = 0
    ray_cluster_spec: RayClusterSpec

    @model_validator(mode="after")
    def _ends(self) -> Self:
        if self.ttl_seconds_after_finished and not self.shutdown_after_job_finishes:
            raise ValueError("ttlSecondsAfterFinished needs shutdownAfterJobFinishes")
        return self


class RayCluster(_Strict):
    api_version: Literal["ray.io/v1"]
    kind: Literal["RayCluster"]
    metadata: Metadata
    spec: RayClusterSpec


class RayJob(_Strict):
    api_version: Literal["ray.io/v1"]
    kind: Literal["RayJob"]
    metadata: Metadata
    spec: RayJobSpec


RESOURCE: TypeAdapter[RayCluster | RayJob] = TypeAdapter(Annotated[RayCluster | RayJob, Field(discriminator="kind")])
