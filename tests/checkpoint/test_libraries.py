"""Networks of timm, torchvision and transformers themselves: their files give their features in our backbones."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ssl_dist import backbones
from ssl_dist.backbones import KNOWN_INPUTS
from ssl_dist.checkpoint import pretrained
from ssl_dist.checkpoint.public_names import canonical
from ssl_dist.errors import ConfigError
from tests.helpers import resolved_config

pytestmark = pytest.mark.extras

SIZE = 32
VIT = {"name": "timm/vit_tiny_patch16_224", "options": {"patch_size": 8, "embed_dim": 24, "depth": 3, "num_heads": 2}}
IMAGES = torch.rand(5, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(5))
_OF_A_VIT: dict[str, Any] = {"hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 2, "image_size": SIZE}
_OF_A_VIT |= {"patch_size": 8, "layer_norm_eps": 1e-6}
_OF_A_RESNET: dict[str, Any] = {"embedding_size": 64, "hidden_sizes": [64, 128, 256, 512], "depths": [2, 2, 2, 2]}


class Library(nn.Module):
    """A network of another library that gives features, behind the normalisation of its images."""

    def __init__(self, network: nn.Module, features: Callable[[Any, Tensor], Tensor], inputs: str | None) -> None:
        super().__init__()
        torch.manual_seed(1)
        for parameter in network.parameters():  # norms begin alike and biases at 0: mixing them up would not show
            parameter.data += 0.05 * torch.randn(parameter.shape)
        for name, buffer in network.named_buffers():
            if name.endswith("running_var"):
                buffer.data *= 0.5 + torch.rand(buffer.shape)
        self.network, self._features = network.eval(), features
        mean, std = KNOWN_INPUTS[inputs] if inputs else ((0.0,) * 3, (1.0,) * 3)
        self.mean, self.std = (torch.tensor(values).view(3, 1, 1) for values in (mean, std))

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        return self._features(self.network, (images - self.mean) / self.std)


def _timm(name: str, **options: Any) -> nn.Module:
    import timm

    network: nn.Module = timm.create_model(name, **options)
    return network


def _pre_logits(network: Any, images: Tensor) -> Tensor:
    features: Tensor = network.forward_head(network.forward_features(images), pre_logits=True)
    return features


def _timm_vit(folder: Path) -> Library:
    network = _timm("vit_tiny_patch16_224", img_size=SIZE, num_classes=21843, **VIT["options"])
    save_file(network.state_dict(), folder / "w.safetensors")
    return Library(network, _pre_logits, "inception")


def _timm_mobilenet(folder: Path) -> Library:
    return Library(_timm("mobilenetv3_small_050"), _pre_logits, "imagenet")


def _timm_resnet(folder: Path) -> Library:
    return Library(_timm("resnet18"), _pre_logits, "imagenet")


def _torchvision_vit(folder: Path) -> Library:
    network = torchvision.models.VisionTransformer(SIZE, 8, 3, 2, hidden_dim=24, mlp_dim=96)
    network.heads = nn.Identity()
    return Library(network, lambda network, images: network(images), None)


def _transformers_resnet(folder: Path) -> Library:
    from transformers import ResNetConfig, ResNetForImageClassification

    network = ResNetForImageClassification(ResNetConfig(layer_type="basic", **_OF_A_RESNET))
    return Library(network, lambda network, images: network.resnet(images).pooler_output.flatten(1), "imagenet")


def _transformers_vit(folder: Path) -> Library:
    from transformers import ViTConfig, ViTForImageClassification

    network = ViTForImageClassification(ViTConfig(intermediate_size=96, **_OF_A_VIT))
    return Library(network, lambda network, images: network.vit(images).last_hidden_state[:, 0], "inception")


def _transformers_dinov2(folder: Path) -> Library:
    from transformers import Dinov2Config, Dinov2Model

    network = Dinov2Model(Dinov2Config(**_OF_A_VIT))
    return Library(network, lambda network, images: network(images).last_hidden_state[:, 0], "imagenet")


_SCALED = {**VIT, "options": {**VIT["options"], "init_values": 1e-5}}
LIBRARIES: dict[str, tuple[Callable[[Path], Library], dict[str, Any], bool]] = {
    "timm's ViT": (_timm_vit, {**VIT, "normalisation": "inception"}, False),
    "timm's MobileNet": (_timm_mobilenet, {"name": "timm/mobilenetv3_small_050"}, False),
    "timm's MobileNet, .pth": (_timm_mobilenet, {"name": "timm/mobilenetv3_small_050"}, True),
    "timm's ResNet in torchvision's": (_timm_resnet, {"name": "resnet18"}, True),
    "timm's ResNet": (_timm_resnet, {"name": "timm/resnet18"}, False),
    "torchvision's ViT in timm's": (_torchvision_vit, {**VIT, "normalisation": "none"}, True),
    "transformers' ResNet": (_transformers_resnet, {"name": "resnet18", "normalisation": "imagenet"}, False),
    "transformers' ResNet in timm's": (
        _transformers_resnet,
        {"name": "timm/resnet18", "normalisation": "imagenet"},
        True,
    ),
    "transformers' ViT": (_transformers_vit, {**VIT, "normalisation": "inception"}, False),
    "transformers' ViT, .bin": (_transformers_vit, {**VIT, "normalisation": "inception"}, True),
    "transformers' DINOv2, .bin": (_transformers_dinov2, {**_SCALED, "normalisation": "imagenet"}, True),
    "transformers' DINOv2": (_transformers_dinov2, {**_SCALED, "normalisation": "imagenet"}, False),
}


def from_file(store: Path, file: Path, **backbone: Any) -> backbones.Backbone:
    given = {**backbone, "weights": str(file)}
    config = pretrained.resolve(resolved_config(store, backbone=given, augment__size_px=SIZE))
    return config.initial_method(pretrained.read(config)).backbone.eval()


@pytest.mark.parametrize("library", LIBRARIES)
def test_features_are_the_librarys(small_store: Path, tmp_path: Path, library: str) -> None:
    make, backbone, is_pickled = LIBRARIES[library]
    theirs = make(tmp_path)
    state, file = theirs.network.state_dict(), tmp_path / ("w.bin" if is_pickled else "w.safetensors")
    if is_pickled:
        torch.save(state, file)
    elif hasattr(theirs.network, "save_pretrained"):  # whose names are not the network's
        theirs.network.save_pretrained(tmp_path)  # type: ignore[operator]
        state = load_file((tmp_path / "model.safetensors").rename(file))
    else:
        save_file(state, file)
    ours, expected = from_file(small_store, file, **backbone), theirs(IMAGES)
    with torch.no_grad():
        difference = float((ours(IMAGES) - expected).abs().max() / expected.abs().max())
    print(f"{library}: {difference:.1e}")
    assert difference <= 1e-5  # float32 sums in another order, some layers deep
    assert (expected[0] - expected[1]).abs().max() > 1e-3 * expected.abs().max()
    for name in list(state)[:: max(1, len(state) // 5)]:
        refuse_changed(small_store, file, state, name, backbone, is_pickled)


def refuse_changed(
    store: Path, file: Path, state: dict[str, Tensor], name: str, backbone: dict[str, Any], is_pickled: bool
) -> None:
    """Expect a file with one tensor renamed, missing or reshaped to be refused, unless it is none of the backbone's."""
    if name.endswith("num_batches_tracked") or name.split(".", maxsplit=1)[0] in ("classifier", "fc", "head", "pooler"):
        return
    if "mask_token" in name:
        return
    for change in ("renamed", "missing", "reshaped"):
        other = dict(state)
        tensor = other.pop(name)
        if change != "missing":
            other[f"{name}_" if change == "renamed" else name] = tensor if change == "renamed" else tensor[None].clone()
        torch.save(other, file) if is_pickled else save_file(other, file)
        with pytest.raises(ConfigError, match=r"has a tensor body\.\S+ of \[") as refused:
            from_file(store, file, **{"normalisation": "none", **backbone})
        assert change == "missing" or name in str(refused.value)


def test_the_number_of_heads_that_transformers_tells_is_compared(small_store: Path, tmp_path: Path) -> None:
    """No shape shows it, and with another one the features are others."""
    network = _transformers_vit(tmp_path).network
    network.save_pretrained(tmp_path)  # type: ignore[operator]
    other = {**VIT, "options": {**VIT["options"], "num_heads": 3}, "normalisation": "none"}
    with pytest.raises(
        ConfigError, match=r"has 2 attention heads, and backbone \S+ has 3: set backbone\.options\.num_he"
    ):
        from_file(small_store, tmp_path, **other)
    from_file(small_store, tmp_path, **VIT, normalisation="none")


def test_position_embeddings_are_resized_as_timm_does(small_store: Path, tmp_path: Path) -> None:
    from timm.layers import resample_abs_pos_embed

    network = _timm("vit_tiny_patch16_224", img_size=2 * SIZE, **VIT["options"])
    network.pos_embed.data.normal_()  # type: ignore[operator, union-attr]
    save_file(network.state_dict(), tmp_path / "w.safetensors")
    with pytest.raises(ConfigError, match=r"8 x 8 patches, as of images of 64 px, and views of 32 px have 4 x 4"):
        from_file(small_store, tmp_path / "w.safetensors", **VIT)
    ours = from_file(small_store, tmp_path / "w.safetensors", **VIT, position_embeddings="interpolate")
    expected = resample_abs_pos_embed(network.pos_embed.data, [4, 4], num_prefix_tokens=1)  # type: ignore[arg-type, union-attr]
    assert torch.equal(ours.body.pos_embed.data, expected)  # type: ignore[union-attr]


def test_torchvisions_and_timms_vits_have_the_same_names() -> None:
    for torchvisions, timms in (("vit_b_16", "vit_base_patch16_224"), ("vit_h_14", "vit_huge_patch14_224")):
        with backbones.WithoutValues():
            pair = [backbones.build(name, image_size=224) for name in (torchvisions, f"timm/{timms}")]
        first, second = (
            {canonical(name.removeprefix("body.")): tensor.shape for name, tensor in network.state_dict().items()}
            for network in pair
        )
        assert first == second


def test_the_normalisation_of_timms_weights_is_timms(small_store: Path, tmp_path: Path) -> None:
    network = _timm("mobilenetv3_small_050")
    torch.save(network.state_dict(), tmp_path / "w.pth")
    for name, expected in (
        ("timm/mobilenetv3_small_050", "imagenet"),
        ("timm/mobilenetv3_small_050.lamb_in1k", "imagenet"),
    ):
        assert from_file(small_store, tmp_path / "w.pth", name=name).normalisation == KNOWN_INPUTS[expected]
    vit = _timm("vit_tiny_patch16_224", img_size=SIZE, **VIT["options"])
    torch.save(vit.state_dict(), tmp_path / "w.pth")
    assert from_file(small_store, tmp_path / "w.pth", **VIT).normalisation == KNOWN_INPUTS["inception"]
    other = _timm("vit_tiny_patch16_224", img_size=SIZE, num_classes=7, **VIT["options"])
    torch.save(other.state_dict(), tmp_path / "w.pth")
    with pytest.raises(ConfigError, match=r"nothing in it tells .*: set backbone\.normalisation to imagenet"):
        from_file(small_store, tmp_path / "w.pth", **VIT)
