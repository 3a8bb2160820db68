"""The authors' parts are what they say, and each difference can be trained both ways."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.functional import interpolate
from torchvision.transforms import v2

from benchmarks import differences, lidar, originals
from ssl_dist import augment
from ssl_dist.augment import View, operations
from ssl_dist.augment.draws import ViewParameters
from ssl_dist.checkpoint import State
from tests.conftest import write_images
from tests.helpers import save, small_config

COLOURS = View(crop_p=0, flip_p=0, jitter_p=1, grey_p=0.3, blur_p=0)


def neutral(**given: float) -> ViewParameters:
    """Return the parameters of one image of which only the given colours change."""
    values = {"brightness": 1.0, "contrast": 1.0, "saturation": 1.0, "hue": 0.0, **given}
    return ViewParameters(*(torch.tensor([values.get(name, 0.0)]) for name in ViewParameters._fields))


@pytest.mark.parametrize(
    ("given", "adjust"),
    [
        ({"brightness": 1.7}, lambda image: v2.functional.adjust_brightness(image, 1.7)),
        ({"contrast": 1.8}, lambda image: v2.functional.adjust_contrast(image, 1.8)),
        ({"saturation": 1.8}, lambda image: v2.functional.adjust_saturation(image, 1.8)),
        (
            {"brightness": 1.5, "contrast": 1.6},
            lambda image: v2.functional.adjust_contrast(v2.functional.adjust_brightness(image, 1.5), 1.6),
        ),
    ],
)
def test_clamped_colours_are_torchvisions(given: dict[str, float], adjust: v2.Transform) -> None:
    image = torch.rand(1, 3, 9, 9, generator=torch.Generator().manual_seed(0))
    # torchvision has luma of 0.2989, 0.587 and 0.114
    torch.testing.assert_close(originals.clamped_colours(image, neutral(**given)), adjust(image), atol=3e-4, rtol=0)


def test_clamped_views_differ_from_ours_where_a_step_leaves_the_range_and_saturate_less() -> None:
    random = np.random.default_rng(0)
    ids = torch.arange(64)
    dull = torch.from_numpy(random.integers(118, 138, (64, 8, 8, 3), dtype=np.uint8))
    weak = (COLOURS.model_copy(update={"jitter_strength": 0.2}),) * 2
    found = originals.clamped_crops(dull, ids, recipe=weak, seed=1, epoch=torch.zeros(64, dtype=torch.int64))
    expected = augment.crops(dull, ids, recipe=weak, seed=1, epoch=0)
    torch.testing.assert_close(found[0], expected[0], atol=1e-5, rtol=0)
    vivid = torch.from_numpy(random.integers(0, 256, (64, 8, 8, 3), dtype=np.uint8))
    both = [
        make(vivid, ids, recipe=(COLOURS,), seed=1, epoch=0)[0] for make in (augment.crops, originals.clamped_crops)
    ]
    ours, theirs = (float(((views <= 0) | (views >= 1)).float().mean()) for views in both)
    assert 0.02 < theirs < 0.8 * ours


@pytest.mark.parametrize(("length", "out"), [(32, 12), (8, 24), (17, 17)])
def test_bicubic_taps_are_those_of_an_antialiased_bicubic_resize(length: int, out: int) -> None:
    line = torch.rand(40, generator=torch.Generator().manual_seed(0))
    start = 3
    taps = originals.bicubic_taps(
        torch.tensor([float(start)]), torch.tensor([float(length)]), torch.tensor([False]), 40, out
    )
    found = (line[taps.lines[0].long()] * taps.weight[0]).sum(1)
    cut = line[start : start + length].view(1, 1, 1, -1)
    expected = interpolate(cut, size=(1, out), mode="bicubic", antialias=True, align_corners=False)
    torch.testing.assert_close(found, expected.flatten(), atol=1e-5, rtol=0)
    assert (
        taps.lines.shape
        != operations.resize_taps(*([torch.tensor([8.0])] * 2), torch.tensor([False]), 40, out).lines.shape
    )


QUICK = ("clamp", "moco-symmetric")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in QUICK else pytest.mark.slow) for name in differences.DIFFERENCES]
)
def test_each_difference_is_trained_both_ways(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    write_images(tmp_path / "images", num_classes=2, per_class=16, size_px=32)
    small = {"batch.size": 8, "batch.micro": 8, "probe": {"bank": 20, "queries": 8, "k": 3}, "backbone.width": 8}
    monkeypatch.setattr(differences, "SMALL", {**differences.SMALL, **small})
    differences.main(name, tmp_path / "images", epochs=1.25, seeds=1)
    ours, theirs, total = map(json.loads, capsys.readouterr().out.splitlines())
    assert (ours["way"], theirs["way"], total["difference"]) == ("ours", "theirs", name)
    assert 0 <= total["ours"] <= 1
    assert augment.crops is not originals.clamped_crops, "patches are taken back"


def test_lidar_is_measured_at_the_start_and_the_end_of_a_run(
    small_store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lidar, "WAYS", {"ours": (20, 3), "theirs": (12, 6)})
    config = small_config(small_store)
    save(State(config.initial_method().state_dict(), {}), tmp_path, 3, config)
    lidar.main(tmp_path)
    first, last = map(json.loads, capsys.readouterr().out.splitlines())
    assert (first.pop("step"), last.pop("step")) == (0, 3)
    assert first == last, "the saved weights are the random ones"
    assert first["ours"] > 1
    assert first["theirs"] > 1
