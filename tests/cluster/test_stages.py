"""Several runs in one command: each stage is gone on with where it was."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from cluster.cli import app
from ssl_dist import checkpoint
from ssl_dist.errors import ConfigError
from ssl_dist.evaluate import cluster_labels, most_confident
from ssl_dist.store import ImageStore

SMALL = (
    "backbone={name: resnet8, stem: half, width: 4}",
    "batch={size: 16, micro: 8}",
    "epochs=2",
    "probe=null",
    "cluster.workers=1",
    "engine.precision=fp32",
)


def invoke(*arguments: object) -> Any:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def sets(option: str, *settings: str) -> list[str]:
    return [part for setting in settings for part in (option, setting)]


def weights(run: Path) -> dict[str, torch.Tensor]:
    found = checkpoint.newest(run)
    assert found is not None
    return found.load().model


def test_g_simclr_in_one_command_goes_on_at_any_stage(local_ray: None, small_store: Path, tmp_path: Path) -> None:
    autoencoder = ["backbone={name: autoencoder}", *SMALL[1:]]
    command = ["g-simclr", *sets("--set", f"data.store={small_store}", *SMALL), "--clusters", 5]
    command += [*sets("--set-autoencoder", *autoencoder), "--json", "--run-dir"]
    folder = tmp_path / "whole"
    first = invoke(*command, folder)
    assert first.exit_code == 0, first.output
    labels = np.load(folder / "clusters.npy")
    assert sorted(set(labels.tolist())) == list(range(5))
    assert len(labels) == 51
    config = json.loads((folder / "simclr" / "config.json").read_text())
    assert config["data"]["stratified"]
    again = invoke(*command, folder)
    assert len(re.findall("finished before", again.output)) == 2
    part = tmp_path / "part"
    shutil.copytree(folder, part)
    shutil.rmtree(part / "simclr")  # as a kill after the second stage leaves it, but for the labels' path
    third = invoke(*command, part)
    assert len(re.findall("finished before", third.output)) == 1
    ours, theirs = weights(part / "simclr"), weights(folder / "simclr")
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    with pytest.raises(ConfigError, match="holds a run of other settings"):
        invoke(*command, folder, "--set", "optim.lr=0.5")


def test_self_training_adds_what_it_is_sure_of_until_that_no_longer_helps(
    local_ray: None, small_store: Path, tmp_path: Path
) -> None:
    store = ImageStore(small_store)
    few = np.full(51, -1, dtype=np.int32)
    chosen = np.concatenate([np.flatnonzero(store.labels == label)[:4] for label in range(3)])
    few[chosen] = store.labels[chosen]
    np.save(tmp_path / "few.npy", few)
    settings = (
        *SMALL,
        "method.num_classes=3",
        "epochs=100",
        "optim.lr=0.01",
        f"data.label_file={tmp_path / 'few.npy'}",
    )
    command = ["self-train", *sets("--set", f"data.store={small_store}", *settings), "--test", small_store, "--json"]
    command += ["--share", 0.5, "--rounds", 1, "--margin", -1, "--run-dir", tmp_path / "rounds"]
    result = invoke(*command)
    assert result.exit_code == 0, result.output
    rounds = json.loads(result.output.splitlines()[-1])["rounds"]
    assert [one["labelled"] for one in rounds] == [12, 12 + 20]
    assert [one["added"] for one in rounds] == [0, 20]
    assert rounds[1]["right"] > 0.5, "by chance it is a third"
    kept = np.load(tmp_path / "rounds" / "labels-1.npy")
    assert np.array_equal(kept[chosen], few[chosen])
    again = invoke(*command[:-6], "--rounds", 3, "--margin", 1, "--run-dir", tmp_path / "rounds")
    assert json.loads(again.output.splitlines()[-1])["rounds"] == rounds, "no round gains everything"
    with pytest.raises(ConfigError, match="every image has a label"):
        invoke(*command[:-2], "--run-dir", tmp_path / "other", "--set", "data.label_file=null")


def test_the_most_confident_rows_come_first() -> None:
    probabilities = torch.tensor([[0.5, 0.5], [0.1, 0.9], [0.8, 0.2], [0.1, 0.9]])
    rows, classes = most_confident(probabilities, 3)
    assert rows.tolist() == [1, 3, 2]
    assert classes.tolist() == [1, 1, 0]


def test_clusters_are_of_what_is_alike() -> None:
    generator = torch.Generator().manual_seed(0)
    centres = 10 * torch.randn(4, 6, generator=generator)
    truth = torch.arange(200) % 4
    features = centres[truth] + torch.randn(200, 6, generator=generator)
    labels = cluster_labels(features, 4, seed=3)
    assert len({(int(a), int(b)) for a, b in zip(truth, labels, strict=True)}) == 4
    assert np.array_equal(labels, cluster_labels(features, 4, seed=3))
