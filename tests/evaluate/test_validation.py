"""Validation of a classifier in training: its figures, its schedule, its early end, and what is refused."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cluster.run_status import read_status
from ssl_dist.checkpoint import Checkpoints
from ssl_dist.collectives import World
from ssl_dist.config import ResolvedConfig
from ssl_dist.data import resolve
from ssl_dist.errors import ConfigError, StoreError
from ssl_dist.evaluate.validation import Validated, Validation
from ssl_dist.settings import ProbeConfig
from ssl_dist.store import ImageStore
from ssl_dist.training.loop import StopRequests, pretrain
from tests.gloo import GlooPool
from tests.helpers import differences, resolved_config, small_config

Pools = Callable[[int], GlooPool]


@pytest.fixture(scope="module")
def files(small_store: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Write the labels of 36 images to learn from, and those of 11 others."""
    labels, folder = ImageStore(small_store).labels, tmp_path_factory.mktemp("labels")
    number = np.arange(len(labels))
    np.save(folder / "train.npy", np.where(number % 17 < 12, labels, -1))
    np.save(folder / "held.npy", np.where((number % 17 >= 13) & (number != 50), labels, -1))
    return {name: str(folder / f"{name}.npy") for name in ("train", "held")}


def settings(files: dict[str, str], **more: Any) -> dict[str, Any]:
    given = {
        "method": {"name": "supervised", "num_classes": 3},
        "augment": {"recipe": "weak"},
        "data__label_file": files["train"],
        "probe": {"kind": "validation", "label_file": files["held"]},
        "optim": {"name": "adam", "lr": 0.01, "schedule": "plateau", "plateau_patience": 0, "warmup_epochs": 0},
        "epochs": 6,
    }
    return {**given, **more}


def measured(rank: int, size: int, config: ResolvedConfig) -> Validated:
    method = config.initial_method()
    torch.nn.init.normal_(method.get_submodule("classifier").weight, generator=torch.Generator().manual_seed(0))
    return Validation(config, ImageStore(config.data.store)).measure(method, World.current())


def test_accuracy_and_loss_are_those_of_the_images_one_by_one(
    gloo: Pools, small_store: Path, files: dict[str, str]
) -> None:
    config, store = resolved_config(small_store, **settings(files)), ImageStore(small_store)
    method, held = config.initial_method().eval(), np.load(files["held"])
    torch.nn.init.normal_(method.get_submodule("classifier").weight, generator=torch.Generator().manual_seed(0))
    right, losses = [], []
    for number in np.flatnonzero(held >= 0):
        pixels = torch.from_numpy(store.gather(np.array([number]))).permute(0, 3, 1, 2).float() / 255
        scores = method.get_submodule("classifier")(method.backbone(pixels))[0].double().detach()
        losses.append(-math.log(scores.exp()[held[number]] / scores.exp().sum()))
        right.append(int(scores.argmax()) == held[number])
    assert len(losses) == 11
    assert 0 < sum(right) < 11
    for workers in (1, 2, 3):
        found = gloo(workers).run(measured, config)
        assert {one.accuracy for one in found} == {sum(right) / 11}
        assert len({one.loss for one in found}) == 1, "the very same on every worker"
        assert found[0].loss == pytest.approx(sum(losses) / 11, rel=1e-5)  # float32 logits


def run_in_parts(rank: int, size: int, config: ResolvedConfig, directory: Path, stops: list[int]) -> dict[str, float]:
    """Train in parts, of which each ends with one of these steps, and then to the end."""
    found: dict[str, float] = {}
    for stop in [*stops, None]:
        steps = iter(range(found.get("step", 0) + 1, 10**6))  # type: ignore[arg-type]
        found = pretrain(config, directory, World.current(), StopRequests(stop=lambda: next(steps) == stop))  # noqa: B023
    return found


def rates(run: Path) -> list[float]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line["train/learning_rate"] for line in lines if "train/learning_rate" in line]


@pytest.mark.parametrize("workers", [1, 2])
def test_a_resumed_run_lowers_its_rate_and_ends_at_the_same_steps(
    gloo: Pools, small_store: Path, tmp_path: Path, files: dict[str, str], workers: int
) -> None:
    probe = {"kind": "validation", "label_file": files["held"], "every_epochs": 0.5, "patience": 4}
    config = resolved_config(small_store, **settings(files, probe=probe, monitor__every_steps=1, epochs=40))
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    for run, stops in ((whole, []), (parts, [2, 5, 7])):
        run.mkdir()
        last = gloo(workers).run(run_in_parts, config, run, stops)[0]
    total = config.plan().total_steps
    assert 8 < last["step"] < total
    assert len(set(rates(whole))) > 1
    assert rates(whole) == rates(parts)
    ours, theirs = (Checkpoints(run).newest() for run in (whole, parts))
    assert ours is not None
    assert theirs is not None
    assert (ours.step, ours.losses, ours.score) == (theirs.step, theirs.losses, theirs.score)
    assert len(ours.losses) - 1 - np.argmin(ours.losses) == 4, "it ended as soon as four brought nothing lower"
    for name in ("model", "optimizer"):
        assert not differences(getattr(ours.load(), name), getattr(theirs.load(), name))


def test_a_run_that_ended_early_is_over(small_store: Path, tmp_path: Path, files: dict[str, str]) -> None:
    """Its rate is 0, so that no loss is lower than the first one."""
    probe = {"kind": "validation", "label_file": files["held"], "patience": 2}
    optim = {"name": "sgd", "lr": 1e-30, "momentum": 0.0, "warmup_epochs": 0}
    frozen = {"name": "supervised", "num_classes": 3, "unfreeze": "head"}
    config = resolved_config(small_store, **settings(files, probe=probe, optim=optim, method=frozen, epochs=9))
    (tmp_path / "config.json").write_text(config.model_dump_json())
    assert pretrain(config, tmp_path, World(), StopRequests())["step"] == 9, "three epochs of 36 images by 12"
    status = read_status(tmp_path)
    assert (status.state, status.step, status.total_steps) == ("finished", 9, 9)
    found = Checkpoints(tmp_path).newest()
    assert found is not None
    assert config.is_over(found.step, found.losses)
    assert pretrain(config, tmp_path, World(), StopRequests())["step"] == 9, "a worker that is started again"


def test_patience_counts_from_the_first_of_the_lowest_losses() -> None:
    probe = ProbeConfig(kind="validation", label_file="held.npy", patience=2)
    assert [probe.gives_up([3, 1, 2, 1][:count]) for count in range(5)] == [False, False, False, False, True]
    assert not ProbeConfig(kind="validation", label_file="held.npy").gives_up([1.0] * 99)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"probe": {"kind": "validation"}}, r"probe\.kind validation needs labels of its own"),
        ({"probe": {"kind": "knn", "patience": 3}}, r"probe\.patience is for probe\.kind validation, and it is knn"),
        ({"probe": {"kind": "knn", "label_file": "a.npy"}}, r"probe\.label_file is for probe\.kind validation"),
        ({"probe": None}, r"optim\.schedule plateau follows the validation loss: set probe\.kind to validation"),
        (
            {"method": {"name": "simclr"}, "augment": {"recipe": "simclr-small"}},
            r"probe\.kind validation: method simclr has no classifier",
        ),
        ({"optim__layer_decay": 0.0}, r"optim\.layer_decay: .*greater than 0"),
        ({"optim__plateau_factor": 1.0}, r"optim\.plateau_factor: .*less than 1"),
    ],
)
def test_settings_that_make_no_sense_are_refused(
    small_store: Path, files: dict[str, str], changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        small_config(small_store, **settings(files, **changes))


def test_validation_labels_are_not_learned_from_and_do_not_change(
    small_store: Path, tmp_path: Path, files: dict[str, str]
) -> None:
    def at(labels: np.ndarray) -> Any:
        np.save(tmp_path / "held.npy", labels)
        probe = {"kind": "validation", "label_file": str(tmp_path / "held.npy")}
        return resolve(small_config(small_store, **settings(files, probe=probe))).config

    train, held = (np.load(files[name]) for name in ("train", "held"))
    began = at(held)
    with pytest.raises(ConfigError, match=r"has 36 images whose labels the method learns from, first image 0"):
        at(train)
    with pytest.raises(ConfigError, match="has no label: it names the images to validate on"):
        at(np.full_like(held, -1))
    with pytest.raises(ConfigError, match=r"has a label 3, and method\.num_classes is 3"):
        at(np.where(held >= 0, 3, -1))
    other = at(np.where(held >= 0, 0, -1))
    assert began.fingerprint() != other.fingerprint()
    with pytest.raises(StoreError, match=r"has validation_digest .*: set probe\.label_file to what it was"):
        began.expect_same_data(other)
