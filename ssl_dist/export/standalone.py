"""The source of a network as a file of its own, which needs torch and safetensors, and torchvision for its networks."""

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
import torch
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
    is_built_in = backbone.name in catalogue.BUILT_IN
    sources, body = _built_in(backbone) if is_built_in else _of_torchvision(backbone, image_size)
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
        needs="torch and safetensors" + ("" if is_built_in else ", and torchvision"),
        imports="" if is_built_in else "from typing import Any\n",
        more="" if is_built_in else "import torchvision\n",
        sources="\n\n".join(inspect.getsource(one).rstrip() + "\n" for one in sources).rstrip(),
        body=body,
        methods=methods,
        loaded="encoder.body" if head is None else "encoder",
    )


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
