"""Guards: what would be paid for and could not work is refused in one line before Ray starts."""

from __future__ import annotations

import decimal
import logging
import os
import sys

from ssl_dist.config import ResolvedConfig
from ssl_dist.data import read_labels
from ssl_dist.errors import ClusterError, ConfigError
from ssl_dist.machine import has_bf16, num_cores
from ssl_dist.settings import ClusterConfig
from ssl_dist.store import ImageStore

log = logging.getLogger(__name__)


def check_data(config: ResolvedConfig, store: ImageStore) -> None:
    """Refuse a batch or a probe for which the store has too few images or classes; name a label file of no use.

    Only the manifest is read, so that a guard of a large store costs nothing.

    Raises:
        ConfigError: the message says which setting to change.
    """
    _check_batch(config, store.name)
    _check_probe(config, store)
    if (file := config.data.label_file) and not (config.num_labelled or config.data.stratified):
        read_labels(config, store)
        log.warning(
            "data.label_file %s is not used: method %s learns from no labels, and data.stratified is false",
            *(file, config.method.name),
        )


def _check_batch(config: ResolvedConfig, name: str) -> None:
    """Refuse a batch with one image several times; a classifier may see one of its few labelled images again."""
    facts, others = config.facts, config.batch.size - config.batch.labelled
    if facts.num_images < 2:
        raise ConfigError(f"{name} has {facts.num_images} image, and pretraining needs 2 or more: build a larger store")
    several = config.method.uses_labels == "all"
    images = facts.num_images if several else facts.num_samples
    if others > images:
        size = images + config.batch.labelled
        fitting = size - size % config.batch.micro or size
        micro = min(config.batch.micro, fitting)
        raise ConfigError(
            f"batch.size {config.batch.size} is larger than the {images} images of {name}, so one batch would have an"
            f" image several times, as its own negative: try --set batch.size={fitting} --set batch.micro={micro}"
        )


def _check_probe(config: ResolvedConfig, store: ImageStore) -> None:
    """Refuse a probe whose accuracy says nothing, or that has fewer images than neighbours."""
    probe = config.probe
    if probe is None or probe.kind not in ("knn", "linear"):
        return
    if not store.class_names:
        log.warning("%s has no labels: no probe is shown; --set probe.kind=rankme needs none", store.name)
        return
    if len(store.class_names) == 1:
        raise ConfigError(
            f"probe.kind {probe.kind}: {store.name} has one class, {store.class_names[0]}, so that every answer is"
            " right: try --set probe.kind=rankme, which needs no labels, or --set probe=null"
        )
    bank = min(probe.bank, len(store) * 4 // 5)
    if probe.kind == "knn" and probe.k > bank:
        raise ConfigError(
            f"probe.k {probe.k}: the probe learns from {bank} images (probe.bank, at most four fifths of"
            f" {store.name}'s {len(store)}), and has no more neighbours: try --set probe.k={max(1, bank // 2)}"
        )


def warn_of_warm_up(config: ResolvedConfig) -> None:
    """Warn of a run in which the learning rate never falls, as a first try of a few epochs often is."""
    if config.plan().warmup_steps == config.plan().total_steps:
        log.warning(
            "optim.warmup_epochs %g is not shorter than epochs %g, so the learning rate rises until the run ends: try"
            " --set optim.warmup_epochs=%g",
            *(config.optim.warmup_epochs, config.epochs, config.epochs / 10),
        )


def warn_of_emulated_bf16(config: ResolvedConfig) -> None:
    """Warn of a run on this machine's CPU that would compute in numbers for which it has no instructions."""
    here = not (config.cluster.gpu or os.environ.get("RAY_ADDRESS"))
    if here and config.engine.precision == "bf16" and not has_bf16():
        log.warning(
            "this CPU has no instructions for bfloat16, so engine.precision bf16 takes two to three times as long as"
            " fp32: try --set engine.precision=fp32"
        )


def has_cluster() -> bool:
    """Return whether RAY_ADDRESS names a cluster, or Ray was started before."""
    ray = sys.modules.get("ray")
    return bool(os.environ.get("RAY_ADDRESS") or (ray and ray.is_initialized()))


def check_machine(cluster: ClusterConfig, option: str = "--set") -> None:
    """Refuse more workers than this machine has room for, unless RAY_ADDRESS names a cluster or Ray was started before.

    Args:
        option: the option that changes ``cluster``, for messages.

    Raises:
        ClusterError: the message says which setting to change.
    """
    if has_cluster():
        return
    workers, cores = cluster.workers.min, num_cores()
    gpus = num_gpus() if cluster.gpu else workers
    if workers > gpus:
        found = f"this machine has {gpus}" if gpus else "no GPU found on this machine"
        mend = f"cluster.workers={gpus}" if gpus else "cluster.gpu=false"
        raise ClusterError(
            f"cluster.gpu=true with cluster.workers {workers}, one GPU each: {found}: {option} {mend}, or set"
            " RAY_ADDRESS to a cluster that has them"
        )
    if workers * cluster.cpus_per_worker > cores:
        share = decimal.Context(prec=2, rounding=decimal.ROUND_FLOOR).divide(cores, workers)
        raise ClusterError(
            f"cluster.workers {workers} of {cluster.cpus_per_worker:g} CPU each are more than this machine's {cores}:"
            f" {option} cluster.workers={max(1, int(cores / cluster.cpus_per_worker))}, or let workers share a core by"
            f" {option} cluster.cpus_per_worker={share:f}, or set RAY_ADDRESS to a cluster"
        )


def num_gpus() -> int:
    """Return the number of GPUs that torch can use on this machine."""
    import torch

    return torch.cuda.device_count()
