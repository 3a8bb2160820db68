"""Maps of features: what is far apart stays apart, colours are what they say, and mistakes are told first."""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from ssl_dist.checkpoint import Checkpoint, State, locate, locate_all
from ssl_dist.errors import RunError
from ssl_dist.evaluate import extract
from ssl_dist.evaluate.features import load_method
from ssl_dist.evaluate.maps import (
    Groups,
    Panel,
    Settings,
    embed_over_training,
    layout,
    layouts,
    principal_components,
    share_beside_their_own,
    spread_evenly,
    vote_of_others,
)
from ssl_dist.evaluate.over_training import drawn
from ssl_dist.report.maps import draw_maps, grid, palette
from ssl_dist.store import ImageStore, build
from tests.command import Command
from tests.conftest import write_images
from tests.helpers import save, small_config
from tests.report.test_map_page import Page

CPU = torch.device("cpu")
TSNE = Settings("tsne", 5.0, "class", 3, 0)


def blobs(each: int, dim: int = 6) -> tuple[np.ndarray, np.ndarray]:
    """Make three far groups of points, of different sizes and spreads."""
    random = np.random.default_rng(0)
    sizes = (each, 2 * each, 3 * each)
    parts = [random.normal(size=(n, dim)) * (k + 1) + 200 * np.eye(dim)[k] for k, n in enumerate(sizes)]
    return np.concatenate(parts).astype(np.float32), np.repeat(np.arange(3), sizes)


def test_tsne_keeps_three_far_blobs_apart() -> None:
    x, labels = blobs(12)
    points = layout(x, TSNE, np.random.default_rng(1).normal(size=(len(x), 2)))  # a start that knows nothing of them
    assert share_beside_their_own(points, labels) == 1
    centres = np.stack([points[labels == k].mean(0) for k in range(3)])
    widest = max(np.linalg.norm(points[labels == k] - centres[k], axis=1).mean() for k in range(3))
    assert min(np.linalg.norm(centres[k] - centres[k - 1]) for k in range(3)) > 2 * widest


def test_a_map_is_a_function_of_its_seed_and_start() -> None:
    x, _ = blobs(6)
    points = layout(x, TSNE, x[:, :2])
    assert np.array_equal(points, layout(x.copy(), TSNE, 8 * x[:, :2])), "the start's scale does not matter"
    assert not np.array_equal(points, layout(x, TSNE, x[:, 2:4]))
    with pytest.raises(RunError, match="all images have the same features"):
        principal_components(np.ones_like(x))


def test_each_map_of_a_strip_starts_from_the_one_before() -> None:
    x, _ = blobs(6)
    other = x[:, ::-1].copy()
    first, second = layouts({None: x, 40: other}, TSNE)
    assert (first.step, first.title, second.title) == (None, "random weights", "step 40")
    assert np.array_equal(first.points, layout(x, TSNE, x[:, :2]))
    assert np.array_equal(second.points, layout(other, TSNE, first.points))


@pytest.mark.extras
def test_umap_keeps_three_far_blobs_apart() -> None:
    x, labels = blobs(12)
    points = layout(x, TSNE._replace(method="umap"), x[:, :2])
    assert share_beside_their_own(points, labels) == 1


def test_principal_components_keep_the_variance_that_they_can() -> None:
    random = np.random.default_rng(0)
    x = (random.normal(size=(80, 60)) * np.linspace(3, 1, 60) + 5).astype(np.float32)
    found = principal_components(x)
    eigenvalues = np.sort(np.linalg.eigvalsh(np.cov(x.T.astype(np.float64))))[::-1]
    assert found.shape == (80, 50)
    assert np.var(found, axis=0, ddof=1) == pytest.approx(eigenvalues[:50], rel=1e-4)
    assert principal_components(x[:20]).shape == (20, 20)


def test_the_share_counts_nearest_neighbours() -> None:
    points = np.array([[0, 0], [1, 0], [2.5, 0], [10, 0], [11, 0]])
    assert share_beside_their_own(points, np.array([0, 0, 1, 2, 2])) == 0.8


def test_a_prediction_is_the_vote_of_the_others_written_out() -> None:
    random = np.random.default_rng(0)
    features = random.normal(size=(600, 4)) + 0.3
    labels = np.where(random.random(600) < 0.6, random.integers(0, 3, 600), -1).astype(np.int32)
    z = features / np.linalg.norm(features, axis=1, keepdims=True)
    expected = []
    for row in range(600):
        others = [one for one in np.flatnonzero(labels >= 0) if one != row]
        nearest = sorted(others, key=lambda one: -float(z[row] @ z[one]))[:20]
        votes = [sum(np.exp((z[row] @ z[one] - 1) / 0.1) for one in nearest if labels[one] == k) for k in range(3)]
        expected.append(int(np.argmax(votes)))
    assert (vote_of_others(torch.from_numpy(features), labels) == expected).mean() > 0.998  # float32 may turn a tie
    alone = np.array([-1, 1, -1], dtype=np.int32)
    assert vote_of_others(torch.eye(3), alone).tolist() == [1, -1, 1]


def test_images_are_drawn_by_the_shares_of_the_classes() -> None:
    labels = np.repeat([0, 1, 2, -1], [500, 300, 17, 183]).astype(np.int32)
    labels = labels[np.random.default_rng(0).permutation(1000)]
    ids = drawn(100, 1000, 5, labels)
    counts = {label: int((labels[ids] == label).sum()) for label in (0, 1, 2, -1)}
    assert (counts[0], counts[1], counts[2] in (1, 2), counts[-1] in (18, 19)) == (50, 30, True, True)
    assert len(set(ids.tolist())) == 100
    assert ids.tolist() == drawn(100, 1000, 5, labels).tolist() != drawn(100, 1000, 6, labels).tolist()
    assert drawn(2000, 1000, 5, labels).tolist() == list(range(1000))


def test_a_strip_has_at_most_eight_checkpoints_the_first_and_the_last_among_them() -> None:
    def steps(count: int) -> list[int]:
        return [one.step for one in spread_evenly([Checkpoint(Path(), step, None, None) for step in range(count)])]  # type: ignore[arg-type]

    assert (steps(1), steps(8)) == ([0], list(range(8)))
    assert steps(29) == [0, 4, 8, 12, 16, 20, 24, 28]


def test_panels_are_laid_out_and_groups_differ_in_colour() -> None:
    assert [grid(n) for n in (1, 2, 3, 4, 6, 9)] == [(1, 1), (1, 2), (1, 3), (2, 2), (2, 3), (3, 3)]
    for count in (3, 10, 64):
        names = [*map(str, range(count)), "no label"]
        colours = palette(names)
        assert len(set(colours)) == count + 1
        assert colours[-1] == "#999999"
        assert all(len(colour) == 7 for colour in colours)


def test_names_of_any_kind_are_drawn(tmp_path: Path) -> None:
    names = ["_misc", "$x^$", "a$", r"\frac", "a class of a name that is far too long for a legend", "no label"]
    panels = [Panel(None, np.arange(12.0).reshape(6, 2))]
    draw_maps(panels, Groups("class", names, np.arange(6), np.ones(6, bool)), "run $^$ 1", tmp_path / "map.png")
    plain = Groups("class", [f"c{number}" for number in range(99)], np.arange(6), np.ones(6, bool))
    draw_maps(panels, plain, "99 classes", tmp_path / "many.png")
    assert Image.open(tmp_path / "map.png").size[0] == Image.open(tmp_path / "many.png").size[0] == 660


@pytest.fixture(scope="module")
def run(small_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a run of two checkpoints, whose weights are those of other seeds."""
    path = tmp_path_factory.mktemp("runs") / "a run"
    config = small_config(small_store, batch={"size": 48, "micro": 48})
    for step in (2, 6):
        weights = small_config(small_store, seed=step).initial_method().state_dict()
        save(State(weights, {}), path, step, config)
    return path


@pytest.fixture(scope="module")
def classifying(small_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("runs") / "supervised"
    config = small_config(small_store, method={"name": "supervised", "num_classes": 3}, augment={"recipe": "weak"})
    save(State(config.initial_method().state_dict(), {}), path, 1, config)
    return path


def test_colours_are_what_the_last_checkpoint_knows(run: Path, classifying: Path, small_store: Path) -> None:
    store, ids = ImageStore(small_store), np.arange(0, 51, 2)

    def groups(path: Path, colour: str) -> Any:
        settings = TSNE._replace(colour=colour)
        return embed_over_training(locate_all(path), store, ids, settings, with_random=False)[1]

    by_class = groups(run, "class")
    assert (by_class.title, by_class.names) == ("class", ["class0", "class1", "class2"])
    assert np.array_equal(by_class.numbers, store.labels[ids])
    others = groups(run, "prediction")
    found = locate(run)
    features = extract(load_method(found).backbone, store, ids, CPU, found.config)
    expected = vote_of_others(features, store.labels[ids])
    assert others.title == "prediction of the 20 nearest labelled images"
    assert [others.names[number] for number in others.numbers] == [f"class{number}" for number in expected]
    clusters = groups(run, "cluster")
    assert (len(clusters.names), clusters.title) == (3, "cluster of k-means")
    own = groups(classifying, "prediction")
    method = load_method(locate(classifying))
    network = torch.nn.Sequential(method.backbone, method.get_submodule("classifier"))
    expected = extract(network, store, ids, CPU, locate(classifying).config).argmax(1).numpy()
    assert own.title == "prediction of the run's classifier"
    assert [own.names[number] for number in own.numbers] == [f"class{number}" for number in expected]


def test_a_map_is_drawn_beside_the_run(
    command: Command, run: Path, small_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    mine = shutil.copytree(run, tmp_path / "run")
    done = command("evaluate", "map", mine, "--store", small_store, "--perplexity", "5", "--json")
    assert done.code == 0, done
    assert (done.json["images"], done.json["colour"], done.json["picture"]) == (51, "class", str(mine / "map.png"))
    assert [one["step"] for one in done.json["maps"]] == [6]
    assert "t-SNE of 51 of 51 images" in done.err
    width, height = Image.open(mine / "map.png").size
    assert (width, height > 440) == (660, True)


def test_a_strip_has_a_panel_for_the_random_weights_and_each_checkpoint(
    command: Command, run: Path, small_store: Path, tmp_path: Path
) -> None:
    out, options = tmp_path / "strip.png", ("--checkpoints", "all", "--perplexity", "5", "--images", "20")
    done = command("evaluate", "map", run, "--store", small_store, "--out", out, *options, "--json")
    assert [one["step"] for one in done.json["maps"]] == [None, 2, 6]
    assert Image.open(out).size[0] == 3 * 440
    assert [path.name for path in tmp_path.iterdir()] == ["strip.png"], "nothing is left beside it"


def test_the_command_writes_a_page(command: Command, run: Path, small_store: Path, tmp_path: Path) -> None:
    out, options = tmp_path / "map.HTML", ("--checkpoint", "all", "--perplexity", "5", "--images", "20")
    done = command(
        "evaluate", "map", run, "--store", small_store, "--out", out, *options, "--colour", "cluster", "--json"
    )
    assert (done.code, done.json["picture"]) == (0, str(out))
    data = Page(out.read_text(encoding="utf-8")).data
    assert [panel["title"] for panel in data["panels"]] == ["random weights", "step 2", "step 6"]
    assert (len(data["keys"]), data["groupTitle"]) == (20, "cluster of k-means")
    assert data["title"] == "a run: t-SNE of 20 images, perplexity 5, seed 0"


def test_without_labels_the_colours_are_clusters(command: Command, run: Path, tmp_path: Path) -> None:
    write_images(tmp_path / "images", num_classes=1, per_class=12)
    build(tmp_path / "images" / "class0", tmp_path / "store", workers=1)
    given = ("evaluate", "map", run, "--store", tmp_path / "store", "--perplexity", "3", "--out", tmp_path / "map.png")
    done = command(*given, "--json")
    assert (done.code, done.json["groups"]) == (0, "cluster of k-means")
    for colour in ("class", "prediction"):
        done = command(*given, "--colour", colour)
        assert (done.code, done.err.count("\n")) == (2, 1)
        assert f"has no labels for --colour {colour}: choose --colour cluster" in done.err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--out", "map.svg"), "--out map.svg: its name must end in .png or .html"),
        (("--out", "map"), "--out map: its name must end in .png or .html"),
        (("--perplexity", "51"), "--perplexity 51: it is at least 1 and less than the 51 images of the map"),
        (("--perplexity", "nan"), "--perplexity nan: it is at least 1"),
        (("--images", "20"), "--perplexity 30: it is at least 1 and less than the 20 images of the map"),
        (("--colour", "clas"), "--colour clas: it is class or prediction or cluster"),
        (("--method", "pca"), "--method pca: it is tsne or umap"),
        (("--colour", "cluster", "--clusters", "52"), "--clusters 52: it is one of 1..51"),
        (("--checkpoint", "4"), "has no checkpoint of step 4"),
        (("--method", "umap"), "--method umap needs umap-learn, which is not installed: pip install umap-learn"),
    ],
)
def test_a_mistake_is_told_before_anything_is_embedded(
    command: Command,
    run: Path,
    small_store: Path,
    monkeypatch: pytest.MonkeyPatch,
    options: tuple[str, ...],
    message: str,
) -> None:
    find: Callable[..., Any] = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "umap" else find(name, *rest))
    monkeypatch.setattr("ssl_dist.evaluate.features.extract", None)
    done = command("evaluate", "map", run, "--store", small_store, *options)
    assert (done.code, done.err.count("\n")) == (2, 1), done
    assert message in done.err
    assert not (run / "map.png").exists()


def test_a_panel_names_its_step() -> None:
    assert Panel(12_000, np.zeros((1, 2))).title == "step 12,000"
