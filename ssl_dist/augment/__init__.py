"""Random views of a batch of images: a pure function of (pixels, seed, epoch, sample id, view).

A line of a view is a weighted sum of a few lines of the image (crop, resize, flip, blur); resizing is bilinear with
antialiasing, as in torchvision, where some papers have bicubic. Its colours are an affine map of the image's colours
(brightness, contrast, saturation, hue, grey). Values are clamped to [0, 1] once, at the end, where torchvision clamps
after every operation (docs/differences.md has both); they are not normalised by mean and standard deviation. Random
numbers are 64-bit hashes of (seed, epoch, sample id, view, number), so a view depends neither on its batch nor on its
worker.

An augmentation policy is the set of views that an image gets. The parameter ``recipe`` of ``views`` and ``crops``, like
the config key ``augment.recipe``, is the name of a policy; the two functions also take a Policy itself.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ssl_dist.augment.policies import OPERATIONS, POLICIES, Policy, View, with_only
from ssl_dist.lazy import importer

if TYPE_CHECKING:
    from ssl_dist.augment.rendering import crops, views

__all__ = ["OPERATIONS", "POLICIES", "Policy", "View", "crops", "views", "with_only"]
__getattr__ = importer(__name__, rendering=("crops", "views"))
