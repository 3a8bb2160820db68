"""Weights of other projects: a run starts from exactly these, or the tensor that does not fit is named."""

from __future__ import annotations

import json
import logging
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from safetensors.torch import save_file
from torch import Tensor, nn

from ssl_dist.backbones import Backbone
from ssl_dist.checkpoint import pretrained
from ssl_dist.checkpoint.matching import Matching
from ssl_dist.config import ResolvedConfig
from ssl_dist.errors import ConfigError
from ssl_dist.settings import BackboneConfig
from tests.checkpoint.foreign import FORMS, State, transformers_resnet, transformers_vit, under, write
from tests.helpers import resolved_config

NAME = "shufflenet_v2_x0_5"
INNER = "stage2.0.weight"
each_form = pytest.mark.parametrize("form", FORMS)


@pytest.fixture(scope="module")
def state() -> State:
    """Return the tensors of a network, without its classifier; no two of them are alike."""
    generator = torch.Generator().manual_seed(0)
    network = torchvision.models.get_model(NAME, weights=None)
    return {
        name: torch.randn(tensor.shape, generator=generator).abs() if tensor.is_floating_point() else tensor
        for name, tensor in network.state_dict().items()
        if not name.startswith("fc.")
    }


@pytest.fixture
def small() -> Backbone:
    """Return a network of few tensors."""
    stage = nn.Sequential(nn.Conv2d(24, 24, 3, groups=24), nn.BatchNorm2d(24))
    return Backbone(nn.Sequential(OrderedDict(conv1=nn.Conv2d(3, 24, 3), stage2=stage)), 24)


def from_weights(store: Path, weights: Path, **backbone: Any) -> ResolvedConfig:
    config = resolved_config(store, backbone={"name": NAME, "weights": str(weights), **backbone})
    return pretrained.resolve(config)


@each_form
def test_a_run_starts_from_exactly_these_weights(
    small_store: Path, state: State, tmp_path: Path, caplog: pytest.LogCaptureFixture, form: str
) -> None:
    file, told = write(FORMS[form], state, tmp_path), FORMS[form].normalisation
    if told is None:
        with pytest.raises(ConfigError, match=r"nothing in it tells .*: set backbone\.normalisation to imagenet"):
            from_weights(small_store, file)
    with caplog.at_level(logging.INFO):
        config = from_weights(small_store, file, **({} if told else {"normalisation": "inception"}))
    assert config.backbone.model_dump(mode="json")["normalisation"] == (told or "inception")
    [line] = {record.getMessage() for record in caplog.records if ", read as " in record.getMessage()}
    assert all(name in line for name in FORMS[form].left_out), line
    made = config.initial_method(pretrained.read(config)).backbone.body.state_dict()
    assert made.keys() == state.keys()
    assert [name for name, tensor in state.items() if not torch.equal(made[name], tensor)] == []


def renamed(table: dict[str, Any], name: str) -> None:
    table[name.replace("stage2", "stage7")] = table.pop(name)


def missing(table: dict[str, Any], name: str) -> None:
    del table[name]


def reshaped(table: dict[str, Any], name: str) -> None:
    table[name] = table[name][None].clone()


def changed_in_all_places(content: Any, change: Callable[[dict[str, Any], str], None], end: str) -> None:
    """Change each tensor whose name ends so, in every dictionary of a file's content."""
    for key, value in list(content.items()):
        if isinstance(value, dict):
            changed_in_all_places(value, change, end)
        elif str(key).endswith(end):
            change(content, key)


@each_form
def test_a_tensor_that_does_not_fit_is_refused_by_name(small: Backbone, tmp_path: Path, form: str) -> None:
    for change, given in (
        (renamed, r"none \(it has \S*stage7"),
        (missing, r"none: give"),
        (reshaped, rf"one of \[1, 24, 1, 3, 3\] \(\S*{INNER}"),
    ):
        content = FORMS[form].content(small.body.state_dict())
        changed_in_all_places(content, change, INNER)
        file = write(FORMS[form]._replace(content=lambda _, content=content: content), {}, tmp_path)
        with pytest.raises(ConfigError, match=rf"a tensor body\.{INNER} of \[24, 1, 3, 3\], the file {given}"):
            Matching.of("w", pretrained._tables(file), small, BackboneConfig(name=NAME), 32).tensors()


def bare_resnet() -> nn.Module:
    return torchvision.models.resnet.ResNet(torchvision.models.resnet.BasicBlock, [1, 1, 1, 1])


def small_vit(image_size: int = 16) -> nn.Module:
    return torchvision.models.VisionTransformer(image_size, 4, 2, 2, hidden_dim=12, mlp_dim=24)


def without_classifier(network: nn.Module) -> State:
    return {name: tensor for name, tensor in network.state_dict().items() if not name.startswith(("fc.", "heads."))}


def children_of_resnet(state: State) -> State:
    """Give a ResNet's tensors the names that Sequential(*resnet.children()) gives them."""
    places = {"conv1": "0", "bn1": "1", **{f"layer{number}": str(number + 3) for number in (1, 2, 3, 4)}}
    parted = {name: name.partition(".") for name in state}
    return {f"{places[parted[name][0]]}.{parted[name][2]}": tensor for name, tensor in state.items()}


DIALECTS: dict[str, tuple[Callable[[], nn.Module], Callable[[State], State], str, str]] = {
    "transformers' ResNet": (
        bare_resnet,
        transformers_resnet,
        "layer2.0.downsample.0.weight",
        "resnet.encoder.stages.1.layers.0.shortcut.convolution.weight",
    ),
    "transformers' ResNetModel": (
        bare_resnet,
        lambda state: {name.removeprefix("resnet."): t for name, t in transformers_resnet(state).items()},
        "layer4.0.conv2.weight",
        "encoder.stages.3.layers.0.layer.1.convolution.weight",
    ),
    "children": (bare_resnet, children_of_resnet, "layer1.0.conv1.weight", "4.0.conv1.weight"),
    "leftthomas's children": (
        bare_resnet,
        lambda state: under("f.", children_of_resnet(state)),
        "layer1.0.bn1.bias",
        "f.4.0.bn1.bias",
    ),
    "torchvision's ViT": (
        small_vit,
        dict,
        "encoder.layers.encoder_layer_1.mlp.0.weight",
        "encoder.layers.encoder_layer_1.mlp.0.weight",
    ),
    "transformers' ViT": (
        small_vit,
        transformers_vit,
        "encoder.layers.encoder_layer_1.self_attention.in_proj_weight",
        "vit.encoder.layer.1.attention.attention.key.weight",
    ),
}


def matching(network: nn.Module, table: State, size_px: int = 16, **settings: Any) -> Matching:
    config = BackboneConfig(name="resnet18", **settings)
    return Matching.of("weights w.pth", {"": table}, Backbone(network, 8), config, size_px)


@pytest.mark.parametrize("dialect", DIALECTS)
def test_other_libraries_names_are_known(dialect: str) -> None:
    make, names, ours, theirs = DIALECTS[dialect]
    torch.manual_seed(0)
    state, network = without_classifier(make()), make()
    network.set_submodule("fc" if hasattr(network, "fc") else "heads", nn.Identity())
    found = matching(network, names(state)).tensors()
    assert {name.removeprefix("body.") for name in found} == state.keys()
    assert [name for name, tensor in state.items() if not torch.equal(found[f"body.{name}"], tensor)] == []
    for change in (renamed, missing, reshaped):
        table = names(state)
        if change is renamed:
            table["another"] = table.pop(theirs)
        else:
            change(table, theirs)
        with pytest.raises(ConfigError, match=rf"has a tensor body\.{ours} of") as refused:
            matching(network, table).tensors()
        assert change is missing or (theirs if change is reshaped else "another") in str(refused.value)


def test_what_only_one_side_has_is_left_out_where_a_person_allows_it(
    small_store: Path, state: State, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    other = {"adapter.down.weight": torch.rand(2), "adapter.up.weight": torch.rand(2)}
    part = {name: tensor for name, tensor in state.items() if not name.startswith("conv5.")}
    torch.save({**part, **other}, tmp_path / "w.pth")
    given: dict[str, Any] = {"normalisation": "none"}
    with pytest.raises(ConfigError, match=r"a tensor body\.conv5\.0\.weight of .*, the file none \(it has adapter"):
        from_weights(small_store, tmp_path / "w.pth", **given)
    with pytest.raises(ConfigError, match=r"adapter\.down\.weight, adapter\.up\.weight, for which .* has no place: to"):
        from_weights(small_store, tmp_path / "w.pth", allow_missing=["conv5"], **given)
    with caplog.at_level(logging.INFO):
        config = from_weights(
            small_store, tmp_path / "w.pth", allow_missing=["conv5.", "adapter.down", "adapter.up"], **given
        )
    assert (
        "not used: adapter.down.weight, adapter.up.weight; random, because the file has none: body.conv5" in caplog.text
    )
    made = config.initial_method(pretrained.read(config)).backbone.body.state_dict()
    random = config.initial_backbone().body.state_dict()
    for name, tensor in made.items():
        assert torch.equal(tensor, random[name] if name.startswith("conv5.") else state[name]), name
    with pytest.raises(ConfigError, match=r"backbone\.allow_missing"):
        from_weights(small_store, tmp_path / "w.pth", allow_missing=[""], **given)


def test_a_backbone_of_another_kind_and_an_empty_file_are_refused(
    small_store: Path, state: State, tmp_path: Path
) -> None:
    torch.save({"weights": {"stem.a": torch.rand(2)}, "epoch": 3}, tmp_path / "w.pth")
    with pytest.raises(ConfigError, match=r"has no tensor of backbone shufflenet_v2_x0_5: it has stem\.a: give"):
        from_weights(small_store, tmp_path / "w.pth")
    torch.save({"epoch": 3}, tmp_path / "w.pth")
    with pytest.raises(ConfigError, match="it has none at all"):
        from_weights(small_store, tmp_path / "w.pth")


@pytest.mark.parametrize(
    ("value", "match"),
    [
        (torch.zeros(24, dtype=torch.int8), r"\[24\], the file one of torch\.int8 where it needs torch\.float32"),
        (torch.full((24,), torch.nan), r"conv1\.1\.bias has numbers that are not finite"),
    ],
)
def test_weights_that_are_no_floating_point_numbers_are_refused(
    small_store: Path, state: State, tmp_path: Path, value: Tensor, match: str
) -> None:
    torch.save({**state, "conv1.1.bias": value}, tmp_path / "w.pth")
    with pytest.raises(ConfigError, match=match):
        from_weights(small_store, tmp_path / "w.pth", normalisation="none")


def test_half_precision_becomes_single_and_counters_may_lack(small_store: Path, state: State, tmp_path: Path) -> None:
    halves = {name: t.half() if t.is_floating_point() else t for name, t in state.items()}
    torch.save({name: t for name, t in halves.items() if "num_batches" not in name}, tmp_path / "w.pth")
    config = from_weights(small_store, tmp_path / "w.pth", normalisation="none")
    for name, tensor in pretrained.read(config).items():
        assert tensor.dtype == state[name.removeprefix("body.")].dtype
        assert "num_batches" in name or torch.equal(tensor, halves[name.removeprefix("body.")].float())


@pytest.mark.parametrize(
    ("name", "content", "found"),
    [
        ("preprocessor_config.json", {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}, "inception"),
        ("preprocessor_config.json", {"do_normalize": False}, "none"),
        ("config.json", {"pretrained_cfg": {"mean": [0.1, 0.2, 0.3], "std": [1, 1, 1]}}, (0.1, 0.2, 0.3)),
        ("encoder.json", {"normalisation": [[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]]}, "imagenet"),
        ("encoder.json", {"normalisation": None}, "none"),
        ("preprocessor_config.json", {"rescale_factor": 1, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}, None),
        ("config.json", {"model_type": "resnet"}, None),
        ("config.json", [], None),
    ],
)
def test_the_normalisation_may_stand_beside_the_weights(
    small_store: Path, state: State, tmp_path: Path, name: str, content: Any, found: Any
) -> None:
    save_file(state, tmp_path / "model.safetensors")
    (tmp_path / name).write_text(json.dumps(content))
    for weights in (tmp_path, tmp_path / "model.safetensors"):
        if found is None:
            with pytest.raises(ConfigError, match="nothing in it tells"):
                from_weights(small_store, weights)
            continue
        told: Any = from_weights(small_store, weights).backbone.normalisation
        assert (told if isinstance(told, str) else told.mean) == found


def test_position_embeddings_of_another_size_are_refused_or_interpolated() -> None:
    torch.manual_seed(0)
    state, network = without_classifier(small_vit(32)), small_vit(16)
    network.set_submodule("heads", nn.Identity())
    with pytest.raises(
        ConfigError,
        match=r"8 x 8 patches, as of images of 32 px, and views of 16 px have 4 x 4: set augment\.size_px to 32",
    ):
        matching(network, state).tensors()
    found = matching(network, state, position_embeddings="interpolate").tensors()["body.encoder.pos_embedding"]
    assert torch.equal(found[:, 0], state["encoder.pos_embedding"][:, 0])
    expected = torchvision.models.vision_transformer.interpolate_embeddings(16, 4, state)["encoder.pos_embedding"]
    assert found.shape == expected.shape
    constant = {**state, "encoder.pos_embedding": torch.ones_like(state["encoder.pos_embedding"]) * 3}
    found = matching(network, constant, position_embeddings="interpolate").tensors()["body.encoder.pos_embedding"]
    torch.testing.assert_close(found, torch.full_like(found, 3))
    odd = {**state, "encoder.pos_embedding": torch.rand(1, 4 * 7 + 1, 12)}
    with pytest.raises(
        ConfigError, match=r"body\.encoder\.pos_embedding of \[1, 17, 12\], the file one of \[1, 29, 12\]"
    ):
        matching(network, odd, position_embeddings="interpolate").tensors()


def test_moco_v3s_small_vit_needs_its_number_of_heads() -> None:
    network = torchvision.models.VisionTransformer(16, 4, 1, 6, hidden_dim=384, mlp_dim=24)
    network.set_submodule("heads", nn.Identity())
    table = under("module.base_encoder.", without_classifier(network))
    config = BackboneConfig(name="resnet18")
    with pytest.raises(ConfigError, match=r"\(MoCo v3\) has 12 attention heads, and backbone \S+ has 6: set"):
        Matching.of("w", {"state_dict": table}, Backbone(network, 384), config, 16).tensors()


def test_features_are_those_of_torchvision_after_continuing_from_its_file(small_store: Path, tmp_path: Path) -> None:
    torch.manual_seed(3)
    network = torchvision.models.get_model(NAME, weights=None).eval()
    torch.save(network.state_dict(), tmp_path / "w.pth")
    config = from_weights(small_store, tmp_path / "w.pth")
    ours, images = config.initial_method(pretrained.read(config)).backbone.eval(), torch.rand(4, 3, 32, 32)
    network.set_submodule("fc", nn.Identity())
    with torch.no_grad():
        wanted = network(
            torchvision.transforms.functional.normalize(images, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
        )
        assert (ours(images) - wanted).abs().max() <= 1e-5 * wanted.abs().max()
