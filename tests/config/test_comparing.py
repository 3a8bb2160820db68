"""The command that a report prints makes the run's settings again, from any recipe."""

from __future__ import annotations

import shlex
from typing import Any

import pytest

from ssl_dist.commands.options import overrides_of
from ssl_dist.config import RunConfig
from ssl_dist.config.comparing import Difference, as_written, base_of, differences
from ssl_dist.reading import RECIPE_FOLDER

RECIPES = sorted(file.stem for file in RECIPE_FOLDER.glob("*.yaml"))
CHANGES: list[dict[str, Any]] = [
    {},
    {"epochs": 2.5, "seed": 7, "data.store": "a store's 'name' #1"},
    {"probe": None, "cluster.workers": {"min": 1, "max": 3}, "optim.betas": [0.8, 0.95]},
    {"backbone.normalisation": {"mean": [0.1, 0.2, 0.3], "std": [1, 1, 1]}, "monitor.hparams": ["optim.lr"]},
    {"optim.weight_decay": 1e-7, "data.cache": "no", "engine.compile": "off", "probe.every_epochs": 0.25},
]


@pytest.mark.parametrize("changes", CHANGES, ids=str)
@pytest.mark.parametrize("recipe", RECIPES)
def test_the_command_gives_the_settings_again(recipe: str, changes: dict[str, Any]) -> None:
    config = RunConfig.load(recipe, changes)
    for base in (base_of(config, recipe), base_of(config)):
        assert base is not None
        words = shlex.split(base.command)
        assert words[:2] == ["ssl-dist", "pretrain"]
        assert set(words[3::2]) <= {"--set"}
        assert RunConfig.load(words[2], overrides_of(words[4::2])) == config


def test_a_run_is_compared_with_its_recipe_or_the_nearest() -> None:
    config = RunConfig.load("simclr-cifar10", {"optim.lr": 0.5})
    changed = [Difference("optim.lr", 0.003, 0.5)]
    assert base_of(config, "simclr-cifar10") == base_of(config, "photos.yaml") == ("simclr-cifar10", changed)
    other = base_of(config, "simclr-digits")
    assert other is not None
    assert len(other.differences) > 3


def test_what_only_one_side_has_is_whole() -> None:
    config = RunConfig.load("simclr-cifar10")
    [found] = differences(config, RunConfig.load("simclr-cifar10", {"probe": None}))
    assert (found.key, found.now) == ("probe", None)
    other = differences(config, RunConfig.load("simclr-cifar10", {"method": {"name": "barlow_twins"}}))
    assert [(one.key, one.now["name"]) for one in other] == [("method", "barlow_twins")]


@pytest.mark.parametrize(
    ("store", "is_told"),
    [
        ("stores/cifar10-train", False),
        ("/home/me/stores/cifar10-train", False),
        ("/home/me/more-stores/cifar10-train", True),
        ("/home/me/stores/cifar10-train/part", True),
        ("more/stores/cifar10-train", True),
        ("s3://bucket/stores/cifar10-train", True),
    ],
)
def test_the_folder_of_a_path_tells_nothing_and_stays_in_the_command(store: str, is_told: bool) -> None:
    base = base_of(RunConfig.load("simclr-cifar10", {"data.store": store}), "simclr-cifar10")
    assert base is not None
    assert [one.now for one in base.told] == [store] * is_told
    is_same = store == "stores/cifar10-train"
    assert base.command == "ssl-dist pretrain simclr-cifar10" + ("" if is_same else f" --set data.store={store}")


@pytest.mark.parametrize(
    ("value", "text"),
    [(3.0, "3"), (1e-5, "1e-05"), (None, "null"), (True, "true"), ("a: b", "a: b"), ([1, 2.5], "[1, 2.5]")],
)
def test_values_are_written_as_set_takes_them(value: Any, text: str) -> None:
    assert as_written(value) == text
