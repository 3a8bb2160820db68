"""Tests of the benchmarks: they compare like with like, and a repeated run replaces its section of the page."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import augment, mixing, page, transforms
from benchmarks.contenders import LOSSES
from tests.gloo import GlooPool


def _value(rank: int, size: int, name: str) -> tuple[float, float]:
    """Return the loss of 24 images and the norm of the gradient over all ranks' rows."""
    generator = torch.Generator().manual_seed(0)
    views = torch.randn(2, 24, 8, generator=generator)
    share = 24 // size
    z_a, z_b = (view[rank * share : (rank + 1) * share].clone().requires_grad_() for view in views)
    loss = LOSSES[name](z_a, z_b, 0.3)
    squares = sum(grad.square().sum() for grad in torch.autograd.grad(loss, (z_a, z_b)))
    total = torch.stack([loss.detach(), torch.as_tensor(squares)])
    if size > 1:
        torch.distributed.all_reduce(total)
    mean, square = total.tolist()
    return mean / size, square**0.5


@pytest.mark.parametrize("name", LOSSES)
def test_every_contender_computes_the_same_loss(gloo: Callable[[int], GlooPool], name: str) -> None:
    if name == "lightly":
        pytest.importorskip("lightly")
    loss, norm = _value(0, 1, "ours")
    assert _value(0, 1, name) == pytest.approx((loss, norm), rel=1e-5)
    if name != "dense autograd":  # each rank of the others has the loss of its own rows; ranks are averaged
        unit = 1 if name == "ours" else 2
        assert gloo(2).run(_value, name)[0] == pytest.approx((loss, norm * unit), rel=1e-5)


@pytest.mark.parametrize("name", augment.CONTENDERS)
@pytest.mark.parametrize(("size_px", "strength"), [(32, 0.4), (96, 0.8)])
def test_views_of_grey_images_are_grey_and_as_bright_as_the_jitter_lets_them(
    name: str, size_px: int, strength: float
) -> None:
    if not transforms.installed([name]):
        pytest.skip(f"{name} is not installed")
    torch.manual_seed(0)
    grey, byte = 99 / 255, 1 / 255  # some libraries round to bytes after each operation
    first, second = augment.CONTENDERS[name].start(np.full((4, size_px, size_px, 3), 99, dtype=np.uint8))()
    for view in (first, second):
        assert view.dtype == torch.float32
        assert view.shape == (4, 3, size_px, size_px)
        assert (view.amax((1, 2, 3)) - view.amin((1, 2, 3))).max() <= byte
        assert grey * (1 - strength) - byte <= view.min() <= view.max() <= grey * (1 + strength) + byte
    assert not torch.equal(first, second)


def test_augmenters_are_measured_and_one_that_is_not_installed_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("kornia.augmentation", "lightly.transforms"):
        monkeypatch.setitem(sys.modules, module, None)  # its import fails
    threads = torch.get_num_threads()
    try:
        augment.main(images=2, single=1, repeats=1, docs=tmp_path)
    finally:
        torch.set_num_threads(threads)
    records = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert records[:2] == [{"augmenter": name, "missing": name} for name in ("kornia", "lightly")]
    assert [(one["augmenter"], one["size_px"], one["blur"]) for one in records[2:]] == [
        (name, size, blur) for size, blur in ((32, False), (96, True)) for name in ("ours", "torchvision")
    ]
    assert all(one["views_per_cpu_s"] > 0 for one in records[2:])
    assert (tmp_path / "augment.png").stat().st_size > 0
    text = (tmp_path / "performance.md").read_text()
    assert re.findall(r"^\| (\w+) \| [\d,]+ \([\d.]+\) \| [\d,]+ \([\d.]+\) \|$", text, re.MULTILINE) == [
        "ours",
        "torchvision",
    ]
    assert "(2 of 32 px or 2 of 96 px)" in text
    assert "Not installed in this run: kornia, lightly." in text


def test_a_section_is_written_once(tmp_path: Path) -> None:
    page.write_section("A", "first", tmp_path)
    page.write_section("B", page.table(["x", "y"], [["1", "2"]]), tmp_path)
    page.write_section("A", "second", tmp_path)
    text = (tmp_path / "performance.md").read_text()
    assert text.startswith("# Performance")
    assert text.count("## A\n\nsecond\n") == 1
    assert "first" not in text
    assert text.endswith("## B\n\n| x | y |\n| --- | --- |\n| 1 | 2 |\n")


def test_orders_are_permutations_and_wider_windows_mix_better(tmp_path: Path) -> None:
    count = 4 * mixing.SHARD
    for name, order in mixing.orders(4, [1, 2, 4]).items():
        assert np.array_equal(np.sort(order(1)), np.arange(count)), name
    mixing.main(shards=4, batches=[64], epochs=1, docs=tmp_path)
    found = dict(re.findall(r"^\| (.+?) \| ([\d.]+) \|$", (tmp_path / "performance.md").read_text(), re.MULTILINE))
    rising = [float(found[f"window of {shards} shards"]) for shards in (1, 2, 4)]
    assert rising[0] < rising[1] < rising[2]
    assert rising[2] == pytest.approx(float(found["full permutation"]), abs=0.02)  # both are full permutations
    assert rising[2] == pytest.approx(1, abs=0.02)
    assert float(found["buffer of 1,000"]) < rising[0]
    assert (tmp_path / "mixing.png").stat().st_size > 10_000
