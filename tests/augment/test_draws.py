"""Tests of views' random parameters: their distributions are torchvision's, and operations have their probability."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from scipy.stats import binomtest, kstest
from torchvision.transforms import RandomResizedCrop

from ssl_dist import augment
from ssl_dist.augment import POLICIES, View
from ssl_dist.augment.draws import RandomNumbers, draw_parameters
from ssl_dist.hashing import fold

N = 4000
# The numbers are fixed, so a test that passes once always does. This is the chance that a right distribution fails.
LEVEL = 0.001
STATE = fold(torch.arange(N), 0)
PAIRS = list(itertools.combinations(augment.OPERATIONS, 2))


@pytest.mark.parametrize(("height", "width"), [(96, 96), (40, 64)])
@pytest.mark.parametrize("scale", [(0.08, 1.0), (0.2, 0.5)])
def test_crops_have_torchvisions_distribution(height: int, width: int, scale: tuple[float, float]) -> None:
    ours = draw_parameters(STATE, View(crop_scale=scale), height, width)
    torch.manual_seed(0)
    image = torch.zeros(3, height, width)
    boxes = [RandomResizedCrop.get_params(image, list(scale), [3 / 4, 4 / 3]) for _ in range(N)]
    top, left, tall, wide = np.array(boxes).T
    pairs = {
        "area": (ours.height * ours.width, tall * wide),
        "ratio": (ours.width / ours.height, wide / tall),
        "top": (ours.top, top),
        "left": (ours.left, left),
        "top relative to its range": (ours.top / (height - ours.height + 1), top / (height - tall + 1)),
        "left relative to its range": (ours.left / (width - ours.width + 1), left / (width - wide + 1)),
    }
    for name, (mine, theirs) in pairs.items():
        assert kstest(mine.numpy(), theirs).pvalue > LEVEL, name


def test_a_box_that_never_fits_becomes_the_largest_centred_one() -> None:
    drawn = draw_parameters(STATE[:5], View(crop_scale=(1, 1), crop_ratio=(2, 2)), 32, 32)
    assert (drawn.height.unique().item(), drawn.width.unique().item()) == (16, 32)
    assert (drawn.top.unique().item(), drawn.left.unique().item()) == (8, 0)


def test_jitter_factors_and_blur_are_uniform() -> None:
    drawn = draw_parameters(
        STATE, View(jitter_p=1, grey_p=0, blur_p=1, jitter_strength=0.5, jitter_saturation=0.2), 96, 96
    )
    ranges = {
        "brightness": (0.6, 1.4),
        "contrast": (0.6, 1.4),
        "saturation": (0.8, 1.2),
        "hue": (-0.1, 0.1),
        "blur_sigma": (0.1, 2.0),
    }
    for name, (low, high) in ranges.items():
        assert kstest(getattr(drawn, name).numpy(), "uniform", (low, high - low)).pvalue > LEVEL, name


def _happened(operation: str, view: View) -> torch.Tensor:
    drawn = draw_parameters(STATE, view, 96, 96)
    return {
        "crop": (drawn.height != 96) | (drawn.width != 96),
        "flip": drawn.flipped,
        "rotation": drawn.quarter_turns > 0,
        "colour": drawn.brightness != 1,
        "grey": drawn.saturation == 0,
        "blur": drawn.blur_sigma > 0,
        "solarise": drawn.solarised,
    }[operation]


ALL = {key: 0.3 for key, _ in augment.OPERATIONS.values()} | {"crop_scale": (0.08, 0.5)}  # no crop is the whole image


@pytest.mark.parametrize("operation", augment.OPERATIONS)
def test_an_operation_happens_with_its_probability(operation: str) -> None:
    key, _ = augment.OPERATIONS[operation]
    for p in (0.05, 0.3, 0.8):
        count = int(_happened(operation, View(**{**ALL, key: p})).sum())
        assert binomtest(count, N, p).pvalue > LEVEL
    assert _happened(operation, View(**{**ALL, key: 1.0})).all()
    assert not _happened(operation, View(**{**ALL, key: 0.0})).any()


@pytest.mark.parametrize(("one", "other"), PAIRS)
def test_operations_happen_independently(one: str, other: str) -> None:
    view = View(**ALL)
    both = int((_happened(one, view) & _happened(other, view)).sum())
    assert binomtest(both, N, 0.3**2).pvalue > LEVEL


def test_quarter_turns_are_as_likely_as_each_other() -> None:
    turns = draw_parameters(STATE, View(rotation_p=0.75), 32, 32).quarter_turns
    for quarters in range(4):
        assert binomtest(int((turns == quarters).sum()), N, 0.25).pvalue > LEVEL


def test_random_numbers_of_an_image_are_uniform_and_independent() -> None:
    uniforms = RandomNumbers(STATE).uniforms(35).double()
    for column in uniforms.T:
        assert kstest(column.numpy(), "uniform").pvalue > LEVEL / 35
    correlations = torch.corrcoef(uniforms.T).fill_diagonal_(0)
    assert correlations.abs().max() < 5 / math.sqrt(N)  # standard deviation 1 / sqrt(N); 595 pairs


def test_an_operation_that_is_off_leaves_the_others_as_they_are() -> None:
    full = draw_parameters(STATE, View(**ALL), 96, 96)
    for key, _ in augment.OPERATIONS.values():
        less = draw_parameters(STATE, View(**{**ALL, key: 0.0}), 96, 96)
        changed = {name for name, a, b in zip(full._fields, full, less, strict=True) if not torch.equal(a, b)}
        expected = {
            "crop_p": {"top", "left", "height", "width"},
            "flip_p": {"flipped"},
            "rotation_p": {"quarter_turns"},
            "jitter_p": {"brightness", "contrast", "saturation", "hue"},
            "grey_p": {"saturation"},
            "blur_p": {"blur_sigma"},
            "solarise_p": {"solarised"},
        }
        assert changed == expected[key]


def test_byols_views_are_drawn_as_its_table_says() -> None:
    """BYOL's policy equals arXiv 2006.07733, table 6, and the crop and blur of the text above it."""
    table = [
        {"flip": 0.5, "jitter": 0.8, "grey": 0.2, "blur": 1.0, "solarise": 0.0},
        {"flip": 0.5, "jitter": 0.8, "grey": 0.2, "blur": 0.1, "solarise": 0.2},
    ]
    intensities = {"brightness": 0.4, "contrast": 0.4, "saturation": 0.2, "hue": 0.1}
    for view, probabilities in zip(POLICIES["byol"], table, strict=True):
        assert {name: getattr(view, f"{name}_p") for name in probabilities} == probabilities
        assert (view.crop_scale, view.crop_ratio, view.blur_sigma) == ((0.08, 1.0), (3 / 4, 4 / 3), (0.1, 2.0))
        drawn = draw_parameters(STATE, view.model_copy(update={"jitter_p": 1.0, "grey_p": 0.0}), 32, 32)
        for name, reach in intensities.items():
            values = getattr(drawn, name) - (0 if name == "hue" else 1)
            # the widest of 4,000 draws comes within 0.5 % of the range's end
            assert float(values.abs().max()) == pytest.approx(reach, rel=0.005)
    without_blur = tuple(view.model_copy(update={"blur_p": 0.0}) for view in POLICIES["byol"])
    assert POLICIES["byol-small"] == without_blur


@pytest.mark.parametrize("pair", PAIRS)
@pytest.mark.parametrize("recipe", ["simclr", "simclr-small", "byol"])
def test_with_only_two_operations_no_other_happens(recipe: str, pair: tuple[str, str]) -> None:
    views = augment.with_only(POLICIES[recipe], pair)
    for operation in augment.OPERATIONS:
        happened = any(bool(_happened(operation, view).any()) for view in views)
        assert happened == (operation in pair)
