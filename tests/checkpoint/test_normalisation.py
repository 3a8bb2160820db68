"""Images are normalised before the first layer as they were when the weights learned."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from safetensors.torch import save_file
from torch import Tensor, nn

from ssl_dist import store
from ssl_dist.backbones import KNOWN_INPUTS
from ssl_dist.checkpoint import Checkpoints, pretrained
from ssl_dist.collectives import World
from ssl_dist.config import ResolvedConfig
from ssl_dist.errors import ConfigError
from ssl_dist.evaluate import encoder_of, extract
from ssl_dist.store import ImageStore
from ssl_dist.training.loop import StopRequests, pretrain
from tests.conftest import write_images
from tests.helpers import resolved_config, with_facts

SIZE = 32


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("normalisation")
    write_images(folder / "images", num_classes=2, per_class=6, size_px=SIZE)
    store.build(folder / "images", folder / "store", workers=1)
    return folder / "store"


def images_of(photos: Path) -> Tensor:
    """Return all images of a store, uint8 ``[N, 3, H, W]``."""
    return torch.from_numpy(ImageStore(photos).gather(np.arange(12))).permute(0, 3, 1, 2)


def torchvision_network(name: str) -> nn.Module:
    """Build torchvision's network as torchvision does to load its weights; these are random here."""
    torch.manual_seed(3)
    inception = {"transform_input": True, "init_weights": False} if name in ("googlenet", "inception_v3") else {}
    network: nn.Module = torchvision.models.get_model(name, weights=None, **inception)
    return network


def from_weights(photos: Path, weights: Path, **overrides: Any) -> ResolvedConfig:
    given = {"probe": None, "epochs": 1, **overrides, "backbone__weights": str(weights)}
    return pretrained.resolve(resolved_config(photos, **given))


@pytest.mark.parametrize(
    ("name", "classifier"),
    [("resnet18", "fc"), ("shufflenet_v2_x0_5", "fc"), ("squeezenet1_1", "classifier.1"), ("googlenet", "fc")],
)
def test_features_are_those_of_torchvisions_preprocessing_and_network(
    photos: Path, tmp_path: Path, name: str, classifier: str
) -> None:
    network = torchvision_network(name)
    save_file(network.state_dict(), tmp_path / "weights.safetensors")
    config = from_weights(photos, tmp_path / "weights.safetensors", backbone={"name": name})
    ours = config.initial_method(pretrained.read(config)).backbone.double().eval()
    network.set_submodule(classifier, nn.Identity())
    preprocess = torchvision.models.get_model_weights(name).DEFAULT.transforms(crop_size=SIZE, resize_size=SIZE)
    with torch.no_grad():
        wanted = network.double().eval()(preprocess(images_of(photos)).double())
        found = ours(images_of(photos).double() / 255)
    # torchvision normalises in float32, whose rounding is 6e-8 of a value
    assert float((found - wanted).norm() / wanted.norm()) < 1e-5


def features(run: Path, photos: Path) -> Tensor:
    backbone, config, _ = encoder_of(run)
    return extract(backbone, ImageStore(photos), np.arange(12), torch.device("cpu"), config)


def normalised_features(run: Path, photos: Path, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """Compute features of images that are normalised outside of the backbone."""
    body = encoder_of(run)[0].body.eval()
    pixels = torchvision.transforms.functional.normalize(images_of(photos).float() / 255, list(mean), list(std))
    with torch.no_grad():
        found: Tensor = body(pixels)
    return found


@pytest.mark.parametrize("own", [None, {"mean": [0.4, 0.5, 0.6], "std": [0.1, 0.2, 0.3]}])
def test_it_goes_with_the_weights_through_checkpoints_evaluation_and_further_runs(
    photos: Path, tmp_path: Path, own: dict[str, Any] | None
) -> None:
    save_file(torchvision_network("shufflenet_v2_x0_5").state_dict(), tmp_path / "weights.safetensors")
    backbone = {"name": "shufflenet_v2_x0_5", **({"normalisation": own} if own else {})}
    config = from_weights(photos, tmp_path / "weights.safetensors", backbone=backbone)
    mean_std = (tuple(own["mean"]), tuple(own["std"])) if own else KNOWN_INPUTS["imagenet"]
    first, second = tmp_path / "first", tmp_path / "second"
    first.mkdir()
    pretrain(config, first, World(), StopRequests())
    torch.testing.assert_close(features(first, photos), normalised_features(first, photos, *mean_std))
    assert Checkpoints(first).newest().config.backbone.normalisation == config.backbone.normalisation  # type: ignore[union-attr]
    bare = shutil.copy(Checkpoints(first).list()[0] / "model.safetensors", tmp_path / "bare.safetensors")
    for weights in (first, bare):
        next_one = from_weights(photos, weights, backbone={"name": "shufflenet_v2_x0_5"})
        assert next_one.backbone.normalisation == config.backbone.normalisation
    second.mkdir()
    pretrain(next_one, second, World(), StopRequests())
    torch.testing.assert_close(features(second, photos), normalised_features(second, photos, *mean_std))


def test_random_weights_and_runs_without_it_have_none(photos: Path, tmp_path: Path) -> None:
    config = resolved_config(photos, probe=None, epochs=1)
    pretrain(config, tmp_path, World(), StopRequests())
    assert from_weights(photos, tmp_path).backbone.normalisation is None
    identity = ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    assert torch.equal(features(tmp_path, photos), normalised_features(tmp_path, photos, *identity))


def test_a_map_is_of_normalised_images() -> None:
    images = torch.rand(2, 3, 16, 16, dtype=torch.float64)
    plain, other = (
        with_facts(resolved_config_of(normalisation), 12).initial_backbone().double().eval()
        for normalisation in ("none", "inception")
    )
    assert torch.equal(other.map(images), plain.map(2 * images - 1))  # type: ignore[operator]


def resolved_config_of(normalisation: str) -> ResolvedConfig:
    backbone = {"name": "resnet8", "normalisation": normalisation}
    return ResolvedConfig.from_tree(
        {
            "data": {"store": "/none"},
            "backbone": backbone,
            "facts": {"num_images": 12, "num_samples": 12, "image_shape": (16, 16, 3)},
        },
        "test",
    )


def _without_classifier(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in state.items() if not name.startswith("fc.")}


def _of_ten_classes(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {**state, "fc.weight": state["fc.weight"][:10].clone(), "fc.bias": state["fc.bias"][:10].clone()}


def _of_a_built_in_network(state: dict[str, Tensor]) -> dict[str, Tensor]:
    network = with_facts(resolved_config_of("none"), 12).initial_backbone().body
    return dict(network.state_dict())


@pytest.mark.parametrize("change", [_without_classifier, _of_ten_classes, _of_a_built_in_network])
def test_it_is_asked_for_where_nothing_tells_it(photos: Path, tmp_path: Path, change: Any) -> None:
    file, built_in = tmp_path / "weights.safetensors", change is _of_a_built_in_network
    save_file(change(dict(torchvision_network("resnet18").state_dict())), file)
    name = "resnet8" if built_in else "resnet18"
    with pytest.raises(ConfigError, match=r"nothing in it tells .*: set backbone\.normalisation to imagenet"):
        from_weights(photos, file, backbone={"name": name})
    for given in ("none", "imagenet"):
        assert (
            from_weights(photos, file, backbone={"name": name, "normalisation": given}).backbone.normalisation == given
        )


def test_what_is_set_by_itself_is_said_and_can_be_replaced(
    photos: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    save_file(torchvision_network("resnet18").state_dict(), tmp_path / "weights.safetensors")
    with caplog.at_level(logging.WARNING):
        from_weights(photos, tmp_path / "weights.safetensors", backbone={"name": "resnet18"})
    assert "torchvision's resnet18 with its 1,000 classes: backbone.normalisation is set to imagenet" in caplog.text
    given = {"name": "resnet18", "normalisation": "none"}
    config = from_weights(photos, tmp_path / "weights.safetensors", backbone=given)
    assert config.initial_backbone().normalisation is None


def test_a_run_that_began_before_keeps_what_it_began_with(photos: Path, tmp_path: Path) -> None:
    """Its config has the digest of its weights and no normalisation, and no new fingerprint."""
    save_file(torchvision_network("resnet18").state_dict(), tmp_path / "weights.safetensors")
    new = from_weights(photos, tmp_path / "weights.safetensors", backbone={"name": "resnet18"})
    began = new.model_copy(update={"backbone": new.backbone.model_copy(update={"normalisation": None})})
    again = pretrained.resolve(began)
    assert again == began
    assert again.fingerprint() == began.fingerprint() != new.fingerprint()
    assert again.initial_backbone().normalisation is None
