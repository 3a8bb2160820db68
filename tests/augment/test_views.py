"""Tests of whole views: they are a pure function, independent of the batch, in range, and right in either dtype."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch

from ssl_dist import augment
from ssl_dist.augment import POLICIES, View, rendering
from ssl_dist.errors import ConfigError
from tests.augment.fixed import pictures, planes


@pytest.mark.parametrize("threads", [1, 2, 4])
@pytest.mark.parametrize(
    ("recipe", "size", "counts"),
    [
        ("simclr-small", 32, range(1, 73)),
        *((recipe, 33, (1, 2, 5, 16)) for recipe in POLICIES),
        *((recipe, 96, (1, 2, 5, 9)) for recipe in ("simclr", "byol", "swav-96")),
    ],
)
def test_a_view_does_not_depend_on_its_batch(recipe: str, size: int, counts: Sequence[int], threads: int) -> None:
    """Each image's bits are the same in a batch of any size, at any index, with any number of threads."""
    images, ids = pictures(max(counts), size), torch.arange(100, 100 + max(counts))
    order = torch.Generator().manual_seed(0)
    whole = augment.crops(images, ids, seed=1, epoch=2, recipe=recipe)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for count in counts[:: 1 if threads == 1 else 3]:
            places = torch.randperm(max(counts), generator=order)[:count]
            some = augment.crops(images[places], ids[places], seed=1, epoch=2, recipe=recipe)
            assert all(torch.equal(a, b[:, places]) for a, b in zip(some, whole, strict=True)), f"{count} images"
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("threads", [1, 2, 4])
def test_chunk_sizes_change_no_bit(monkeypatch: pytest.MonkeyPatch, threads: int) -> None:
    images, ids = pictures(40)[:, :, :24].contiguous(), torch.arange(40)
    turned = View(rotation_p=0.75, solarise_p=0.5, size_px=20)
    recipe = (turned, turned, View(size_px=20), View(size_px=12, blur_p=1.0))
    whole = augment.crops(images, ids, seed=1, epoch=2, recipe=recipe)
    monkeypatch.setattr(rendering, "_CHUNK_BYTES_PER_CORE", 3 * images[0].numel() * 4)
    monkeypatch.setattr(rendering, "_CHUNKS_PER_DRAW", 5)
    monkeypatch.setattr(rendering, "_LARGE_PAGE_BYTES", 1)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        parts = augment.crops(images, ids, seed=1, epoch=2, recipe=recipe)
    finally:
        torch.set_num_threads(before)
    assert all(map(torch.equal, parts, whole))


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


def test_views_of_different_settings_are_those_of_each_alone() -> None:
    images, ids = pictures(3), torch.arange(3)
    small = View(size_px=16)
    plain, other = View(), View(blur_p=1.0)
    large, tiny = augment.crops(images, ids, seed=0, epoch=0, recipe=(plain, other, small))
    assert torch.equal(large[:1], augment.views(images, ids, seed=0, epoch=0, recipe=(plain, plain))[:1])
    assert torch.equal(large[1:], augment.views(images, ids, seed=0, epoch=0, recipe=(other, other))[1:])
    assert torch.equal(tiny[0], augment.views(images, ids, seed=0, epoch=0, recipe=(small,) * 3)[2])


def test_no_images_give_no_views() -> None:
    large, small = augment.crops(
        torch.empty(0, 32, 32, 3, dtype=torch.uint8), torch.arange(0), seed=0, epoch=0, recipe="swav-small"
    )
    assert (large.shape, small.shape) == ((2, 0, 3, 32, 32), (4, 0, 3, 16, 16))


@pytest.mark.parametrize("recipe", POLICIES)
def test_every_policy_makes_views_in_range_also_of_black_and_white(recipe: str) -> None:
    images = torch.zeros(16, 40, 32, 3, dtype=torch.uint8)
    images[8:] = 255
    for part in augment.crops(images, torch.arange(16), seed=0, epoch=0, recipe=recipe):
        assert torch.isfinite(part).all()
        assert part.min() >= 0
        assert part.max() <= 1


def test_without_operations_a_view_is_the_whole_image() -> None:
    images, ids = pictures(3), torch.arange(3)
    [view] = augment.views(images, ids, seed=0, epoch=0, recipe="none")
    assert torch.equal(view, planes(images))


def test_autocast_does_not_round_views() -> None:
    images, ids = pictures(4), torch.arange(4)
    exact = augment.views(images, ids, seed=0, epoch=0, recipe="simclr")
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(augment.views(images, ids, seed=0, epoch=0, recipe="simclr"), exact)


@pytest.mark.parametrize("recipe", ["simclr", "byol", "strong"])
def test_bfloat16_is_float32_rounded_once(recipe: str) -> None:
    images, ids = pictures(8), torch.arange(8)
    exact = augment.views(images, ids, seed=0, epoch=0, recipe=recipe)
    rounded = augment.views(images, ids, seed=0, epoch=0, recipe=recipe, dtype=torch.bfloat16)
    assert torch.equal(rounded, exact.bfloat16())
    assert (rounded.float() - exact).abs().max() <= 2**-9  # half the distance of bfloat16's numbers just below 1


def test_unknown_recipe_and_views_of_two_sizes_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"augment recipe 'x': it is one of simclr"):
        augment.views(pictures(1), torch.arange(1), seed=0, epoch=0, recipe="x")
    with pytest.raises(ConfigError, match=r"views of different sizes \[16, 32\]"):
        augment.views(pictures(1), torch.arange(1), seed=0, epoch=0, recipe=(View(), View(size_px=16)))
