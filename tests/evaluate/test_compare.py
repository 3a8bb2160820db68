"""Two stores are compared by the names of their classes, and nothing is embedded for a score that cannot be had."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import pytest
from PIL import Image

from ssl_dist.checkpoint import State
from ssl_dist.errors import RunError, StoreError, UsageError
from ssl_dist.evaluate import Knn, Linear, Options, compare
from ssl_dist.evaluate.labelled import labels_by_name
from ssl_dist.evaluate.protocols import EvaluationProtocol
from ssl_dist.store import ImageStore, append, build, label
from tests.helpers import save, small_config

Stores = Callable[..., Path]
TINTS = {"apple": (200, 30, 30), "banana": (210, 200, 40), "cherry": (90, 10, 60), "fig": (40, 40, 200)}
nearest = Knn(k=3)


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
@pytest.mark.parametrize("protocol", [nearest, Linear(1e-3)])
def test_a_test_store_that_lacks_classes_is_compared_by_their_names(
    run: Path, stores: Stores, lacking: tuple[tuple[str, str], ...], protocol: EvaluationProtocol
) -> None:
    train = stores(*same(*TINTS))
    left = [pair for pair in same(*TINTS) if pair not in lacking]
    result = compare(run, train, stores(*left, seed=1), protocol)
    assert (result.trained, len(result.test.ids)) == (1.0, 4 * len(left))


def test_images_of_classes_that_the_training_store_lacks_count_as_wrong(
    run: Path, stores: Stores, caplog: pytest.LogCaptureFixture
) -> None:
    """A figure is of the whole test store: without them it would look better than it is."""
    train, test = stores(*same("apple", "cherry", "fig")), stores(*same(*TINTS), seed=1)
    with caplog.at_level(logging.WARNING):
        result = compare(run, train, test, nearest)
    assert (result.trained, len(result.test.ids)) == (0.75, 16)
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
    ("protocol", "options", "message"),
    [
        (Knn(k=9), Options(), "k 9: the bank has 8 labelled"),
        (Knn(k=0), Options(), "k 0: the bank has 8 labelled"),
        (Knn(k=3, temperature=0.0), Options(), "temperature 0.0: it must be"),
        (Knn(k=3, distance=cast(Any, "manhattan")), Options(), "--distance manhattan: it is one of cosine, euclidean"),
        (Linear(0.0), Options(), "l2 0.0: it must be"),
        (nearest, Options(baselines=["lucky"]), "--baselines lucky: it is some of random, pixels, pca, or none alone"),
        (nearest, Options(features=["neck"]), "--features neck: it is one of backbone, head-1, head-2, all"),
        (nearest, Options(features=[]), "--features names nothing: it is one or more of backbone, head-1"),
        (nearest, Options(features=["all", "neck"]), "--features neck: it is one of"),
        (
            nearest,
            Options(features=["all"]),
            "head-2 leaves out the last 2 linear layers .* this run's has 2 .* head-1",
        ),
        (
            nearest,
            Options(layers=["layer9"]),
            "--layer layer9: backbone resnet8 has no such layer: they are 0, 1, 3, 4, 5$",
        ),
    ],
)
def test_nothing_is_embedded_for_figures_that_cannot_be_had(
    run: Path, stores: Stores, protocol: EvaluationProtocol, options: Options, message: str
) -> None:
    train = stores(*same("apple", "fig"))
    done: list[int] = []
    with pytest.raises(UsageError, match=message):
        compare(run, train, train, protocol, options, lambda images, of: done.append(images))
    assert not done


def test_a_run_without_a_projection_head_is_named(stores: Stores, tmp_path: Path) -> None:
    train = stores(*same("apple", "fig"))
    config = small_config(train, method={"name": "supervised", "num_classes": 2})
    save(State(dict(config.initial_method().state_dict()), {}), tmp_path, 1, config)
    with pytest.raises(RunError, match="head-1: method supervised has no projection head"):
        compare(tmp_path, train, train, nearest, Options(features=["head-1"]))


@pytest.mark.parametrize("protocol", [nearest, pytest.param(Linear(), marks=pytest.mark.slow)])
def test_rows_of_levels_and_baselines_are_of_one_protocol(
    run: Path, stores: Stores, protocol: EvaluationProtocol
) -> None:
    train, test = stores(*same(*TINTS)), stores(*same(*TINTS), seed=1)
    options = Options(["backbone", "head-1"], ["3"], ["pca", "random", "pixels", "pca"], seeds=2)  # one of them twice
    done: list[tuple[int, int]] = []
    result = compare(run, train, test, protocol, options, lambda *images: done.append(images))
    levels = [("backbone", 32), ("head-1", 64), ("layer 3", 8)]
    assert [(row.encoder, row.features, row.dim) for row in result.rows] == [
        *(("trained, 1 steps", name, dim) for name, dim in levels),
        *(("random weights", name, dim) for name, dim in levels),
        ("raw pixels", "pixels", 768),
        ("PCA of pixels", "PCA", 16),
    ]
    assert done[-1] == (32 * 5, 32 * 5)
    repeats = [len(row.repeats) for row in result.rows]
    assert repeats == ([1, 1, 1, 2, 2, 2, 1, 1] if protocol is nearest else [2] * 8)
    assert result.random == result.rows[3].top1.value
    plain = json.loads(json.dumps(result.plain()))
    columns = {"encoder", "features", "dim", "top1", "top1_interval", "repeats", "chosen"}
    assert plain["rows"][0].keys() == columns
    for row in plain["rows"][1:]:
        assert row.keys() == columns | {"difference", "difference_interval"}
        assert row["difference"] == pytest.approx(row["top1"] - result.trained, abs=1e-12)
        low, high = row["difference_interval"]
        assert low <= row["difference"] <= high
    assert plain["protocol"].startswith(
        f"Accuracy on the 16 labelled images of {test}, learned from the 16 labelled images of {train}: "
    )


@pytest.mark.parametrize("labels", [None, "2-per-class"])
def test_seeds_follow_the_first(run: Path, stores: Stores, labels: str | None) -> None:
    alike = [(name, "fig") for name in "abcd"]  # so that answers are as good as drawn
    train, test = stores(*alike), stores(*alike, seed=1)
    several, third = (
        compare(run, train, test, Linear(), Options(labels=labels, seeds=count, seed=seed))
        for count, seed in ((3, 5), (1, 7))
    )
    assert [row.repeats[2:] for row in several.rows] == [row.repeats for row in third.rows]
    assert len(set(several.rows[1].repeats)) > 1
    assert "; 3 seeds of what is random, the first 5. Intervals" in several.protocol


def test_features_of_the_first_seed_are_the_runs_random_start(run: Path, stores: Stores) -> None:
    """The run's weights are those of its seed, so both rows must agree in all answers."""
    train, test = stores(*same(*TINTS)), stores(*same(*TINTS), seed=1)
    trained, random = compare(run, train, test, nearest).rows
    np.testing.assert_array_equal(trained.answers.classes, random.answers.classes)
    np.testing.assert_array_equal(trained.answers.confidence, random.answers.confidence)


@pytest.mark.parametrize("protocol", [nearest, Linear()])
def test_test_labels_choose_nothing(run: Path, stores: Stores, tmp_path: Path, protocol: EvaluationProtocol) -> None:
    """Answers and choices stay what they are when all test labels are false."""
    train, test = stores(*same(*TINTS)), stores(*same(*TINTS), seed=1)
    shutil.copytree(test, tmp_path / "false")
    following = dict(zip(TINTS, [*list(TINTS)[1:], "apple"], strict=True))
    lines = [f"{name}/{number}.png,{following[name]}" for name in TINTS for number in range(4)]
    (tmp_path / "false.csv").write_text("\n".join(["key,label", *lines]))
    label(tmp_path / "false", tmp_path / "false.csv")
    options = Options(baselines=["random", "pca"], seeds=2)
    honest, leaked = (compare(run, train, path, protocol, options) for path in (test, tmp_path / "false"))
    assert honest.trained != leaked.trained
    for one, other in zip(honest.rows, leaked.rows, strict=True):
        np.testing.assert_array_equal(one.answers.classes, other.answers.classes)
        assert one.chosen == other.chosen
