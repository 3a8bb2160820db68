"""Embeddings for TensorBoard's projector: what it is given fits together, also after a resume, and changes no bit."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
import torch
from google.protobuf import text_format
from PIL import Image
from tensorboard.plugins.projector.projector_config_pb2 import ProjectorConfig

from ssl_dist.backbones import Backbone
from ssl_dist.collectives import World
from ssl_dist.config import ResolvedConfig
from ssl_dist.evaluate import encoder_of
from ssl_dist.evaluate.features import extract
from ssl_dist.store import ImageStore
from ssl_dist.training.loop import StopRequests, pretrain
from ssl_dist.training.projector import Projector, principal
from tests.helpers import resolved_config


def settings(store: Path, images: int | None = 20, **more: object) -> ResolvedConfig:
    projector = images and {"every_epochs": 1, "images": images}
    return resolved_config(store, epochs=2, probe=None, monitor__projector=projector, **more)


@pytest.fixture(scope="module")
def run(small_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Interrupt a run after 3 of its 8 steps, leave a file of a later one, and finish it."""
    directory = tmp_path_factory.mktemp("run")
    asked = iter([False, False, True])
    pretrain(settings(small_store), directory, World(), StopRequests(stop=lambda: next(asked)))
    folder = directory / "tensorboard" / "projector" / "20-images"
    (folder / "step-00000004.tsv").write_text("1\n")
    pretrain(settings(small_store), directory, World(), StopRequests())
    return directory


def shown(run: Path) -> ProjectorConfig:
    text = (run / "tensorboard" / "projector_config.pbtxt").read_text(encoding="utf-8")
    return text_format.Parse(text, ProjectorConfig())


def test_the_projector_has_the_chosen_steps_and_the_newest_last(run: Path) -> None:
    assert [one.tensor_name for one in shown(run).embeddings] == ["step 0", "step 3", "step 5", "step 8"]


def test_its_features_are_the_encoders_and_its_rows_the_images(run: Path, small_store: Path) -> None:
    board, store = run / "tensorboard", ImageStore(small_store)
    last = shown(run).embeddings[-1]
    ids = np.arange(20) * 51 // 20
    backbone, config, step = encoder_of(run)
    assert step == 8
    features = extract(backbone, store, ids, torch.device("cpu"), config).numpy()
    np.testing.assert_allclose(np.loadtxt(board / last.tensor_path), features, rtol=1e-4)  # five digits are written
    with (board / last.metadata_path).open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    assert [row["key"] for row in rows] == store.keys_at(ids)
    assert [row["class"] for row in rows] == [store.class_names[label] for label in store.labels_at(ids)]
    side, _ = last.sprite.single_image_dim
    with Image.open(board / last.sprite.image_path) as sprite:
        assert sprite.size == (5 * side, 5 * side)
        for number, pixels in enumerate(store.gather(ids)):
            left, top = number % 5 * side, number // 5 * side
            assert np.array_equal(np.asarray(sprite.crop((left, top, left + side, top + side))), pixels)


def test_the_projector_changes_no_bit_of_the_weights(run: Path, small_store: Path, tmp_path: Path) -> None:
    pretrain(settings(small_store, images=None), tmp_path, World(), StopRequests())
    assert not (tmp_path / "tensorboard" / "projector").exists()
    for name in ("model.safetensors", "optimizer.safetensors"):
        a, b = (path / "checkpoints" / "step-00000008" / name for path in (run, tmp_path))
        assert a.read_bytes() == b.read_bytes()


def test_a_resume_with_another_number_of_images_keeps_the_earlier_ones(small_store: Path, tmp_path: Path) -> None:
    for images, step in ((20, 1), (30, 2), (1000, 3)):  # of a store of 51
        config = settings(small_store, images=images)
        projector = Projector(tmp_path, config, ImageStore(small_store), World(), step - 1)
        projector.write(step, config.initial_backbone())
    found = shown(tmp_path).embeddings
    assert [Path(one.metadata_path).parent.name for one in found] == ["20-images", "30-images", "51-images"]
    for one in found:
        lines = (tmp_path / "tensorboard" / one.tensor_path).read_text().splitlines()
        rows = (tmp_path / "tensorboard" / one.metadata_path).read_text().splitlines()
        assert len(lines) == len(rows) - 1


def _features(rank: int, size: int, store: Path, out: Path) -> None:
    config = settings(store)
    backbone: Backbone = config.initial_backbone()
    Projector(out / str(size), config, ImageStore(store), World.current(), 0).write(0, backbone)


def test_several_workers_write_what_one_writes(small_store: Path, tmp_path: Path, gloo: object) -> None:
    for size in (1, 2):
        gloo(size).run(_features, small_store, tmp_path)  # type: ignore[operator]
    one, two = (
        np.loadtxt(tmp_path / str(size) / "tensorboard/projector/20-images/step-00000000.tsv") for size in (1, 2)
    )
    np.testing.assert_allclose(one, two, rtol=1e-4)  # five digits are written


def test_many_features_become_principal_components() -> None:
    random = np.random.default_rng(0)
    few, flat = torch.from_numpy(random.normal(size=(40, 6))), torch.from_numpy(random.normal(size=(6, 300)))
    found = principal((few @ flat).float(), 200)
    assert found.shape == (40, 200)
    np.testing.assert_allclose(torch.cdist(found, found), torch.cdist(few @ flat, few @ flat), atol=1e-3)  # of 70
    assert found.var(0).diff().max() < 1e-6  # the largest first
    assert principal(few.float(), 200).equal(few.float().double())
