"""A folder that transformers opens: AutoModel or AutoModelForImageClassification, and AutoImageProcessor.

The tensors have the names that transformers writes in its versions 4 and 5. They have no pooling layer for a ViT, and
AutoModel would make one of random weights. So the file has one that changes nothing: ``pooler_output`` are the features
of a ViT, the class token after the last norm, as they are of a ResNet.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ssl_dist.checkpoint.exported import WEIGHTS
from ssl_dist.checkpoint.files import save_tensors
from ssl_dist.errors import ConfigError
from ssl_dist.export.formats.base import Format, Source, expect_head_of
from ssl_dist.export.formats.named import VitShape, is_vit, network_name, tensors_of, timm_tensor

_BASIC, _BOTTLENECK = ("resnet18", "resnet34"), ("resnet50", "resnet101", "resnet152")
_RESNET_TENSORS = (
    (r"^conv1\.", "embedder.embedder.convolution."),
    (r"^bn1\.", "embedder.embedder.normalization."),
    (r"^layer(\d)\.(\d+)\.", lambda found: f"encoder.stages.{int(found[1]) - 1}.layers.{found[2]}."),
    (r"\.conv(\d)\.", lambda found: f".layer.{int(found[1]) - 1}.convolution."),
    (r"\.bn(\d)\.", lambda found: f".layer.{int(found[1]) - 1}.normalization."),
    (r"\.downsample\.0\.", ".shortcut.convolution."),
    (r"\.downsample\.1\.", ".shortcut.normalization."),
)
_VIT_TENSORS = (  # from timm's names
    (r"^cls_token$", "embeddings.cls_token"),
    (r"^pos_embed$", "embeddings.position_embeddings"),
    (r"^patch_embed\.proj\.", "embeddings.patch_embeddings.projection."),
    (r"^norm\.", "layernorm."),
    (r"^blocks\.", "encoder.layer."),
    (r"\.norm1\.", ".layernorm_before."),
    (r"\.norm2\.", ".layernorm_after."),
    (r"\.attn\.(query|key|value)\.", r".attention.attention.\1."),
    (r"\.attn\.proj\.", ".attention.output.dense."),
    (r"\.mlp\.fc1\.", ".intermediate.dense."),
    (r"\.mlp\.fc2\.", ".output.dense."),
)
_EPSILON = 1e-6  # of the LayerNorms of torchvision's and timm's ViTs


def _check(source: Source) -> None:
    """Refuse what transformers has no network for.

    Raises:
        ConfigError: it has none.
    """
    name, stem = source.settings.name, source.settings.stem
    if network_name(source) not in (*_BASIC, *_BOTTLENECK) and not is_vit(source):
        raise ConfigError(
            f"transformers' ResNets and ViTs are resnet18 to resnet152 and vit_..., and this is {name}: export it with"
            " --format safetensors"
        )
    if stem != "standard":
        raise ConfigError(f"transformers' ResNets have no stem {stem}: export it with --format safetensors")
    expect_head_of("transformers", source)


def _write(source: Source, folder: Path) -> None:
    of_vit = is_vit(source)
    config, tensors = _vit(source) if of_vit else _resnet(source)
    if source.head is None:
        config.architectures = ["ViTModel" if of_vit else "ResNetModel"]
    else:
        base, layer = ("vit", "classifier") if of_vit else ("resnet", "classifier.1")
        tensors = {f"{base}.{name}": tensor for name, tensor in tensors.items()}
        tensors |= {f"{layer}.{name}": tensor for name, tensor in source.head.state_dict().items()}
        config.architectures = ["ViTForImageClassification" if of_vit else "ResNetForImageClassification"]
        config.id2label = dict(enumerate(source.classes))
        config.label2id = {name: number for number, name in enumerate(source.classes)}
    config.dtype = "float32"
    config.save_pretrained(folder)
    save_tensors(tensors, folder / WEIGHTS, {"format": "pt"})
    (folder / "preprocessor_config.json").write_text(json.dumps(_processor(source), indent=1) + "\n", encoding="utf-8")


def _resnet(source: Source) -> tuple[Any, dict[str, Tensor]]:
    from transformers import ResNetConfig

    body = source.backbone.body
    stages: Any = [body.get_submodule(f"layer{number}") for number in (1, 2, 3, 4)]
    is_basic = network_name(source) in _BASIC
    config = ResNetConfig(
        embedding_size=64,
        hidden_sizes=[(64 if is_basic else 256) << number for number in range(4)],
        depths=[len(stage) for stage in stages],
        layer_type="basic" if is_basic else "bottleneck",
        downsample_in_bottleneck=False,  # torchvision's stride is that of the 3 x 3 convolution
    )
    return config, {_renamed(name, _RESNET_TENSORS): tensor for name, tensor in body.state_dict().items()}


def _vit(source: Source) -> tuple[Any, dict[str, Tensor]]:
    from transformers import ViTConfig

    shape, tensors = VitShape.of(source), dict[str, Tensor]()
    for theirs, tensor in tensors_of(source._replace(head=None)).items():
        name = timm_tensor(theirs)
        if ".attn.qkv." in name:  # transformers has three layers in its place
            parts = zip(("query", "key", "value"), tensor.chunk(3), strict=True)
            tensors |= {name.replace("qkv", part): rows.contiguous() for part, rows in parts}
        else:
            tensors[name] = tensor
    config = ViTConfig(
        hidden_size=shape.hidden_dim,
        num_hidden_layers=shape.num_layers,
        num_attention_heads=shape.num_heads,
        intermediate_size=shape.mlp_dim,
        layer_norm_eps=_EPSILON,
        image_size=source.image_size,
        patch_size=shape.patch_size,
        pooler_act="linear",
    )
    found = {_renamed(name, _VIT_TENSORS): tensor for name, tensor in tensors.items()}
    if source.head is None:
        found |= {
            "pooler.dense.weight": torch.eye(shape.hidden_dim),
            "pooler.dense.bias": torch.zeros(shape.hidden_dim),
        }
    return config, found


def _renamed(name: str, names: Any) -> str:
    for pattern, replacement in names:
        name = re.sub(pattern, replacement, name)
    return name


def _processor(source: Source) -> dict[str, Any]:
    """Return the preparation of images that training and evaluation have, as transformers describes it."""
    size = source.image_size
    mean, std = source.backbone.normalisation or ((0.0,) * 3, (1.0,) * 3)
    return {
        "image_processor_type": "PerceiverImageProcessor",  # the one that cuts out the centre before it resizes
        "do_convert_rgb": True,
        "do_center_crop": True,
        "crop_size": {"height": size, "width": size},  # equal to size: as large a square as the picture has
        "do_resize": True,
        "size": {"height": size, "width": size},
        "resample": 3,  # bicubic
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": source.backbone.normalisation is not None,
        "image_mean": list(mean),
        "image_std": list(std),
    }


class _Pictures(nn.Module):
    """The folder's processor and network, for images that were pictures of 8 bits a channel before."""

    def __init__(self, processor: Any, network: nn.Module) -> None:
        super().__init__()
        self.processor, self.network = processor, network

    def forward(self, images: Tensor) -> Tensor:
        pixels = (255 * images).round().to(torch.uint8)
        outputs: Any = self.network(**self.processor(list(pixels), return_tensors="pt"))
        found: Tensor = outputs.logits if "logits" in outputs else outputs.pooler_output.flatten(1)
        return found


def _load(source: Source, folder: Path) -> nn.Module:
    import transformers

    with _quiet():
        network, told = getattr(transformers, _auto(source)).from_pretrained(folder, output_loading_info=True)
        if wrong := {kind: sorted(map(str, names)) for kind, names in told.items() if names}:
            raise ValueError(f"transformers loads it with {wrong}")
        return _Pictures(transformers.AutoImageProcessor.from_pretrained(folder), network)


def _auto(source: Source) -> str:
    return "AutoModel" if source.head is None else "AutoModelForImageClassification"


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep transformers' bars and advice off the screen."""
    from transformers.utils import logging

    level, has_bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if has_bars:
            logging.enable_progress_bar()


def _usage(source: Source) -> str:
    auto, found = _auto(source), "pooler_output.flatten(1)" if source.head is None else "logits"
    return (
        f"from transformers import AutoImageProcessor, {auto}\n\n"
        'processor = AutoImageProcessor.from_pretrained(".")\n'
        f'network = {auto}.from_pretrained(".")\n'
        'inputs = processor(images, return_tensors="pt")  # images: a list of pictures of PIL\n'
        f"{source.outputs} = network(**inputs).{found}\n"
    )


HF = Format(_check, _write, _load, _usage, ["transformers"], prepares="all", library="transformers")
