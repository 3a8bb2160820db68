"""The table of commands: the name of each, the module that holds it, and a line of help.

A module is imported when its command is called, so that ``ssl-dist --help`` is instant. This is the one place where
``ssl_dist`` names modules of ``cluster`` and ``tune``, as text.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple


class Entry(NamedTuple):
    """``target`` is ``module:name`` of a function (one command) or of a ``typer.Typer`` (a group of commands).

    ``more`` holds further commands of a group that stand in modules of their own: their names and targets.
    """

    target: str
    help: str
    more: Mapping[str, str] = MappingProxyType({})


COMMANDS: dict[str, Entry] = {
    "demo": Entry(
        "cluster.commands.demo:demo", "Pretrain on scikit-learn's 1,797 digits with 2 workers; downloads nothing."
    ),
    "doctor": Entry(
        "cluster.commands.doctor:doctor", "Check this machine, or the cluster of RAY_ADDRESS, before it costs money."
    ),
    "store": Entry("ssl_dist.commands.store:app", "Build, grow, label and check image stores."),
    "pretrain": Entry("cluster.commands.pretrain:pretrain", "Pretrain an encoder with Ray Train and DeepSpeed."),
    "recipes": Entry("ssl_dist.commands.recipes:recipes", "List the recipes that come with the package, or print one."),
    "init": Entry("cluster.commands.init:init", "Write a recipe for a store and this machine."),
    "status": Entry(
        "cluster.commands.status:status", "Show what a run or a sweep is doing, from any terminal or host."
    ),
    "stop": Entry("cluster.commands.status:stop", "End a run after its current step, from any terminal or host."),
    "settings": Entry("ssl_dist.commands.settings:settings", "Explain every setting of a run, with its default."),
    "checkpoint": Entry("ssl_dist.commands.runs:checkpoint", "List, check and clear checkpoints of runs."),
    "evaluate": Entry(
        "ssl_dist.commands.evaluate:app",
        "Measure what a run's encoder is worth.",
        more={
            "transfer": "ssl_dist.commands.transfer:transfer",
            "all": "ssl_dist.commands.everything:all_",
            "rank": "ssl_dist.commands.rank:rank",
            "map": "ssl_dist.commands.map:map_",
            "finetune": "cluster.commands.finetune:finetune",
            "semi": "cluster.commands.semi:semi",
        },
    ),
    "label-request": Entry(
        "ssl_dist.commands.label_request:label_request",
        "Choose the images of a store to label next, and write a page for it.",
    ),
    "export": Entry("ssl_dist.commands.export:export", "Write a run's encoder as files for other code."),
    "embed": Entry("ssl_dist.commands.embed:embed", "Write the features of all images as a Parquet file."),
    "neighbours": Entry(
        "ssl_dist.commands.neighbours:neighbours", "Show the nearest images in a file that `embed` has written."
    ),
    "report": Entry(
        "ssl_dist.commands.runs:report", "Write a run's report as one HTML file; several runs side by side."
    ),
    "tune": Entry("tune.commands:app", "Search settings over whole pretraining runs with Ray Tune."),
    "g-simclr": Entry(
        "cluster.commands.pipelines:g_simclr", "Train an autoencoder, cluster its latents, then train SimCLR."
    ),
    "self-train": Entry(
        "cluster.commands.pipelines:self_train", "Train, label the images that the model is surest of, train again."
    ),
}

CLUSTER_WRITERS = "cluster.build:ray_writers"
"""Target of what writes a store's shards on all nodes of a Ray cluster (``store build --cluster``)."""

CLUSTER_EXECUTOR = "cluster.embed:ray_executor"
"""Target of what runs the tasks of an embedding on all nodes of a Ray cluster (``embed --cluster``)."""


def load(target: str) -> Any:
    """Import the object that ``module:name`` names."""
    module, _, name = target.partition(":")
    return getattr(importlib.import_module(module), name)
