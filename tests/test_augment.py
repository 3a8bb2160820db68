"""Views: pure, equal to torchvision's operations where those are linear, with its distribution of crops."""

import math

import numpy as np
import pytest
import torch
from scipy.stats import ks_2samp
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as tv

from ssl_dist import augment
from ssl_dist.augment import View, operations
from ssl_dist.errors import ConfigError
from ssl_dist.order import fold

PLAIN = View(crop_scale=(1, 1), crop_ratio=(1, 1), flip_p=0, jitter_p=0, grey_p=0, blur_p=0)


def pictures(n: int, size: int = 32) -> torch.Tensor:
    """Smooth uint8 [n, size, size, 3], away from black and white so that nothing is clamped."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(n, 3, 6, 6, generator=generator) * 100 + 70
    smooth = torch.nn.functional.interpolate(coarse, size=(size, size), mode="bicubic")
    return smooth.round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous()


def test_a_view_does_not_depend_on_its_batch() -> None:
    images, ids = pictures(12), torch.arange(100, 112)
    whole = augment.views(images, ids, seed=1, epoch=2, recipe="simclr")
    part = augment.views(images[5:8], ids[5:8], seed=1, epoch=2, recipe="simclr")
    assert whole.shape == (2, 12, 3, 32, 32)
    torch.testing.assert_close(
        part, whole[:, 5:8], rtol=0, atol=1e-6
    )  # products of other batch sizes round differently
    turned = augment.views(images.flip(0), ids.flip(0), seed=1, epoch=2, recipe="simclr")
    torch.testing.assert_close(turned.flip(1), whole, rtol=0, atol=1e-6)


def test_seed_epoch_id_and_view_each_change_the_view() -> None:
    images, ids = pictures(1).expand(4, -1, -1, -1), torch.arange(4)
    base = augment.views(images, ids, seed=0, epoch=0, recipe="simclr")
    others = [
        augment.views(images, ids, seed=1, epoch=0, recipe="simclr"),
        augment.views(images, ids, seed=0, epoch=1, recipe="simclr"),
        augment.views(images, ids + 4, seed=0, epoch=0, recipe="simclr"),
        base.flip(0),
        base.roll(1, dims=1),
    ]
    for other in others:
        assert all((base[:, n] - other[:, n]).abs().max() > 0.01 for n in range(4))


def test_epochs_may_differ_within_a_batch() -> None:
    images, ids = pictures(3), torch.arange(3)
    mixed = augment.views(images, ids, seed=0, epoch=torch.tensor([4, 5, 4]), recipe="simclr-small")
    for n, epoch in enumerate((4, 5, 4)):
        alone = augment.views(images, ids, seed=0, epoch=epoch, recipe="simclr-small")
        assert torch.equal(mixed[:, n], alone[:, n])


def test_without_operations_a_view_is_the_image() -> None:
    images = pictures(3)
    [view] = augment.views(images, torch.arange(3), seed=0, epoch=0, recipe=(PLAIN,))
    torch.testing.assert_close(view, images.permute(0, 3, 1, 2) / 255, rtol=0, atol=1e-6)


@pytest.mark.parametrize("size", [16, 32, 48])
def test_crop_and_resize_equal_torchvisions_antialiased_resize(size: int) -> None:
    image = pictures(1)
    view = PLAIN.model_copy(update={"size_px": size, "crop_scale": (0.1, 0.9), "crop_ratio": (3 / 4, 4 / 3)})
    for number in range(20):
        ids = torch.tensor([number])
        draws = operations.Draws(fold(_state(0, 0, ids), 0))
        top, left, height, width = (int(x) for x in operations.crop_boxes(draws, view, 32, 32))
        theirs = tv.resized_crop(
            image[0].permute(2, 0, 1) / 255, top, left, height, width, [size, size], antialias=True
        )
        [ours] = augment.views(image, ids, seed=0, epoch=0, recipe=(view,))
        # the same triangle filter, summed in another order
        torch.testing.assert_close(ours[0], theirs, rtol=0, atol=2e-6)


def _state(seed: int, epoch: int, ids: torch.Tensor) -> torch.Tensor:
    return fold(fold(fold(torch.zeros_like(ids), seed), torch.tensor([epoch])), ids)


def test_crop_boxes_have_torchvisions_distribution() -> None:
    view = View()
    draws = operations.Draws(fold(torch.arange(4000), 0))
    _, _, heights, widths = operations.crop_boxes(draws, view, 96, 96)
    torch.manual_seed(0)
    crop = v2.RandomResizedCrop(96, scale=view.crop_scale, ratio=view.crop_ratio)
    theirs = [crop.make_params([torch.zeros(3, 96, 96)]) for _ in range(4000)]
    their_heights, their_widths = (np.array([box[key] for box in theirs]) for key in ("height", "width"))
    assert ks_2samp((heights * widths).numpy(), their_heights * their_widths).pvalue > 0.01
    assert ks_2samp((widths / heights).numpy(), their_widths / their_heights).pvalue > 0.01


def test_a_box_that_never_fits_becomes_the_largest_centred_one() -> None:
    view = View(crop_scale=(1, 1), crop_ratio=(2, 2))
    top, left, height, width = operations.crop_boxes(operations.Draws(torch.arange(5)), view, 32, 32)
    assert (height.unique().item(), width.unique().item()) == (16, 32)
    assert (top.unique().item(), left.unique().item()) == (8, 0)


def test_flips_happen_with_their_probability_and_mirror() -> None:
    images = pictures(1).expand(2000, -1, -1, -1)
    view = PLAIN.model_copy(update={"flip_p": 0.3})
    [flipped] = augment.views(images, torch.arange(2000), seed=0, epoch=0, recipe=(view,))
    same = (flipped - images.permute(0, 3, 1, 2) / 255).abs().amax((1, 2, 3)) < 1e-5
    assert abs(1 - same.float().mean().item() - 0.3) < 4 * math.sqrt(0.3 * 0.7 / 2000)
    torch.testing.assert_close(flipped[~same][0], flipped[same][0].flip(2), rtol=0, atol=1e-5)


@pytest.mark.parametrize("sigma", [0.1, 0.7, 2.0])
def test_blur_equals_torchvisions(sigma: float) -> None:
    image = pictures(1, 96).permute(0, 3, 1, 2) / 255
    blur = operations.blur_matrices(torch.tensor([sigma]), 96)
    ours = blur[:, None] @ image @ blur[:, None].mT
    theirs = tv.gaussian_blur(image, kernel_size=[9, 9], sigma=[sigma, sigma])  # 96 // 10 taps: radius 4
    torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-6)


class Fixed(operations.Draws):
    """Draws that are set: brightness, contrast, saturation, hue; the order; whether jitter and grey happen."""

    def __init__(self, values: list[float], order: list[int], jitter: bool, grey: bool) -> None:
        super().__init__(torch.zeros(1, dtype=torch.int64))
        self.values, self.order, self.flags = list(values), order, [jitter, grey]

    def uniform(self, low: float = 0.0, high: float = 1.0, columns: int = 1) -> torch.Tensor:
        if columns == 4:
            return torch.tensor([self.order]).argsort(1).float()
        return torch.tensor([[self.values.pop(0)]])

    def happens(self, p: float) -> torch.Tensor:
        return torch.tensor([self.flags.pop(0)])


@pytest.mark.parametrize("order", [[0, 1, 2, 3], [3, 2, 1, 0], [1, 3, 0, 2]])
def test_colour_jitter_equals_torchvisions_operations_in_that_order(order: list[int]) -> None:
    image = pictures(1)[0].permute(2, 0, 1) / 255
    brightness, contrast, saturation = 1.1, 0.9, 0.8
    draws = Fixed([brightness, contrast, saturation, 0.0], order, jitter=True, grey=False)
    [matrix] = operations.colour_matrices(draws, View(), image.mean((1, 2))[None])
    ours = torch.einsum("cd,dhw->chw", matrix[:, :3], image) + matrix[:, 3, None, None]
    theirs = image
    theirs_by_number = (
        lambda x: tv.adjust_brightness(x, brightness),
        lambda x: tv.adjust_contrast(x, contrast),
        lambda x: tv.adjust_saturation(x, saturation),
        lambda x: x,
    )
    for number in order:
        theirs = theirs_by_number[number](theirs)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-4)  # torchvision's luma weights have 4 digits (0.2989)


def test_grey_equals_torchvisions_and_takes_no_jitter_with_it() -> None:
    image = pictures(1)[0].permute(2, 0, 1) / 255
    draws = Fixed([1.3, 1.3, 1.3, 0.1], [0, 1, 2, 3], jitter=False, grey=True)
    [matrix] = operations.colour_matrices(draws, View(), image.mean((1, 2))[None])
    ours = torch.einsum("cd,dhw->chw", matrix[:, :3], image) + matrix[:, 3, None, None]
    torch.testing.assert_close(ours, tv.rgb_to_grayscale(image, 3), rtol=0, atol=2e-4)


def test_solarising_equals_torchvisions() -> None:
    images = pictures(8)
    theirs = images.permute(0, 3, 1, 2)
    assert (theirs < 128).any()
    assert (theirs >= 128).any()
    [ours] = augment.views(
        images, torch.arange(8), seed=0, epoch=0, recipe=(PLAIN.model_copy(update={"solarise_p": 1}),)
    )
    torch.testing.assert_close(ours, tv.solarize(theirs / 255, 0.5), rtol=0, atol=1e-6)
    torch.testing.assert_close(ours, tv.solarize(theirs, 128) / 255, rtol=0, atol=1e-6)  # of bytes, as PIL does


def test_solarising_happens_to_whole_images_with_its_probability() -> None:
    images = pictures(1).expand(2000, -1, -1, -1)
    view = PLAIN.model_copy(update={"solarise_p": 0.2})
    [made] = augment.views(images, torch.arange(2000), seed=0, epoch=0, recipe=(view,))
    changed = (made - images.permute(0, 3, 1, 2) / 255).abs() > 1e-5
    turned = changed.flatten(1).any(1)
    assert abs(turned.float().mean().item() - 0.2) < 4 * math.sqrt(0.2 * 0.8 / 2000)
    assert (changed[turned] == changed[turned][0]).all()


class Noted(operations.Draws):
    """Keeps the ranges that values are drawn from."""

    def __init__(self) -> None:
        super().__init__(torch.arange(1))
        self.ranges: list[tuple[float, float]] = []

    def uniform(self, low: float = 0.0, high: float = 1.0, columns: int = 1) -> torch.Tensor:
        self.ranges.append((low, high))
        return super().uniform(low, high, columns)


def test_byols_views_are_drawn_as_its_table_says() -> None:
    """arXiv 2006.07733, table 6, and the crop and blur of the text above it."""
    table = [
        {"flip": 0.5, "jitter": 0.8, "grey": 0.2, "blur": 1.0, "solarise": 0.0},
        {"flip": 0.5, "jitter": 0.8, "grey": 0.2, "blur": 0.1, "solarise": 0.2},
    ]
    intensities = [0.4, 0.4, 0.2, 0.1]  # of brightness, contrast, saturation, hue
    for view, probabilities in zip(augment.RECIPES["byol"], table, strict=True):
        assert {name: getattr(view, f"{name}_p") for name in probabilities} == probabilities
        assert (view.crop_scale, view.crop_ratio, view.blur_sigma) == ((0.08, 1.0), (3 / 4, 4 / 3), (0.1, 2.0))
        draws = Noted()
        operations.colour_matrices(draws, view, torch.rand(1, 3))
        middles = [1.0, 1.0, 1.0, 0.0]
        expected = [(m - i, m + i) for m, i in zip(middles, intensities, strict=True)]
        assert np.array(draws.ranges[:4]) == pytest.approx(np.array(expected))
    without_blur = tuple(view.model_copy(update={"blur_p": 0.0}) for view in augment.RECIPES["byol"])
    assert augment.RECIPES["byol-small"] == without_blur
    assert torch.count_nonzero(operations.blur_matrices(torch.ones(1), 224)[0, 112]) == 23  # taps


def test_hue_keeps_luma_and_grey_and_turns_back() -> None:
    matrices = operations.hue_matrices(torch.tensor([0.13, -0.13]))
    luma = torch.tensor(operations.GREY)
    torch.testing.assert_close(luma @ matrices[0], luma, rtol=0, atol=1e-5)
    torch.testing.assert_close(matrices[0] @ torch.ones(3), torch.ones(3), rtol=0, atol=1e-4)  # YIQ has 6 digits
    torch.testing.assert_close(matrices[0] @ matrices[1], torch.eye(3), rtol=0, atol=1e-5)


def test_bfloat16_differs_by_rounding_alone() -> None:
    images, ids = pictures(8), torch.arange(8)
    exact = augment.views(images, ids, seed=0, epoch=0, recipe="simclr")
    rounded = augment.views(images, ids, seed=0, epoch=0, recipe="simclr", dtype=torch.bfloat16)
    assert rounded.dtype == torch.bfloat16
    assert (rounded.float() - exact).abs().max() < 0.05  # 8 bits of mantissa through three products


def test_views_stay_in_range_on_black_and_white_images() -> None:
    images = torch.zeros(64, 32, 32, 3, dtype=torch.uint8)
    images[32:] = 255
    made = augment.views(images, torch.arange(64), seed=0, epoch=0, recipe="simclr")
    assert torch.isfinite(made).all()
    assert made.min() >= 0
    assert made.max() <= 1


def test_unknown_recipe_and_views_of_two_sizes_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"augment recipe 'x': it is one of simclr"):
        augment.views(pictures(1), torch.arange(1), seed=0, epoch=0, recipe="x")
    with pytest.raises(ConfigError, match=r"views of different sizes \[16, 32\]"):
        augment.views(
            pictures(1), torch.arange(1), seed=0, epoch=0, recipe=(PLAIN, PLAIN.model_copy(update={"size_px": 16}))
        )
