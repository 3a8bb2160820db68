"""Tests of backbones: their features, stems and shapes, and the options that they refuse."""

from __future__ import annotations

import itertools
import subprocess
import sys
from functools import cache

import pytest
import torch
import torchvision
from torch import Tensor, nn

from ssl_dist import backbones
from ssl_dist.backbones import Backbone, ConvolutionalBackbone, Stem, built_in, catalogue
from ssl_dist.backbones.built_in import BasicBlock, PreActivationBlock
from ssl_dist.backbones.catalogue import BUILT_IN
from ssl_dist.errors import ConfigError

# One of each kind that torchvision has, and a size of images that it takes.
TORCHVISION = {
    "resnet18": 33,
    "vgg11": 32,
    "vit_b_16": 32,
    "convnext_tiny": 32,
    "efficientnet_b0": 32,
    "efficientnet_v2_s": 32,
    "densenet121": 32,
    "mobilenet_v2": 32,
    "mobilenet_v3_small": 32,
    "squeezenet1_1": 32,
    "shufflenet_v2_x0_5": 32,
    "mnasnet0_5": 32,
    "regnet_y_400mf": 32,
    "swin_t": 32,
    "swin_v2_t": 32,
    "alexnet": 63,
    "googlenet": 32,
    "inception_v3": 75,
    "maxvit_t": 224,
}
SIZES = {**dict.fromkeys(BUILT_IN, 32), **TORCHVISION}
LARGE = {"vgg11", "vit_b_16", "maxvit_t", "densenet121", "inception_v3", "efficientnet_v2_s", "alexnet", "swin_v2_t"}
EACH = [pytest.param(name, marks=[pytest.mark.slow] if name in LARGE else []) for name in SIZES]


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@cache
def made(name: str) -> Backbone:
    return backbones.build(name, image_size=SIZES[name])


def convolutions(network: nn.Module) -> list[nn.Conv2d]:
    return [module for module in network.modules() if isinstance(module, nn.Conv2d)]


def test_names_are_built_in_ones_and_torchvisions() -> None:
    found = backbones.names()
    assert found[:5] == ["convnet", "resnet8", "resnet20", "wrn45-2", "autoencoder"]
    assert set(found[5:]) == set(torchvision.models.list_models(module=torchvision.models))
    assert len(found) == len(set(found))
    assert set(SIZES) <= set(found)


@pytest.mark.parametrize("name", EACH)
def test_features_have_dim_and_every_weight_takes_part(name: str) -> None:
    network = made(name).train()
    features = network(torch.rand(2, 3, SIZES[name], SIZES[name]))
    assert features.shape == (2, network.dim)
    features.square().sum().backward()
    assert [p for p in network.parameters() if p.grad is None or not torch.isfinite(p.grad).all()] == []
    network.zero_grad(set_to_none=True)


@pytest.mark.parametrize("name", EACH)
def test_an_images_features_do_not_depend_on_the_others_in_evaluation(name: str) -> None:
    network, images = made(name).eval(), torch.rand(2, 3, SIZES[name], SIZES[name])
    images[1] *= torch.linspace(0, 1, SIZES[name])
    for layer in network.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.reset_running_stats()  # after one step in training a deep network makes the same of all images
    with torch.no_grad():
        features, turned = network(images), network(images.flip(0))
    largest = features.abs().max()
    rounding = 1e-5 * largest  # float32 sums, 100 layers deep
    assert (turned - features.flip(0)).abs().max() <= rounding
    assert (features[0] - features[1]).abs().max() > 100 * rounding


@pytest.mark.parametrize("name", [*TORCHVISION, "resnet50", "wide_resnet50_2", "vit_l_32"])
def test_torchvisions_networks_lose_their_classifier_and_nothing_else(name: str) -> None:
    with backbones.WithoutValues():
        network = backbones.build(name)
    parameters = sum(p.numel() for p in network.parameters())
    published = torchvision.models.get_model_weights(name).DEFAULT.meta["num_params"]
    bias = 0 if name == "maxvit_t" else 1000
    # torchvision counts the auxiliary classifier of Inception: 768 -> 128 -> 768 channels, BatchNorms, 1000 classes
    auxiliary = 768 * 128 + 2 * 128 + 128 * 768 * 25 + 2 * 768 + 769_000 if name == "inception_v3" else 0
    assert parameters == published - 1000 * network.dim - bias - auxiliary


@pytest.mark.parametrize("name", SIZES)
def test_without_values_a_network_has_the_same_tensors_and_takes_no_memory(name: str) -> None:
    with backbones.WithoutValues():
        network = backbones.build(name, image_size=SIZES[name])
    found, wanted = network.state_dict(), made(name).state_dict()
    assert {key: (t.shape, t.dtype) for key, t in found.items()} == {
        key: (t.shape, t.dtype) for key, t in wanted.items()
    }
    assert {tensor.device.type for tensor in network.parameters()} == {"meta"}
    assert torch.empty(0).device.type == "cpu"


@pytest.mark.parametrize(("name", "dim"), [("convnet", 512), ("resnet8", 64), ("wrn45-2", 128), ("autoencoder", 2048)])
def test_built_in_networks_have_their_known_dims(name: str, dim: int) -> None:
    assert made(name).dim == dim


@pytest.mark.parametrize("stem", ["standard", "small", "half"])
def test_the_wide_resnet_has_45_convolutions(stem: Stem) -> None:
    network = backbones.build("wrn45-2", stem=stem)
    blocks = [module for module in network.modules() if isinstance(module, PreActivationBlock)]
    assert len(convolutions(network)) == 45
    assert [block.skip is not None for block in blocks] == 4 * [True, False, False, False, False]
    assert [block.residual[0].out_channels for block in blocks[::5]] == [16, 32, 64, 128]  # type: ignore[union-attr]
    assert sum(isinstance(module, nn.LeakyReLU) for module in network.modules()) == 2 * len(blocks) + 1
    assert {module.negative_slope for module in network.modules() if isinstance(module, nn.LeakyReLU)} == {0.1}


def test_a_pre_activation_block_equals_its_definition() -> None:
    block, x = PreActivationBlock(4, 6, stride=2, convolved_skip=True).eval(), torch.randn(2, 4, 6, 6)
    scale = 1 / (1 + 1e-5) ** 0.5  # BatchNorm as it is initialised

    def activated(features: Tensor) -> Tensor:
        return torch.where(features > 0, features, 0.1 * features) * scale

    conv = nn.functional.conv2d
    first, _, _, second = block.residual.children()
    inner = conv(activated(x), first.weight, stride=2, padding=1)  # type: ignore[arg-type]
    assert block.skip is not None
    expected = conv(activated(x), block.skip.weight, stride=2) + conv(activated(inner), second.weight, padding=1)  # type: ignore[arg-type]
    torch.testing.assert_close(block(x), expected)
    identity = PreActivationBlock(4, 4, stride=1, convolved_skip=False).eval()
    nn.init.zeros_(identity.residual[-1].weight)  # type: ignore[arg-type]
    assert torch.equal(identity(x), x), "the skip of the other blocks takes what is not activated"


@pytest.mark.parametrize(("stem", "stride"), [("small", 1), ("half", 2), ("standard", 4)])
@pytest.mark.parametrize("name", ["resnet18", "resnet8", "resnet20", "wrn45-2", "resnext50_32x4d"])
def test_the_stem_sets_the_size_of_the_first_maps(name: str, stem: Stem, stride: int) -> None:
    network = backbones.build(name, stem=stem).eval()
    resnets = torchvision.models.resnet
    kinds = (BasicBlock, PreActivationBlock, resnets.BasicBlock, resnets.Bottleneck)
    sides: list[int] = []
    first_block = next(m for m in network.modules() if isinstance(m, kinds))
    first_block.register_forward_pre_hook(lambda _, inputs: sides.append(inputs[0].shape[-1]))
    images = torch.rand(1, 3, 32, 32)
    network(images)
    assert sides == [32 // stride]
    if isinstance(network, ConvolutionalBackbone):
        assert network.map(images).shape[-1] == 32 // network.stride


@pytest.mark.parametrize("stride", [1, 2])
def test_a_basic_block_is_torchvisions(stride: int) -> None:
    def shortcut() -> nn.Module | None:
        return nn.Conv2d(4, 4, 1, 2, bias=False) if stride > 1 else None

    blocks: list[nn.Module] = []
    for kind in (BasicBlock, torchvision.models.resnet.BasicBlock):
        torch.manual_seed(1)
        blocks.append(kind(4, 4, stride, shortcut()))
    ours, theirs = (block.state_dict() for block in blocks)
    assert list(ours) == list(theirs)
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)
    images = torch.randn(3, 4, 8, 8)
    outs = [block(images) for block in blocks]
    assert torch.equal(*outs)
    for out in outs:
        out.square().sum().backward()
    grads = [[parameter.grad for parameter in block.parameters()] for block in blocks]
    assert all(torch.equal(one, other) for one, other in zip(*grads, strict=True))


@pytest.mark.parametrize("name", BUILT_IN)
def test_built_in_networks_pool_their_map(name: str) -> None:
    network, images = made(name).eval(), torch.rand(2, 3, 64, 64)
    assert isinstance(network, ConvolutionalBackbone)
    features = network.map(images)
    assert features.shape == (2, network.channels, 64 // network.stride, 64 // network.stride)
    pooled = nn.functional.adaptive_avg_pool2d(features, int((network.dim // network.channels) ** 0.5)).flatten(1)
    torch.testing.assert_close(network(images), pooled)


def test_at_32_px_the_autoencoders_features_are_its_latents() -> None:
    network, images = made("autoencoder").eval(), torch.rand(2, 3, 32, 32)
    assert isinstance(network, ConvolutionalBackbone)
    assert torch.equal(network(images), network.map(images).flatten(1))


def test_width_and_dropout_have_their_effect() -> None:
    assert backbones.build("resnet8", width=32).dim == 128
    small = backbones.build("resnet20", stem="small")
    assert sum(module.kernel_size == (3, 3) for module in convolutions(small)) == 19
    network = backbones.build("convnet", dropout=0.5)
    images = torch.rand(4, 3, 32, 32)
    assert not torch.equal(network(images), network(images))
    assert torch.equal(network.eval()(images), network(images))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "resnet19"}, "backbone 'resnet19': .*did you mean resnet1"),
        ({"name": "fcn_resnet50"}, "it is one of convnet, resnet8"),
        ({"name": "convnet", "stem": "small"}, "convnet has no stem"),
        ({"name": "autoencoder", "stem": "half"}, "autoencoder has no stem"),
        ({"name": "vgg11", "stem": "small"}, "vgg11 has no stem"),
        ({"name": "resnet18", "width": 8}, "resnet18 has one width"),
        ({"name": "wrn45-2", "width": 8}, "wrn45-2 has one width"),
        ({"name": "resnet18", "dropout": 0.1}, "resnet18 has no dropout"),
        ({"name": "vit_b_16", "image_size": 40}, "vit_b_16 takes images of a multiple of 16 px: these have 40"),
        ({"name": "vit_h_14", "image_size": 32}, "vit_h_14 takes images of a multiple of 14 px: these have 32"),
        ({"name": "maxvit_t", "image_size": 96}, "maxvit_t takes images of a multiple of 224 px: these have 96"),
        ({"name": "alexnet", "image_size": 32}, "alexnet takes images of 63 px or more: these have 32"),
        ({"name": "inception_v3", "image_size": 32}, "inception_v3 takes images of 75 px or more"),
    ],
)
def test_options_that_a_backbone_does_not_have_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        backbones.build(**options)  # type: ignore[arg-type]


def test_a_transformer_of_one_size_refuses_others() -> None:
    with pytest.raises(ConfigError, match="vit_b_16 takes images of one size: these have 32, 64 px"):
        backbones.check("vit_b_16", image_sizes=(64, 32, 64))
    with pytest.raises(ConfigError, match=r"images of 32 px was given 48 x 32: give views \(augment\.size_px\)"):
        made("vit_b_16")(torch.rand(1, 3, 48, 32))


@pytest.mark.parametrize("width", [4, 8, 15, 16])
def test_a_shortcut_is_a_strided_convolution(width: int) -> None:
    """Large images are those for whose gradient oneDNN writes beyond its memory, with few channels."""
    shortcut, strided = built_in.Shortcut(width, 2 * width, 2), nn.Conv2d(width, 2 * width, 1, 2, bias=False)
    strided.load_state_dict(shortcut.state_dict())
    images = torch.rand(32, width, 128, 128).contiguous(memory_format=torch.channels_last)

    def results(module: nn.Module, images: Tensor) -> list[Tensor]:
        out = module(images.requires_grad_())
        return [out, *torch.autograd.grad(out.square().sum(), [images, *module.parameters()])]

    expected = [one.float() for one in results(strided.double(), images.double())]  # which oneDNN leaves to torch
    torch.testing.assert_close(results(shortcut, images), expected, rtol=1e-4, atol=1e-4)  # sums of 131,072 in float32


def writes_beyond_its_memory(convolution: nn.Conv2d) -> bool:
    """Tell whether oneDNN's gradient does so with AVX-512: of random kernels, strides and widths, these alone."""
    is_strided = convolution.stride != (1, 1) and convolution.kernel_size == (1, 1)
    return is_strided and convolution.in_channels < 16


def test_no_backbone_has_a_convolution_that_crashes_in_onednn() -> None:
    narrow = itertools.product(("resnet8", "resnet20"), ("standard", "small", "half"), (*range(1, 18), None))
    with torch.device("meta"):
        networks = [backbones.build(name, stem=stem, width=width) for name, stem, width in narrow]
    for network in [*networks, *map(made, SIZES)]:
        assert not any(map(writes_beyond_its_memory, convolutions(network)))


NARROW = """
import random, torch
from ssl_dist import backbones

torch.set_num_threads(1)
draw = random.Random(0)
for width in range(1, 17):
    name, stem = draw.choice(("resnet8", "resnet20")), draw.choice(("standard", "small", "half"))
    network = backbones.build(name, stem=stem, width=width)
    images = torch.rand(draw.choice((2, 3, 8)), 3, *2 * [draw.choice((16, 31, 56, 64))], requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16, enabled=bool(width % 3)):
        features = network(images)
    features.float().square().sum().backward()
    assert images.grad.isfinite().all()
"""


@pytest.mark.slow
def test_networks_of_every_narrow_width_train() -> None:
    """They do so in a process of its own, which a fault would end."""
    done = subprocess.run([sys.executable, "-c", NARROW], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_what_is_known_without_torch_is_what_torchvision_and_the_networks_say() -> None:
    assert list(catalogue.torchvision_names()) == torchvision.models.list_models(module=torchvision.models)
    for name in catalogue.torchvision_names():
        if name.startswith((*catalogue.ONE_SIZE, "swin", "efficientnet_v2")):
            continue
        smallest = torchvision.models.get_model_weights(name).DEFAULT.meta["min_size"][0]
        catalogue.check(name, image_sizes=(smallest,))
        if smallest > 1:
            with pytest.raises(ConfigError, match=f"takes images of {smallest} px or more"):
                catalogue.check(name, image_sizes=(smallest - 1,))
    for name in BUILT_IN:
        for stem in ("standard", *(("small", "half") if name.startswith(("resnet", "wrn")) else ())):
            with torch.device("meta"):
                network = backbones.build(name, stem=stem)
            assert isinstance(network, ConvolutionalBackbone)
            assert network.stride == backbones.map_stride(name, stem)


@pytest.mark.parametrize("name", ["mnasnet0_5", "mnasnet1_0"])
def test_a_network_takes_tensors_as_a_file_has_them(name: str) -> None:
    """A file of safetensors has names and tensors, and not the versions that torch keeps beside a state."""
    network = backbones.build(name, image_size=32)
    tensors = {key: tensor + 1 for key, tensor in network.state_dict().items()}
    network.load_state_dict(tensors)
    assert all(torch.equal(network.state_dict()[key], tensor) for key, tensor in tensors.items())
