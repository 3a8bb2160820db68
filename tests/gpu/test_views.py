"""Views on a GPU: the same random numbers as on the CPU, pixels up to rounding, and the same bits in any batch."""

from __future__ import annotations

import pytest
import torch

from ssl_dist import augment
from ssl_dist.augment import POLICIES, View, rendering
from ssl_dist.augment.draws import RandomNumbers, draw_parameters
from ssl_dist.hashing import fold
from tests.augment.fixed import pictures

pytestmark = pytest.mark.gpu

BOUND = 1e-5  # sums of some ten float32 products of pixels up to 1, in another order; a shifted crop differs by 1e-2
TURNED = (View(rotation_p=0.75, solarise_p=0.5, size_px=20), View(size_px=12, blur_p=1.0))
EACH_POLICY = pytest.mark.parametrize("policy", [*POLICIES.values(), TURNED], ids=[*POLICIES, "turned"])


def test_hashes_and_the_numbers_made_of_them_are_equal(device: torch.device) -> None:
    ids = torch.arange(-7, 4093) * 1_000_003
    here, there = (fold(fold(where, 2**63 - 1), where) for where in (ids, ids.to(device)))
    assert torch.equal(there.cpu(), here)
    assert torch.equal(RandomNumbers(there).uniforms(35, -3, 5).cpu(), RandomNumbers(here).uniforms(35, -3, 5))


@EACH_POLICY
def test_drawn_parameters_are_equal(policy: augment.Policy, device: torch.device) -> None:
    """Boxes, flips and turns are equal bit for bit; colours and blurs are too, if the device rounds as IEEE says."""
    state = fold(torch.arange(1000), 3)
    for view in dict.fromkeys(policy):
        here, there = (draw_parameters(where, view, 47, 33) for where in (state, state.to(device)))
        for name, ours, theirs in zip(here._fields, there, here, strict=True):
            exact = name in ("top", "left", "height", "width", "flipped", "quarter_turns", "solarised")
            difference = (ours.cpu().float() - theirs.float()).abs().max().item()
            assert difference <= (0 if exact else 1e-6), name


@EACH_POLICY
def test_pixels_are_those_of_the_cpu(policy: augment.Policy, device: torch.device) -> None:
    images, ids, epochs = pictures(50, 40)[:, :, :33].contiguous(), torch.arange(50) * 7, torch.arange(50) // 20
    options = {"seed": 3, "recipe": policy}
    here = augment.crops(images, ids, epoch=epochs, **options)
    there = augment.crops(images.to(device), ids.to(device), epoch=epochs.to(device), **options)
    for ours, theirs in zip(there, here, strict=True):
        assert ours.device.type == device.type
        assert (ours.cpu() - theirs).abs().max() <= BOUND


@EACH_POLICY
def test_a_view_does_not_depend_on_its_batch(policy: augment.Policy, device: torch.device) -> None:
    images, ids = pictures(70, 33).to(device), torch.arange(100, 170, device=device)
    whole = augment.crops(images, ids, seed=1, epoch=2, recipe=policy)
    for places in ([0], [69, 3], range(5), range(20, 57), range(69, -1, -1)):
        rows = torch.tensor(list(places), device=device)
        some = augment.crops(images[rows], ids[rows], seed=1, epoch=2, recipe=policy)
        assert all(torch.equal(a, b[:, rows]) for a, b in zip(some, whole, strict=True)), f"{len(rows)} images"


@pytest.mark.parametrize("size", [32, 96, 224])
def test_chunks_change_no_bit(size: int, device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    images, ids = pictures(40, size).to(device), torch.arange(40, device=device)
    whole = augment.crops(images, ids, seed=1, epoch=2, recipe=TURNED + POLICIES["simclr"])
    for name in ("_CHUNK_BYTES_ON_DEVICE", "_CHUNK_BYTES_PER_CORE"):
        monkeypatch.setattr(rendering, name, 3 * images[0].numel() * 4)
    monkeypatch.setattr(rendering, "_CHUNKS_PER_DRAW", 5)
    parts = augment.crops(images, ids, seed=1, epoch=2, recipe=TURNED + POLICIES["simclr"])
    assert all(map(torch.equal, parts, whole))


def test_bfloat16_is_float32_rounded_once(device: torch.device) -> None:
    images, ids = pictures(8).to(device), torch.arange(8, device=device)
    exact = augment.views(images, ids, seed=0, epoch=0, recipe="byol")
    rounded = augment.views(images, ids, seed=0, epoch=0, recipe="byol", dtype=torch.bfloat16)
    assert torch.equal(rounded, exact.bfloat16())
    with torch.autocast(device.type, torch.bfloat16):
        assert torch.equal(augment.views(images, ids, seed=0, epoch=0, recipe="byol"), exact)
