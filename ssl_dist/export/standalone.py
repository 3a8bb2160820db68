"""The source of a network as a file of its own, which needs torch, safetensors, and the library of the network."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

from torch import nn

from ssl_dist.backbones import MeanStd, built_in, catalogue
from ssl_dist.settings import BackboneConfig

_FILE = '''"""{title}

    from model import load

    {outputs} = load()(images)  # float32 [N, 3, {size}, {size}] in [0, 1] -> [N, {num_outputs}]

It needs {needs}.
"""

from __future__ import annotations

from pathlib import Path
{imports}
{before}import torch
{more}from safetensors.torch import load_file
from torch import Tensor, nn
{sources}

class Encoder(nn.Module):
    """Network that turns images ``[N, 3, {size}, {size}]`` in [0, 1] into {outputs} ``[N, {num_outputs}]``."""

    def __init__(self) -> None:
        super().__init__()
        self.body = {body}
{methods}


def load(folder: str | Path = Path(__file__).parent) -> Encoder:
    """Load the weights, each of which must be there, from ``model.safetensors`` in a folder."""
    encoder = Encoder()
    {loaded}.load_state_dict(load_file(Path(folder) / "model.safetensors"))
    return encoder.eval()
'''
_FORWARD = """
    def {name}(self, images: Tensor) -> Tensor:
{lines}"""
_WITH_HEAD = """        self.head = {head}

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.features(images))
"""
_NORMALISE = """        mean, std = (images.new_tensor(values).view(3, 1, 1) for values in {normalisation})
        return self.body((images - mean) / std)"""


def model_source(
    backbone: BackboneConfig,
    image_size: int,
    normalisation: MeanStd | None,
    outputs: tuple[str, int],
    head: nn.Module | None,
) -> str:
    """Return Python source that builds a network and loads its weights.

    Args:
        backbone: the settings that the backbone was built by.
        image_size: pixels a side of the images that it was trained on.
        normalisation: see ``Backbone.normalisation``.
        outputs: what the network gives, in one word, and the number of these.
        head: layers behind the features; None: there are none.
    """
    library, sources, body = _parts(backbone, image_size)
    lines = "        return self.body(images)"
    if normalisation is not None:
        lines = _NORMALISE.format(normalisation=normalisation)
    methods = _FORWARD.format(name="forward" if head is None else "features", lines=lines)
    if head is not None:
        methods = _WITH_HEAD.format(head=_layers(head)) + methods
    return _FILE.format(
        title=f"The encoder of model.safetensors: {backbone.name}, stem {backbone.stem}.",
        size=image_size,
        outputs=outputs[0],
        num_outputs=outputs[1],
        needs="torch and safetensors" + (f", and {library}" if library else ""),
        imports="from typing import Any\n" if library == "torchvision" else "",
        before="import timm\n" if library == "timm" else "",
        more="import torchvision\n" if library == "torchvision" else "",
        sources="".join("\n\n" + inspect.getsource(one).rstrip() + "\n" for one in sources),
        body=body,
        methods=methods,
        loaded="encoder.body" if head is None else "encoder",
    )


def _parts(backbone: BackboneConfig, image_size: int) -> tuple[str, Sequence[Any], str]:
    """Return the library that is needed, if any, its functions and classes, and what makes the network."""
    if backbone.name in catalogue.BUILT_IN:
        return "", *_built_in(backbone)
    if backbone.name.startswith(catalogue.TIMM):
        return "timm", (), f"timm.create_model({timm_arguments(backbone, image_size)})"
    return "torchvision", *_of_torchvision(backbone, image_size)


def timm_arguments(backbone: BackboneConfig, image_size: int, num_classes: int = 0) -> str:
    """Return what ``timm.create_model`` is called with to build a network of timm; 0 classes: it gives features."""
    from ssl_dist.backbones import timm_models

    given = timm_models.arguments_of(backbone.name, image_size, (), backbone.options) | {"num_classes": num_classes}
    return f"{backbone.name.removeprefix(catalogue.TIMM)!r}, {_arguments(given)}"


def _layers(head: nn.Module) -> str:
    """Return the expression that makes a head, whose layers are torch's and are printed as they are made."""
    if isinstance(head, nn.Sequential):
        return f"nn.Sequential({', '.join(map(_layers, head))})"
    return f"nn.{head!r}"


def _built_in(backbone: BackboneConfig) -> tuple[Sequence[Any], str]:
    """Return the functions and classes that are needed, and the expression that makes the network."""
    name, stem, width, dropout = backbone.name, backbone.stem, backbone.width, backbone.dropout
    function, options, pool = built_in.recipe(name, stem=stem, width=width, dropout=dropout)
    parts: dict[Any, Sequence[Any]] = {
        built_in.cifar_resnet: [built_in.stem_layers, built_in.Shortcut, built_in.BasicBlock],
        built_in.wide_resnet: [built_in.stem_layers, built_in.activation, built_in.PreActivationBlock],
    }
    call = f"{function.__name__}({_arguments(options)})"
    return [*parts.get(function, ()), function], f"nn.Sequential(*{call}, nn.AdaptiveAvgPool2d({pool}), nn.Flatten())"


def _of_torchvision(backbone: BackboneConfig, image_size: int) -> tuple[Sequence[Any], str]:
    from ssl_dist.backbones import torchvision_models

    fixed = image_size if backbone.name.startswith(catalogue.ONE_SIZE) else None
    options = _arguments(torchvision_models.options_of(backbone.name, fixed))
    sources = [built_in.stem_layers, torchvision_models.remove_classifier, torchvision_models.without_classifier]
    arguments = ", ".join(filter(None, [repr(backbone.name), repr(backbone.stem), options]))
    body = f"without_classifier({arguments})[0]"
    if backbone.name.startswith("mnasnet"):
        return [*sources, torchvision_models.MNASNet, torchvision_models.loadable], f"loadable({body})"
    return sources, body


def _arguments(options: dict[str, Any]) -> str:
    return ", ".join(f"{name}={value!r}" for name, value in options.items())
