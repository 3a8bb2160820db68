"""Parts of methods and views as their authors have them, where ours differ; ``benchmarks.differences`` compares both.

Sources stand in docs/differences.md. Shapes: N images, V views, S x S pixels, D dimensions.
"""

from __future__ import annotations

import math
from functools import reduce
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

from ssl_dist import augment
from ssl_dist.augment import Policy, draws, rendering
from ssl_dist.augment.draws import ViewParameters
from ssl_dist.augment.operations import GREY, Taps, colour_maps
from ssl_dist.collectives import Group, RowCounts
from ssl_dist.methods import Method, TrainingProgress
from ssl_dist.methods.moco import MoCo
from ssl_dist.methods.swav import SwAV

_crops = augment.crops
_MOST_IMAGES = 2048  # ``augment.crops`` draws the parameters of so many small images at once
_CUBIC = -0.5  # Pillow's and TensorFlow's antialiased bicubic filter


def clamped_crops(images: Tensor, ids: Tensor, *, recipe: Policy, **settings: Any) -> tuple[Tensor, ...]:
    """Make views as ``augment.crops`` does, but clamp after each step of the colours, as torchvision does.

    The parameters are the same. Without blur and solarising, because these come after the colours in torchvision.
    """
    assert not any(view.blur_p or view.solarise_p for view in recipe), "choose a policy without blur and solarising"
    assert len(images) <= _MOST_IMAGES
    drawn: list[ViewParameters] = []

    def draw_without_colours(*arguments: Any) -> ViewParameters:
        drawn.append(draws.draw_parameters(*arguments))
        one, zero = torch.ones_like(drawn[-1].hue), torch.zeros_like(drawn[-1].hue)
        return drawn[-1]._replace(brightness=one, contrast=one, saturation=one, hue=zero)

    with mock.patch.object(rendering, "draw_parameters", draw_without_colours):
        crops = _crops(images, ids, recipe=recipe, **settings)
    fields = [torch.cat(field).view(len(recipe), len(images)) for field in zip(*drawn, strict=True)]  # [V, N] each
    views = (view for same_size in crops for view in same_size)
    for view, *parameters in zip(views, *fields, strict=True):
        view.copy_(clamped_colours(view, ViewParameters(*parameters)))
    return crops


def clamped_colours(views: Tensor, parameters: ViewParameters) -> Tensor:
    """Apply brightness, contrast, saturation and hue in turn to ``[N, 3, S, S]``, each clamped to [0, 1]."""
    grey = torch.tensor(GREY)[:, None, None]
    factors = (parameters.brightness, parameters.contrast, parameters.saturation)
    brightness, contrast, saturation = (factor[:, None, None, None] for factor in factors)
    views = (views * brightness).clamp(0, 1)
    mean = (views * grey).sum(1, keepdim=True).mean((2, 3), keepdim=True)
    views = (views * contrast + mean * (1 - contrast)).clamp(0, 1)
    luma = (views * grey).sum(1, keepdim=True)
    views = (views * saturation + luma * (1 - saturation)).clamp(0, 1)
    one = torch.ones_like(parameters.hue)
    turn, _ = colour_maps(parameters._replace(brightness=one, contrast=one, saturation=one))  # the hue alone
    return torch.einsum("nij,njyx->niyx", turn, views).clamp(0, 1)


def bicubic_taps(start: Tensor, length: Tensor, reverse: Tensor, size: int, out: int) -> Taps:
    """Resize as ``operations.resize_taps`` does, with a cubic in place of the triangular filter."""
    target = torch.arange(out, device=start.device) + 0.5
    target = torch.where(reverse[:, None], out - target, target)
    scale = (length / out)[:, None]
    unit = scale.clamp(min=1)[:, None]
    centre = (target * scale)[:, None]
    tap = torch.arange(math.ceil(4 * max(1, size / out)), device=start.device)
    pixel = (centre - 2 * unit + 0.5).floor() + tap[:, None]  # [N, K, S]
    x = (pixel + 0.5 - centre).abs() / unit
    near, far = ((_CUBIC + 2) * x - (_CUBIC + 3)) * x * x + 1, _CUBIC * (((x - 5) * x + 8) * x - 4)
    weight = torch.where(x < 1, near, torch.where(x < 2, far, 0.0))
    inside = pixel.clamp(min=0).minimum(length[:, None, None] - 1)
    weight = torch.where(pixel == inside, weight, 0.0)
    weight = weight / reduce(torch.add, weight.unbind(1))[:, None]
    return Taps((inside + start[:, None, None]).int().mT.contiguous(), weight.mT.contiguous())


def end_with_batch_norm(method: Method) -> None:
    """Put BatchNorm without a shift after the projection head's last layer."""
    head = _head(method)
    norm = nn.BatchNorm1d(_last(head).out_features)
    norm.bias.requires_grad_(False)
    head.append(norm)


def end_with_bias(method: Method) -> None:
    """Give the projection head's last layer a bias."""
    head = _head(method)
    head[-1] = nn.Linear(_last(head).in_features, _last(head).out_features)


def use_self_classifier_head(method: Method) -> None:
    """Give every layer of the head a bias and weights as the authors draw them, and LeakyReLU between them."""
    head = _head(method)
    for number, layer in enumerate(head):
        if isinstance(layer, nn.Linear):
            head[number] = other = nn.Linear(layer.in_features, layer.out_features)
            nn.init.trunc_normal_(other.weight, std=0.02)
            nn.init.zeros_(other.bias)
        elif isinstance(layer, nn.ReLU):
            head[number] = nn.LeakyReLU(inplace=True)


def use_symmetric_moco(method: Method) -> None:
    """Sum the losses of both directions, and queue the keys of both views."""
    method.__class__ = _SymmetricMoCo


class _SymmetricMoCo(MoCo):
    def loss(self, outputs: Tensor, group: Group = None) -> Tensor:
        return 2 * super().loss(outputs, group)

    def after_step(self, outputs: Tensor, progress: TrainingProgress, group: Group = None) -> None:
        self.slow.follow(self.encoder, self.config.momentum)
        keys = outputs.chunk(2, dim=1)[1].transpose(0, 1)  # [2, N, D], in the order that the authors queue them
        keys = torch.cat([RowCounts.of(each, group).gather(each) for each in keys.flip(0)])[-len(self.queue) :]
        rows = (self.position + torch.arange(len(keys))) % len(self.queue)
        self.queue[rows] = keys.to(self.queue)
        self.position.copy_((self.position + len(keys)) % len(self.queue))


def fill_queue_late(method: Method) -> None:
    """Begin to fill SwAV's queue in the epoch from which on it may be used."""
    method.__class__ = _LateSwAV


class _LateSwAV(SwAV):
    def after_step(self, outputs: Tensor, progress: TrainingProgress, group: Group = None) -> None:
        if progress.epoch >= self.config.queue_from_epoch:
            super().after_step(outputs, progress, group)


def _head(method: Method) -> nn.Sequential:
    head = method.get_submodule("projection_head")
    assert isinstance(head, nn.Sequential)
    return head


def _last(head: nn.Sequential) -> nn.Linear:
    last = head[-1]
    assert isinstance(last, nn.Linear)
    return last
