"""What a format of an exported encoder is: which files it has, and how its own loader reads them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ssl_dist.backbones import Backbone
from ssl_dist.settings import BackboneConfig


class Source(NamedTuple):
    """A trained backbone on the CPU, in evaluation mode, the settings that it was built by, and its image size."""

    backbone: Backbone
    settings: BackboneConfig
    image_size: int


class Format(NamedTuple):
    """One way to write an encoder.

    Attributes:
        check: refuses an encoder that the format cannot hold.
        write: writes the files into a folder.
        load: reads them by the format's own loader, which refuses a tensor that is missing or left over; the module
            takes images ``[N, 3, S, S]`` in [0, 1].
        usage: returns Python code for the model card.
        libraries: what must be installed for it, beyond our own requirements.
        normalises: whether its files normalise the colours of images, where the weights need it.
    """

    check: Callable[[Source], None]
    write: Callable[[Source, Path], None]
    load: Callable[[Source, Path], nn.Module]
    usage: Callable[[Source], str]
    libraries: Sequence[str] = ()
    normalises: bool = True


class Normalised(nn.Module):
    """A network behind the normalisation of its images, if it has one."""

    mean: Tensor
    std: Tensor

    def __init__(self, body: nn.Module, backbone: Backbone) -> None:
        super().__init__()
        self.body = body
        mean, std = backbone.normalisation or ((0.0,) * 3, (1.0,) * 3)
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        features: Tensor = self.body((images - self.mean) / self.std)
        return features


def refuse_nothing(source: Source) -> None:
    """Take every encoder."""


def usage_of(load: str, call: str = "network(images)") -> Callable[[Source], str]:
    """Return what makes a card's code: how a network that normalises its images is loaded and called."""

    def usage(source: Source) -> str:
        size = source.image_size
        return f"{load}\nfeatures = {call}  # images: float32 [N, 3, {size}, {size}] in [0, 1]\n"

    return usage
