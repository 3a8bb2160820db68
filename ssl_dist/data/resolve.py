"""Resolve a run's settings: open its store once, find the facts about its data, check that the cache has room."""

from __future__ import annotations

import logging
import math
from pathlib import Path
from typing import NamedTuple

import numpy as np
import xxhash

from ssl_dist.config import DataFacts, ResolvedConfig, RunConfig
from ssl_dist.data.images import (
    label_digest,
    open_store,
    read_validation_labels,
    store_digest,
    store_labels_digest,
)
from ssl_dist.data.sample_plan import SamplePlan
from ssl_dist.errors import ConfigError
from ssl_dist.settings import DataConfig
from ssl_dist.store import ImageStore
from ssl_dist.store.remote import cache_folder

log = logging.getLogger(__name__)


class Data(NamedTuple):
    """The data of a run: its resolved config, its opened store, and which samples each step uses."""

    config: ResolvedConfig
    store: ImageStore
    sample_plan: SamplePlan


def resolve(config: RunConfig) -> Data:
    """Open a run's store, make the paths of its data absolute, and find the facts about its data.

    A classifier's number of classes is taken from the labels, where the settings leave it open.

    The digest of initial weights, where ``config`` has one, is kept.

    Raises:
        StoreError: there is no store.
        ConfigError: labels are missing, the cache is too small, or the backbone does not take images of this size.
    """
    store = open_store(config.data)
    sample_plan = SamplePlan(config, store)
    shards_digest = xxhash.xxh3_64_hexdigest(store.shard_rows.tobytes()) if config.data.order == "shards" else None
    validation_file = config.probe.label_file if config.probe else None
    if validation_file:
        read_validation_labels(config, store)
    facts = DataFacts(
        num_images=len(store),
        num_samples=sample_plan.num_samples,
        image_shape=store.image_shape,
        label_digest=label_digest(config.data.label_file, "data.label_file"),
        validation_digest=label_digest(validation_file, "probe.label_file"),
        shards_digest=shards_digest,
        weights_digest=config.facts.weights_digest if isinstance(config, ResolvedConfig) else None,
        store_digest=store_digest(store),
        store_labels_digest=store_labels_digest(config, store),
    )
    paths = {"store": store.location}
    if cache := config.data.cache:
        paths["cache"] = str(cache_folder(cache))
    if file := config.data.label_file:
        paths["label_file"] = str(Path(file).absolute())
    if store.cache_bytes is not None:
        _expect_cache_room(config.data, store, store.cache_bytes, sample_plan)
    tree = config.model_dump()
    tree |= {"data": {**tree["data"], **paths}, "facts": facts}
    if validation_file:
        tree["probe"]["label_file"] = str(Path(validation_file).absolute())
    if getattr(config.method, "num_classes", 0) is None:
        tree["method"]["num_classes"] = max(len(store.class_names), int(sample_plan.labels.max()) + 1)
    return Data(ResolvedConfig.from_tree(tree, store.name), store, sample_plan)


def _expect_cache_room(data: DataConfig, store: ImageStore, limit: int, sample_plan: SamplePlan) -> None:
    """Refuse a remote store if its cache of ``limit`` bytes cannot hold the shards that a step may need.

    Raises:
        ConfigError: the cache is too small.
    """
    total = store.manifest.bytes
    if data.order == "full" and total > limit:
        raise ConfigError(
            f"data.cache_gb {data.cache_gb:g} is less than the {_gb(total)} GB of {store.name}, and with data.order"
            " full a batch has images of any shard, so most shards would be fetched anew in each step: set"
            f" data.order=shards, or data.cache_gb to {_gb(total)} or more"
        )
    # 0 for the order full, which has no windows
    needed = min(total, sample_plan.max_window_bytes(np.array([shard.bytes for shard in store.manifest.shards])))
    if needed > limit:
        raise ConfigError(
            f"data.cache_gb {data.cache_gb:g}: a window of {data.window} images of {store.name} is in shards of"
            f" {_gb(needed)} GB: set it to {_gb(min(total, 2 * needed))}, for this window and the next, or lower"
            " data.window"
        )
    if min(total, 2 * needed) > limit:
        log.warning(
            "data.cache_gb %g has no room for two windows (%s GB): steps will wait for the next window's shards",
            *(data.cache_gb, _gb(min(total, 2 * needed))),
        )


def _gb(count: float) -> str:
    """Format bytes as GB of three digits, rounded up."""
    unit = 10 ** (math.floor(math.log10(count)) - 2)
    return f"{math.ceil(count / unit) * unit / 1e9:.3g}"
