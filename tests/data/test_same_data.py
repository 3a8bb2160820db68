"""A run goes on with the images and labels that it began with alone, wherever they lie now."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from cluster.pipelines.completion import complete
from cluster.prepare import reopen
from cluster.run_directory import RunDirectory
from ssl_dist import store
from ssl_dist.config import ResolvedConfig
from ssl_dist.data import resolve
from ssl_dist.errors import StoreError
from ssl_dist.store import ImageStore
from ssl_dist.store.building import builder
from tests.conftest import write_images
from tests.helpers import resolved_config
from tune.runner import _fit
from tune.sweep import Sweep

Change = Callable[[Path], object]


def _repaint(folder: Path) -> None:
    shutil.rmtree(folder)
    write_images(folder, num_classes=3, per_class=17, seed=1)


def _change_one_pixel(folder: Path) -> None:
    file = folder / "class1" / "003.png"
    image = Image.open(file)
    image.putpixel((5, 7), (1, 2, 3))
    image.save(file)


def _swap_two_images(folder: Path) -> None:
    one, other = folder / "class0" / "000.png", folder / "class2" / "016.png"
    one.rename(folder / "aside")
    other.rename(one)
    (folder / "aside").rename(other)


def _swap_two_classes(folder: Path) -> None:
    (folder / "class0").rename(folder / "aside")
    (folder / "class2").rename(folder / "class0")
    (folder / "aside").rename(folder / "class2")


@pytest.fixture
def run(small_store: Path, tmp_path: Path) -> Path:
    """Begin a run that has no checkpoint yet; return its directory."""
    begun = RunDirectory.create(tmp_path / "run", resolved_config(small_store, probe=None))
    begun.release()
    return begun.path


@pytest.mark.parametrize("change", [_repaint, _change_one_pixel, _swap_two_images, _swap_two_classes])
def test_other_images_of_the_same_number_and_size_are_refused(
    image_folder: Path, run: Path, tmp_path: Path, change: Change
) -> None:
    shutil.copytree(image_folder, tmp_path / "images")
    change(tmp_path / "images")
    store.build(tmp_path / "images", tmp_path / "other", workers=1)
    with pytest.raises(StoreError, match=r"other has other images, of the same number and size, than the run began"):
        reopen(run, {"data.store": str(tmp_path / "other")})


def test_a_store_that_was_replaced_or_has_grown_is_refused(
    image_folder: Path, small_store: Path, tmp_path: Path
) -> None:
    """The path is the one in the run's config."""
    path = Path(shutil.copytree(small_store, tmp_path / "store"))
    began = resolved_config(path)
    store.append(image_folder / "class0", path, workers=1, allow_duplicates=True)
    with pytest.raises(StoreError, match="num_images 68 where the run began with 51"):
        began.expect_same_data(resolve(began).config)
    shutil.rmtree(path)
    _repaint(Path(shutil.copytree(image_folder, tmp_path / "images")))
    store.build(tmp_path / "images", path, workers=1)
    with pytest.raises(StoreError, match="other images"):
        began.expect_same_data(resolve(began).config)


def _cut_into_larger_shards(images: Path, to: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(builder, "SHARD_IMAGES", 40)
        store.build(images, to, workers=1)


@pytest.mark.parametrize(
    "make",
    [
        lambda images, to: shutil.copytree(to.with_name("first"), to),
        lambda images, to: to.with_name("first").rename(to),
        lambda images, to: store.build(images, to, workers=2),
        _cut_into_larger_shards,
    ],
    ids=["copied", "moved", "built again", "other shards"],
)
def test_the_same_images_elsewhere_are_the_same(
    image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make: Callable[[Path, Path], object]
) -> None:
    monkeypatch.setattr(builder, "SHARD_IMAGES", 20)
    monkeypatch.setattr(builder, "BATCH_ROWS", 10)
    store.build(image_folder, tmp_path / "first", workers=1)
    began = resolved_config(tmp_path / "first")
    make(image_folder, tmp_path / "elsewhere")
    began.expect_same_data(resolved_config(tmp_path / "elsewhere"))


@pytest.fixture
def relabelled(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Return a function that gives other labels to all stores, whose record batches stay as they are."""

    def give() -> None:
        labels = ImageStore.labels.fget  # type: ignore[attr-defined]
        monkeypatch.setattr(ImageStore, "labels", property(lambda self: 2 - labels(self)))

    return give


SUPERVISED = {"method": {"name": "supervised", "num_classes": 3}, "augment": {"recipe": "weak"}}


@pytest.mark.parametrize("learns", [SUPERVISED, {"data__stratified": True}])
def test_a_run_that_learns_from_labels_is_held_to_them(
    small_store: Path, relabelled: Callable[[], None], learns: dict[str, object]
) -> None:
    began = resolved_config(small_store, **learns)
    began.expect_same_data(resolve(began).config)
    relabelled()
    with pytest.raises(StoreError, match="has other labels than the run began with"):
        began.expect_same_data(resolve(began).config)


def test_a_run_that_does_not_learn_from_labels_goes_on_with_others(
    small_store: Path, relabelled: Callable[[], None], tmp_path: Path
) -> None:
    np.save(tmp_path / "labels.npy", np.arange(51) % 3)
    given = {**SUPERVISED, "data__label_file": str(tmp_path / "labels.npy")}
    began = [resolved_config(small_store), resolved_config(small_store, **given)]
    relabelled()
    for config in began:
        config.expect_same_data(resolve(config).config)


def without_digests(config: ResolvedConfig) -> ResolvedConfig:
    """Return the config as versions wrote it that noted no digest of the store."""
    facts = config.facts.model_copy(update={"store_digest": None, "store_labels_digest": None})
    return config.model_copy(update={"facts": facts})


def test_a_run_that_noted_no_digest_goes_on_and_is_held_to_what_it_goes_on_with(
    image_folder: Path, small_store: Path, tmp_path: Path
) -> None:
    config = resolved_config(small_store)
    old = without_digests(config)
    RunDirectory.create(tmp_path / "run", old).release()
    assert old.fingerprint() != config.fingerprint()
    resumed = reopen(tmp_path / "run", {})
    resumed.run.release()
    assert resumed.config == config
    _repaint(Path(shutil.copytree(image_folder, tmp_path / "images")))
    store.build(tmp_path / "images", tmp_path / "other", workers=1)
    with pytest.raises(StoreError, match="other images"):
        reopen(tmp_path / "run", {"data.store": str(tmp_path / "other")})


def test_stages_and_sweeps_are_held_to_their_images_too(image_folder: Path, small_store: Path, tmp_path: Path) -> None:
    config = resolved_config(small_store, probe=None)
    _repaint(Path(shutil.copytree(image_folder, tmp_path / "images")))
    store.build(tmp_path / "images", tmp_path / "other", workers=1)
    other = resolved_config(tmp_path / "other", probe=None)
    RunDirectory.create(tmp_path / "stage", config).release()
    with pytest.raises(StoreError, match="other images"):
        complete(tmp_path / "stage", other, Console(quiet=True))
    replaced = config.model_copy(update={"data": other.data})
    sweep = Sweep.make(recipe=replaced, space={"optim.lr": {"choice": [0.1, 0.2]}}, search="grid", scheduler="none")
    with pytest.raises(StoreError, match="other images"):
        _fit(sweep, tmp_path / "sweep", 1)
