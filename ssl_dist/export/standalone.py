"""The source of a network as a file of its own, which needs torch and safetensors, and torchvision for its networks."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

from ssl_dist.backbones import MeanStd, built_in, catalogue
from ssl_dist.settings import BackboneConfig

_FILE = '''"""{title}

    from model import load

    features = load()(images)  # float32 [N, 3, {size}, {size}] in [0, 1] -> [N, {dim}]

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
    """Network that turns images ``[N, 3, {size}, {size}]`` in [0, 1] into features ``[N, {dim}]``."""

    def __init__(self) -> None:
        super().__init__()
        self.body = {body}

    def forward(self, images: Tensor) -> Tensor:
{forward}


def load(folder: str | Path = Path(__file__).parent) -> Encoder:
    """Load the weights, each of which must be there, from ``model.safetensors`` in a folder."""
    encoder = Encoder()
    encoder.body.load_state_dict(load_file(Path(folder) / "model.safetensors"))
    return encoder.eval()
'''
_NORMALISE = """        mean, std = (images.new_tensor(values).view(3, 1, 1) for values in {normalisation})
        return self.body((images - mean) / std)"""


def model_source(backbone: BackboneConfig, dim: int, image_size: int, normalisation: MeanStd | None) -> str:
    """Return Python source that builds a backbone and loads its weights.

    Args:
        backbone: the settings that it was built by.
        dim: number of its features.
        image_size: pixels a side of the images that it was trained on.
        normalisation: see ``Backbone.normalisation``.
    """
    is_built_in = backbone.name in catalogue.BUILT_IN
    sources, body = _built_in(backbone) if is_built_in else _of_torchvision(backbone, image_size)
    forward = "        return self.body(images)"
    if normalisation is not None:
        forward = _NORMALISE.format(normalisation=normalisation)
    return _FILE.format(
        title=f"The encoder of model.safetensors: {backbone.name}, stem {backbone.stem}.",
        size=image_size,
        dim=dim,
        needs="torch and safetensors" + ("" if is_built_in else ", and torchvision"),
        imports="" if is_built_in else "from typing import Any\n",
        more="" if is_built_in else "import torchvision\n",
        sources="\n\n".join(inspect.getsource(one).rstrip() + "\n" for one in sources).rstrip(),
        body=body,
        forward=forward,
    )


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
    return sources, f"without_classifier({arguments})[0]"


def _arguments(options: dict[str, Any]) -> str:
    return ", ".join(f"{name}={value!r}" for name, value in options.items())
