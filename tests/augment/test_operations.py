"""Tests of each operation with fixed parameters against torchvision's; hue is tested against its definition."""

from __future__ import annotations

import itertools
from types import SimpleNamespace

import pytest
import torch
from torchvision.transforms.v2 import functional as tv

from ssl_dist.augment import operations
from tests.augment.fixed import made, pictures, planes

# float32: a few roundings of weights and sums, each of 6e-8 of at most 1
SUMS = 2e-6
# torchvision's luma is 0.2989 r + 0.587 g + 0.114 b, ours 0.299: 1e-4 of a colour, times a factor of up to 2
LUMA = 2e-4


def test_no_operation_gives_the_image() -> None:
    images = pictures(3)
    torch.testing.assert_close(made(images), planes(images), rtol=0, atol=SUMS)


@pytest.mark.parametrize("size", [16, 32, 48])
@pytest.mark.parametrize(("top", "left", "height", "width"), [(0, 0, 40, 32), (3, 5, 20, 15), (39, 31, 1, 1)])
def test_crop_and_resize(size: int, top: int, left: int, height: int, width: int) -> None:
    images = pictures(2, 40, 32)
    ours = made(images, size, top=top, left=left, height=height, width=width)
    theirs = tv.resized_crop(planes(images), top, left, height, width, [size, size], antialias=True)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=SUMS)


def test_flip() -> None:
    images = pictures(2)
    torch.testing.assert_close(made(images, flipped=True), tv.hflip(planes(images)), rtol=0, atol=SUMS)


@pytest.mark.parametrize("quarters", [1, 2, 3])
@pytest.mark.parametrize("flipped", [False, True])
def test_rotation_turns_the_resized_and_flipped_image_also_of_a_rectangle(quarters: int, flipped: bool) -> None:
    images = pictures(2, 40, 24)
    plain = made(images, 32, flipped=flipped)
    turned = made(images, 32, flipped=flipped, quarter_turns=quarters)
    # the same weights on the same pixels, summed in another order
    torch.testing.assert_close(turned, torch.rot90(plain, quarters, (2, 3)), rtol=0, atol=SUMS)


@pytest.mark.parametrize("quarters", [0, 1, 2, 3])
def test_rotation_of_a_square_moves_pixels_and_changes_none(quarters: int) -> None:
    images = pictures(2)
    exact = torch.rot90(made(images), quarters, (2, 3))
    assert torch.equal(made(images, quarter_turns=quarters), exact)


@pytest.mark.parametrize("sigma", [0.1, 0.7, 2.0])
@pytest.mark.parametrize(("size", "taps"), [(8, 3), (32, 3), (96, 9)])
def test_blur(sigma: float, size: int, taps: int) -> None:
    images = pictures(2, size)
    theirs = tv.gaussian_blur(planes(images), kernel_size=[taps, taps], sigma=[sigma, sigma])
    torch.testing.assert_close(made(images, blur_sigma=sigma), theirs, rtol=0, atol=SUMS)


def test_blur_of_a_single_pixel_leaves_it() -> None:
    image = pictures(1, 1)
    torch.testing.assert_close(made(image, blur_sigma=1.0), planes(image), rtol=0, atol=SUMS)


@pytest.mark.parametrize("factor", [0.6, 1.0, 1.3])
def test_brightness(factor: float) -> None:
    images = pictures(2)
    theirs = tv.adjust_brightness(planes(images), factor)
    torch.testing.assert_close(made(images, brightness=factor), theirs, rtol=0, atol=SUMS)


@pytest.mark.parametrize("factor", [0.0, 0.6, 1.3])
def test_contrast(factor: float) -> None:
    images = pictures(2)
    theirs = tv.adjust_contrast(planes(images), factor)
    torch.testing.assert_close(made(images, contrast=factor), theirs, rtol=0, atol=LUMA)


@pytest.mark.parametrize("factor", [0.0, 0.6, 1.3])
def test_saturation(factor: float) -> None:
    images = pictures(2)
    theirs = tv.adjust_saturation(planes(images), factor)
    torch.testing.assert_close(made(images, saturation=factor), theirs, rtol=0, atol=LUMA)


def test_grey() -> None:
    images = pictures(2)
    torch.testing.assert_close(made(images, saturation=0), tv.rgb_to_grayscale(planes(images), 3), rtol=0, atol=LUMA)


@pytest.mark.parametrize("size", [32, 48])
def test_solarising(size: int) -> None:
    images = pictures(2)
    plain = made(images, size)
    assert (plain < 0.5).any()
    assert (plain >= 0.5).any()
    torch.testing.assert_close(made(images, size, solarised=True), tv.solarize(plain, 0.5), rtol=0, atol=0)
    of_bytes = tv.solarize(images.permute(0, 3, 1, 2), 128) / 255  # as PIL does
    torch.testing.assert_close(made(images, solarised=True), of_bytes, rtol=0, atol=SUMS)


@pytest.mark.parametrize("turn", [-0.2, 0.05, 0.13])
def test_hue_turns_i_and_q_of_yiq_by_its_angle(turn: float) -> None:
    """Compare with Haeberli, 1993, computed for each pixel with the coefficients of the NTSC's YIQ."""
    image = planes(pictures(1))[0]
    angle = torch.tensor(turn * 2 * torch.pi)
    to_yiq = torch.tensor([operations.GREY, (0.595716, -0.274453, -0.321263), (0.211456, -0.522591, 0.311135)])
    y, i, q = torch.einsum("kc,chw->khw", to_yiq, image)
    turned = torch.stack([y, i * angle.cos() - q * angle.sin(), i * angle.sin() + q * angle.cos()])
    expected = torch.einsum("ck,khw->chw", torch.linalg.inv(to_yiq), turned)
    # the coefficients have 6 digits; the expected value separates grey by them, ours by luma alone
    torch.testing.assert_close(made(pictures(1), hue=turn)[0], expected.clamp(0, 1), rtol=0, atol=1e-5)


def test_hue_keeps_luma_and_grey_and_turns_back() -> None:
    one = torch.ones(2)
    turns = SimpleNamespace(brightness=one, contrast=one, saturation=one, hue=torch.tensor([0.13, -0.13]))
    (there, back), _ = operations.colour_maps(turns)
    luma = torch.tensor(operations.GREY)
    # the coefficients of YIQ have 6 digits
    torch.testing.assert_close(luma @ there, luma, rtol=0, atol=1e-5)
    torch.testing.assert_close(there @ torch.ones(3), torch.ones(3), rtol=0, atol=1e-5)
    torch.testing.assert_close(there @ back, torch.eye(3), rtol=0, atol=1e-5)


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_jitter_equals_torchvisions_operations_in_any_order(order: tuple[int, ...]) -> None:
    images = pictures(2)
    theirs_by_number = (
        lambda x: tv.adjust_brightness(x, 1.1),
        lambda x: tv.adjust_contrast(x, 0.9),
        lambda x: tv.adjust_saturation(x, 0.8),
    )
    theirs = planes(images)
    for number in order:
        theirs = theirs_by_number[number](theirs)
    ours = made(images, brightness=1.1, contrast=0.9, saturation=0.8)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=2 * LUMA)  # of contrast and of saturation


def test_values_are_clamped_after_all_operations() -> None:
    images = pictures(2)
    unclamped = planes(images) * 3
    assert (unclamped > 1).any()
    torch.testing.assert_close(made(images, brightness=3), unclamped.clamp(max=1), rtol=0, atol=SUMS)


def test_combined_operations_have_a_fixed_order() -> None:
    """The order is crop, flip, blur, rotation, colour, solarising."""
    images = pictures(2, 40)
    box = {"top": 3, "left": 5, "height": 30, "width": 20}
    theirs = tv.resized_crop(planes(images), *box.values(), [32, 32], antialias=True)
    theirs = tv.gaussian_blur(tv.hflip(theirs), kernel_size=[3, 3], sigma=[0.8, 0.8])
    theirs = tv.solarize(tv.adjust_contrast(torch.rot90(theirs, 1, (2, 3)), 0.7), 0.5)
    ours = made(images, 32, **box, flipped=True, blur_sigma=0.8, quarter_turns=1, contrast=0.7, solarised=True)
    close = (ours - theirs).abs() < LUMA
    # a value within LUMA of 0.5 may be solarised in one and not in the other
    assert (close | ((theirs - 0.5).abs() < LUMA) | ((ours - 0.5).abs() < LUMA)).all()


@pytest.mark.parametrize("length", [1, 2, 3, 7, 256, 1000])
def test_halves_add_up_to_the_sum(length: int) -> None:
    """Equal to the sum in float64 but for rounding, whatever other rows there are, and without writing into them."""
    rows = torch.rand(5, 3, length, generator=torch.Generator().manual_seed(0))
    before = rows.clone()
    found = operations.sum_by_halves(rows)
    torch.testing.assert_close(found.double(), before.double().sum(-1), rtol=1e-6, atol=0)
    assert torch.equal(rows, before)
    assert torch.equal(operations.sum_by_halves(rows[2:3])[0], found[2])
