"""Commands of several runs: called again, each run resumes where it was."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console

from cluster.pipelines.completion import complete
from cluster.prepare import resolve
from ssl_dist.checkpoint import Checkpoints
from ssl_dist.config import RunConfig
from ssl_dist.errors import ConfigError, Interrupted, RunError, StoreError
from ssl_dist.reading import parse_override
from tests.cluster.pipeline_commands import SMALL, g_simclr, invoke, self_train, sets, settings_of


def weights(run: Path) -> dict[str, torch.Tensor]:
    found = Checkpoints(run).newest()
    assert found is not None
    return found.load().model


@pytest.mark.slow
def test_g_simclr_in_one_command_resumes_at_any_stage(local_ray: None, small_store: Path, tmp_path: Path) -> None:
    folder = tmp_path / "whole"
    first = g_simclr(small_store, folder, "--clusters", 5)
    assert first.exit_code == 0, first.output
    labels = np.load(folder / "clusters.npy")
    assert sorted(set(labels.tolist())) == list(range(5))
    assert len(labels) == 51
    assert settings_of(folder / "simclr")["data"]["stratified"]
    again = g_simclr(small_store, folder, "--clusters", 5)
    assert len(re.findall("finished before", again.output)) == 2
    part = tmp_path / "part"
    shutil.copytree(folder, part)
    shutil.rmtree(part / "simclr")  # as a kill after the second stage leaves it, but for the labels' path
    third = g_simclr(small_store, part, "--clusters", 5)
    assert len(re.findall("finished before", third.output)) == 1
    ours, theirs = weights(part / "simclr"), weights(folder / "simclr")
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    with pytest.raises(ConfigError, match="holds a run of other settings"):
        g_simclr(small_store, folder, "--clusters", 5, "--set", "optim.lr=0.5")


@pytest.mark.slow
def test_self_training_adds_confident_labels_until_they_no_longer_help(
    local_ray: None, small_store: Path, few_labels: Path, tmp_path: Path
) -> None:
    few = np.load(few_labels)
    chosen = np.flatnonzero(few >= 0)
    longer = [*sets("--set", "epochs=100", "optim.lr=0.01"), "--share", 0.5]
    result = self_train(small_store, few_labels, tmp_path / "rounds", *longer)
    assert result.exit_code == 0, result.output
    rounds = json.loads(result.stdout)["rounds"]
    assert [one["labelled"] for one in rounds] == [12, 12 + 20]
    assert [one["added"] for one in rounds] == [0, 20]
    assert rounds[1]["right"] > 0.5, "by chance it is a third"
    kept = np.load(tmp_path / "rounds" / "labels-1.npy")
    assert np.array_equal(kept[chosen], few[chosen])
    again = self_train(small_store, few_labels, tmp_path / "rounds", *longer, "--rounds", 3, "--margin", 1)
    assert json.loads(again.stdout)["rounds"] == rounds, "no round gains everything"


def test_a_stage_that_was_stopped_is_not_built_upon(
    small_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cluster.pipelines.completion.launch", lambda *_: {"step": 3})
    message = r"autoencoder was stopped after 3 of 6 steps: run the same command again"
    with pytest.raises(RunError, match=message):
        g_simclr(small_store, tmp_path / "here")
    assert not (tmp_path / "here" / "clusters.npy").exists()


def test_a_stage_stopped_by_ctrl_c_says_that_the_same_command_resumes(
    small_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Nothing:
        error, result = None, {"step": 3}

    def interrupt(times: int) -> None:
        for _ in range(times):
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr("cluster.launch.needs_no_ray", lambda _: False)
    monkeypatch.setattr("cluster.launch.ray_with_capacity", lambda _: contextlib.nullcontext(False))
    monkeypatch.setattr("cluster.launch.start_workers", lambda *_: Nothing())
    for times, message in ((1, "resume with"), (2, "resume from the newest checkpoint with")):
        monkeypatch.setattr("cluster.launch._show_progress", lambda *_, n=times: interrupt(n))
        with pytest.raises(Interrupted, match=rf"{message}: the same command again$"):
            g_simclr(small_store, tmp_path / "here")


def test_a_stage_may_change_the_settings_that_pretrain_may_and_no_others(
    untrained: list[str], small_store: Path, tmp_path: Path
) -> None:
    g_simclr(small_store, tmp_path / "here")
    (tmp_path / "here").rename(tmp_path / "there")  # the clusters' path with it
    shutil.copytree(small_store, tmp_path / "copy")
    free = ("engine.zero_stage=0", "cluster.workers=2", "checkpoint.keep=5", "monitor.every_steps=7")
    again = g_simclr(
        tmp_path / "copy", tmp_path / "there", *sets("--set", *free), *sets("--set-autoencoder", *free), "--json"
    )
    assert again.output.count("finished before") == 2
    assert settings_of(tmp_path / "there" / "simclr")["engine"]["zero_stage"] == 0
    with pytest.raises(ConfigError, match=r"run of other settings, engine\.precision bf16 \(began with fp32\): use"):
        g_simclr(small_store, tmp_path / "there", "--set", "engine.precision=bf16")
    small = {"data.store": str(small_store), "batch": {"size": 16, "micro": 8}}
    complete(tmp_path / "run", resolve("gsimclr-cifar10", small), Console(quiet=True))
    np.save(tmp_path / "labels.npy", np.arange(51) % 3)
    labelled = resolve("gsimclr-cifar10", {**small, "data.label_file": str(tmp_path / "labels.npy")})
    with pytest.raises(ConfigError, match=r"other settings, facts\.label_digest"):
        complete(tmp_path / "run", labelled, Console(quiet=True))


def test_a_resumed_run_finds_its_labels_where_they_are_now(
    untrained: list[str], small_store: Path, few_labels: Path, tmp_path: Path
) -> None:
    run, moved = tmp_path / "run", tmp_path / "moved.npy"
    given = sets("--set", f"data.store={small_store}", f"data.label_file={few_labels}", "method.num_classes=3", *SMALL)
    invoke("pretrain", "supervised-cifar10", *given, "--run-dir", run)
    few_labels.rename(moved)
    invoke("pretrain", "--resume", run, "--set", f"data.label_file={moved}")
    assert untrained == ["run"], "it was finished, and nothing is started again"
    assert settings_of(run)["data"]["label_file"] == str(moved)
    few = np.load(moved)
    np.save(moved, np.where(few >= 0, 2 - few, -1))
    with pytest.raises(StoreError, match=r"label_digest .*: set data\.label_file to what it was"):
        invoke("pretrain", "--resume", run)


def test_mirrors_of_stages_of_two_commands_do_not_meet(
    small_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mirrors: list[str | None] = []

    def launched(config: RunConfig, *_: object) -> dict[str, int]:
        mirrors.append(config.checkpoint.mirror)
        return {"step": 6}

    monkeypatch.setattr("cluster.pipelines.completion.launch", launched)
    recipe = {"data.store": str(small_store), **dict(map(parse_override, SMALL))}
    place = (tmp_path / "mirror").as_uri()
    for mirror in (None, place):
        config = resolve("simclr-cifar10", {**recipe, "checkpoint.mirror": mirror, "epochs": 2})
        for name in ("a", "b"):
            complete(tmp_path / str(mirror is None) / name / "round-0", config, Console())
    assert mirrors == [None, None, f"{place}/a", f"{place}/b"]


def test_damage_cannot_be_skipped_between_stages(small_store: Path, few_labels: Path, tmp_path: Path) -> None:
    skip = sets("--set", "data.damaged=skip")
    for command in (
        lambda: g_simclr(small_store, tmp_path / "g", "--clusters", 5, *skip),
        lambda: self_train(small_store, few_labels, tmp_path / "s", *skip),
    ):
        with pytest.raises(ConfigError, match=r"data\.damaged=skip: .* set data\.damaged=refuse"):
            command()
    assert not list(tmp_path.glob("*/*"))
