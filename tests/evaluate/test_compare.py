"""Two stores are compared by the names of their classes, and nothing is embedded for a score that cannot be had."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple, cast

import numpy as np
import pytest
from PIL import Image

from ssl_dist.checkpoint import State
from ssl_dist.errors import ConfigError, StoreError
from ssl_dist.evaluate import compare, knn_accuracy, linear_accuracy
from ssl_dist.evaluate.labelled import expect_two_classes, expect_voters, labels_by_name
from ssl_dist.store import ImageStore, append, build
from tests.helpers import save, small_config

Stores = Callable[..., Path]
TINTS = {"apple": (200, 30, 30), "banana": (210, 200, 40), "cherry": (90, 10, 60), "fig": (40, 40, 200)}
nearest = partial(knn_accuracy, k=3)


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> Stores:
    """Return a function that builds a store of four images of each class; a class is (folder, what it shows)."""

    def made(*classes: tuple[str, str], seed: int = 0) -> Path:
        folder, random = tmp_path_factory.mktemp("images"), np.random.default_rng(seed)
        for name, fruit in classes:
            (folder / name).mkdir()
            for number in range(4):
                pixels = np.clip(np.array(TINTS[fruit]) + random.normal(0, 12, (16, 16, 3)), 0, 255)
                Image.fromarray(pixels.astype(np.uint8)).save(folder / name / f"{number}.png")
        build(folder, folder / "store", workers=1)
        return folder / "store"

    return made


@pytest.fixture(scope="module")
def run(stores: Stores, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a run whose encoder has random weights; four colours are far apart in its features."""
    path = tmp_path_factory.mktemp("run")
    store = stores(*((name, name) for name in TINTS))
    config = small_config(store)
    method = config.initial_method()
    state = {name: tensor.clone() for name, tensor in method.state_dict().items()}
    save(State(state, {}), path, 1, config)
    return path


def same(*names: str) -> tuple[tuple[str, str], ...]:
    return tuple((name, name) for name in names)


def test_the_same_images_on_both_sides_are_named(
    run: Path, stores: Stores, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    train, test = stores(*same("apple", "fig")), stores(*same("apple", "fig"), seed=1)
    compare(run, train, test, nearest)
    assert "images in common" not in caplog.text
    shutil.copytree(test, tmp_path / "grown")
    append(train.parent / "apple", tmp_path / "grown", workers=1)
    for one, other in ((train, train), (test, tmp_path / "grown")):
        caplog.clear()
        compare(run, one, other, nearest)
        assert f"{one} and {other} have images in common, which a classifier has seen" in caplog.text


@pytest.mark.parametrize("lacking", [same("cherry"), same("apple", "fig"), same("fig")])
@pytest.mark.parametrize("score", [nearest, linear_accuracy])
def test_a_test_store_that_lacks_classes_is_compared_by_their_names(
    run: Path, stores: Stores, lacking: tuple[tuple[str, str], ...], score: Callable[..., float]
) -> None:
    train = stores(*same(*TINTS))
    left = [pair for pair in same(*TINTS) if pair not in lacking]
    result = compare(run, train, stores(*left, seed=1), score)
    assert (result.trained, result.num_test) == (1.0, 4 * len(left))


def test_images_of_classes_that_the_training_store_lacks_count_as_wrong(
    run: Path, stores: Stores, caplog: pytest.LogCaptureFixture
) -> None:
    """A figure is of the whole test store: without them it would look better than it is."""
    train, test = stores(*same("apple", "cherry", "fig")), stores(*same(*TINTS), seed=1)
    with caplog.at_level(logging.WARNING):
        result = compare(run, train, test, nearest)
    assert (result.trained, result.num_test) == (0.75, 16)
    assert [record.getMessage() for record in caplog.records] == [
        f"{train} has no class 'banana', so 4 images of {test} count as wrong"
    ]


class Labelled(NamedTuple):
    """Stands in for a store, with classes in any order and as few as one."""

    name: str
    class_names: tuple[str, ...]
    labels: np.ndarray


@pytest.mark.parametrize(
    ("train", "test", "labels", "expected"),
    [
        (("a", "b", "c"), ("c", "a", "b"), [0, 1, 2, -1, 0], [2, 0, 1, -1, 2]),
        (("a", "b", "c"), ("b",), [0, -1, 0], [1, -1, 1]),
        (("b",), ("a", "b"), [0, 1, -1, 1], [1, 0, -1, 0]),
        (("b", "d"), ("a", "b", "c", "d"), [0, 1, 2, 3], [2, 0, 3, 1]),
        (("a", "b"), ("a", "b"), [-1, 1, 0], [-1, 1, 0]),
    ],
    ids=["another order", "one class of several", "the only class", "unknown classes between", "the same"],
)
def test_labels_get_the_training_stores_numbers(
    train: tuple[str, ...], test: tuple[str, ...], labels: list[int], expected: list[int]
) -> None:
    stores = Labelled("train", train, np.array([])), Labelled("test", test, np.array(labels, dtype=np.int32))
    found = labels_by_name(*cast(tuple[ImageStore, ImageStore], stores))
    assert (found.dtype, found.tolist()) == (np.int32, expected)


def test_stores_of_which_each_has_classes_of_its_own_are_refused_with_the_differing_names(
    run: Path, stores: Stores
) -> None:
    train, test = stores(*same("apple", "banana", "fig")), stores(("Apple", "apple"), ("banana", "banana"))
    with pytest.raises(StoreError, match=r"only the first has 'apple', 'fig', only the second has 'Apple': name the"):
        compare(run, train, test, nearest)


def test_many_differing_names_are_not_all_listed(run: Path, stores: Stores) -> None:
    train, test = stores(*same(*TINTS)), stores(("x", "fig"), ("y", "fig"))
    with pytest.raises(StoreError, match=r"'apple', 'banana', 'cherry' and 1 more, only the second has 'x', 'y': "):
        compare(run, train, test, nearest)


def test_a_store_without_labels_is_refused(run: Path, stores: Stores, tmp_path: Path) -> None:
    train = stores(*same(*TINTS))
    build(train.parent / "apple", tmp_path / "flat", workers=1)
    for pair in ((train, tmp_path / "flat"), (tmp_path / "flat", train)):
        with pytest.raises(StoreError, match="flat has no labels"):
            compare(run, *pair, nearest)


@pytest.mark.parametrize(
    ("check", "score", "classes", "message"),
    [
        (partial(expect_voters, k=9), partial(knn_accuracy, k=9), ("apple", "fig"), "k 9: the bank has 8 labelled"),
        (partial(expect_voters, k=0), partial(knn_accuracy, k=0), ("apple", "fig"), "k 0: the bank has 8 labelled"),
        (
            partial(expect_voters, k=3, temperature=0.0),
            partial(knn_accuracy, k=3, temperature=0.0),
            ("apple", "fig"),
            "temperature 0.0: it must be",
        ),
        (partial(expect_two_classes, l2=0.0), partial(linear_accuracy, l2=0.0), ("apple", "fig"), "l2 0.0: it must be"),
    ],
)
def test_nothing_is_embedded_for_a_score_that_cannot_be_had(
    run: Path,
    stores: Stores,
    check: Callable[[np.ndarray], None],
    score: Callable[..., float],
    classes: tuple[str, ...],
    message: str,
) -> None:
    train = stores(*same(*classes))
    done: list[int] = []
    with pytest.raises(ConfigError, match=message):
        compare(run, train, train, score, check=check, progress=lambda images, of: done.append(images))
    assert not done
