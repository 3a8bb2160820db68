"""What is exported, and what a format is: which files it has, and how its own loader reads them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from ssl_dist.backbones import Backbone
from ssl_dist.errors import ConfigError
from ssl_dist.settings import BackboneConfig

Part = Literal["backbone", "head", "classifier"]
HEADS: dict[Part, str] = {"head": "projection_head", "classifier": "classifier"}
"""What stands behind the backbone in the part that is exported: its name in a method."""
_OUTPUTS: dict[Part, str] = {"backbone": "features", "head": "embeddings", "classifier": "logits"}


class Source(NamedTuple):
    """What is exported, on the CPU and in evaluation mode.

    Attributes:
        backbone: the trained backbone.
        settings: those that it was built by.
        image_size: pixels a side of the images that it was trained on.
        part: which part of the run's network it is.
        head: the module behind the features; None: the part is the backbone alone.
        classes: names of the classifier's classes; empty where there is no classifier.
    """

    backbone: Backbone
    settings: BackboneConfig
    image_size: int
    part: Part = "backbone"
    head: nn.Module | None = None
    classes: Sequence[str] = ()

    @property
    def outputs(self) -> str:
        """The name of what the network gives: features, embeddings or logits."""
        return _OUTPUTS[self.part]

    @property
    def num_outputs(self) -> int:
        """The number of these for an image."""
        if self.head is None:
            return self.backbone.dim
        return [layer.out_features for layer in self.head.modules() if isinstance(layer, nn.Linear)][-1]

    @property
    def network(self) -> nn.Module:
        """The network from images ``[N, 3, S, S]`` in [0, 1] to its outputs ``[N, D]``, in plain modules of torch."""
        return Normalised(self.backbone.body, self.backbone, self.head).eval()


class Format(NamedTuple):
    """One way to write an encoder.

    Attributes:
        check: refuses an encoder that the format cannot hold.
        write: writes the files into a folder.
        load: reads them by the format's own loader, which refuses a tensor that is missing or left over; the module
            takes images ``[N, 3, S, S]`` in [0, 1].
        usage: returns Python code for the model card.
        libraries: what must be installed for it, beyond our own requirements.
        prepares: what of an image's preparation the files do: nothing, the normalisation of colours where the weights
            need it, or all of it, from a picture of any size.
        library: name of the library that opens the folder, as the Hugging Face Hub knows it.
    """

    check: Callable[[Source], None]
    write: Callable[[Source, Path], None]
    load: Callable[[Source, Path], nn.Module]
    usage: Callable[[Source], str]
    libraries: Sequence[str] = ()
    prepares: Literal["nothing", "colours", "all"] = "colours"
    library: str | None = None


class Normalised(nn.Module):
    """A network behind the normalisation of its images, if it has one, and before a head, if it has one."""

    mean: Tensor
    std: Tensor

    def __init__(self, body: nn.Module, backbone: Backbone, head: nn.Module | None = None) -> None:
        super().__init__()
        self.body, self.head = body, head or nn.Identity()
        mean, std = backbone.normalisation or ((0.0,) * 3, (1.0,) * 3)
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        outputs: Tensor = self.head(self.body((images - self.mean) / self.std))
        return outputs


def refuse_nothing(source: Source) -> None:
    """Take every encoder."""


def expect_head_of(library: str, source: Source) -> None:
    """Refuse a head that a library's networks do not have: they have one linear layer, which classifies.

    Raises:
        ConfigError: it is another one.
    """
    if source.head is None or isinstance(source.head, nn.Linear):
        return
    kind = "projection head" if source.part == "head" else "classifier with a hidden layer"
    raise ConfigError(f"{library}'s networks have no {kind}: export it with --format safetensors, onnx or torchscript")


def usage_of(load: str, call: str = "network(images)") -> Callable[[Source], str]:
    """Return what makes a card's code: how a network that normalises its images is loaded and called.

    Args:
        load, call: code; ``OUTPUTS`` in it becomes the name of what the network gives.
    """

    def usage(source: Source) -> str:
        size = source.image_size
        code = f"{load}\nOUTPUTS = {call}  # images: float32 [N, 3, {size}, {size}] in [0, 1]\n"
        return code.replace("OUTPUTS", source.outputs)

    return usage
