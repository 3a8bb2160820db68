"""Measures without labels against their papers' formulas, and their curve over the checkpoints of a run."""

from __future__ import annotations

import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ssl_dist.checkpoint import State, locate_all
from ssl_dist.evaluate.features import extract, extract_view, load_method
from ssl_dist.evaluate.over_training import drawn, rank_curve
from ssl_dist.evaluate.rank import (
    Ranks,
    alignment,
    alpha_req,
    components_that_hold,
    participation_ratio,
    rankme,
    spectrum,
    uniformity,
)
from ssl_dist.store import ImageStore, build
from tests.command import Command
from tests.conftest import write_images
from tests.helpers import save, small_config

CPU = torch.device("cpu")


def power_law(n: int, dim: int, alpha: float, rank: int | None = None) -> torch.Tensor:
    """Make float64 features [n, D], not centred, of exactly the spectrum k^-alpha, which is 0 beyond ``rank``."""
    random = np.random.default_rng(0)
    raw = random.normal(size=(n, dim))
    left = np.linalg.qr(raw - raw.mean(0))[0]
    right = np.linalg.qr(random.normal(size=(dim, dim)))[0]
    scale = np.arange(1, dim + 1) ** (-alpha / 2)
    scale[rank or dim :] = 0
    return torch.from_numpy(left * scale @ right.T * math.sqrt(n - 1) + random.normal(size=dim))


def test_features_that_are_all_zero_lie_in_one_point() -> None:
    assert uniformity(torch.zeros(5, 3)) == 0
    assert uniformity(torch.eye(3)) == pytest.approx(-4), "orthogonal ones are as far as unrelated ones"


@pytest.mark.parametrize("alpha", [0.3, 1.0, 2.25])
def test_alpha_is_the_exponent_of_a_power_law(alpha: float) -> None:
    eigenvalues = spectrum(power_law(400, 130, alpha).float())
    assert eigenvalues[6] == pytest.approx(7**-alpha, rel=1e-4)
    assert alpha_req(eigenvalues) == pytest.approx(alpha, rel=1e-3)


@pytest.mark.parametrize("dim", [8, 60, 150])
def test_alpha_is_numpys_weighted_line_through_ranks_4_to_100(dim: int) -> None:
    features = np.random.default_rng(1).normal(size=(300, dim)) * np.linspace(1, 3, dim) ** 2
    eigenvalues = np.sort(np.linalg.eigvalsh(np.cov(features.T)))[::-1]
    ranks = np.arange(4, min(dim, 100) + 1)
    # polyfit squares its weights, so the root of 1 / rank weighs each squared error by 1 / rank
    slope = np.polyfit(np.log(ranks), np.log(eigenvalues[ranks - 1]), 1, w=ranks**-0.5)[0]
    found = alpha_req(spectrum(torch.from_numpy(features)))
    assert found == pytest.approx(-slope, rel=1e-9)
    assert found > 0.1


def test_alpha_leaves_out_directions_that_rank_deficient_features_lack() -> None:
    eigenvalues = spectrum(power_law(200, 64, 1.5, rank=20).float())
    assert int((eigenvalues > 0).sum()) == 20
    assert alpha_req(eigenvalues) == pytest.approx(1.5, rel=1e-3)
    assert math.isnan(alpha_req(spectrum(power_law(200, 64, 1.5, rank=4).float()))), "one point is no line"


@pytest.mark.parametrize(("n", "dim"), [(7, 3), (1500, 5)])
def test_alignment_and_uniformity_equal_a_loop_over_pairs(n: int, dim: int) -> None:
    a, b = (torch.randn(n, dim, generator=torch.Generator().manual_seed(seed)) + 0.5 for seed in (0, 1))
    z_a, z_b = (x.double().numpy() / np.linalg.norm(x.double().numpy(), axis=1, keepdims=True) for x in (a, b))
    assert alignment(a, b) == pytest.approx(np.mean([np.sum((x - y) ** 2) for x, y in zip(z_a, z_b, strict=True)]))
    total = sum(np.exp(-2 * np.sum((z_a[i] - z_a[i + 1 :]) ** 2, axis=1)).sum() for i in range(n))
    assert uniformity(a) == pytest.approx(math.log(total / (n * (n - 1) / 2)), rel=1e-9)
    assert alignment(a, 3 * a) == pytest.approx(0, abs=1e-12), "length does not matter"


def test_effective_dimensions_are_those_of_known_spectra() -> None:
    eigenvalues = torch.tensor([4.0, 3.0, 2.0, 1.0, 0.0], dtype=torch.float64)
    assert participation_ratio(eigenvalues) == pytest.approx(100 / 30)
    assert [components_that_hold(share, eigenvalues) for share in (0.3, 0.5, 0.9, 0.99)] == [1, 2, 3, 4]
    flat = spectrum(power_law(100, 16, 0.0))
    assert participation_ratio(flat) == pytest.approx(16)
    assert rankme(power_law(100, 16, 0.0, rank=5) - power_law(100, 16, 0.0, rank=5).mean(0)) == pytest.approx(5)


def test_collapsed_features_have_no_directions_and_no_alpha() -> None:
    same = torch.tensor([0.1, 0.7, 1.3]).expand(50, 3)
    found = Ranks.of(same, same[:, None].expand(50, 4, 3))
    assert (found.rankme, found.components_90, found.components_99) == (pytest.approx(1), 0, 0)
    assert (found.alignment, found.uniformity) == (pytest.approx(0), pytest.approx(0, abs=1e-6))
    assert math.isnan(found.alpha)
    assert math.isnan(found.participation)


def test_features_that_are_not_finite_have_no_measures() -> None:
    broken = torch.randn(20, 4)
    broken[3, 2] = float("nan")
    assert all(map(math.isnan, Ranks.of(broken, torch.randn(20, 2, 4))))


def test_images_are_drawn_over_the_whole_store_by_the_seed() -> None:
    ids = drawn(50, 1000, 3)
    assert ids.tolist() == sorted(set(ids.tolist()))
    assert (len(ids), ids.min() < 100, ids.max() >= 900) == (50, True, True)
    assert ids.tolist() == drawn(50, 1000, 3).tolist() != drawn(50, 1000, 4).tolist()
    assert drawn(50, 7, 3).tolist() == list(range(7))


@pytest.fixture(scope="module")
def run(small_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a run of three checkpoints, whose weights are those of other seeds; the one of step 4 is damaged."""
    path = tmp_path_factory.mktemp("runs") / "run"
    config = small_config(small_store, checkpoint__keep=9, batch={"size": 48, "micro": 48})
    for step in (2, 4, 6):
        weights = small_config(small_store, seed=step).initial_method().state_dict()
        save(State(weights, {}), path, step, config)
    (path / "checkpoints" / "step-00000004" / "model.safetensors").write_bytes(b"rubbish")
    return path


def test_the_curve_measures_each_checkpoint_and_names_a_damaged_one(
    run: Path, small_store: Path, caplog: pytest.LogCaptureFixture
) -> None:
    checkpoints, store, ids = locate_all(run), ImageStore(small_store), np.arange(3, 43)
    assert [one.step for one in checkpoints] == [2, 6]
    assert "step-00000004/model.safetensors differs from its checksum: passed over" in caplog.text
    rows = rank_curve(checkpoints, store, ids, views=3, seed=7)
    assert [row.step for row in rows] == [None, 2, 6]
    config = checkpoints[0].config
    for row, method in zip(rows, [config.initial_method(), *(load_method(one) for one in checkpoints)], strict=True):
        given = (method.backbone, store, ids, CPU, config)
        views = [extract_view(*given, seed=7, number=number) for number in range(3)]
        assert row.ranks == Ranks.of(extract(*given), torch.stack(views, dim=1))
        assert 0 < row.ranks.alignment < alignment(views[0], views[1].roll(1, 0)), "views of the same image pair up"
    assert len({row.ranks.rankme for row in rows}) == 3


def test_what_makes_measures_say_little_is_named(
    run: Path, small_store: Path, caplog: pytest.LogCaptureFixture
) -> None:
    [newest] = locate_all(run / "checkpoints" / "step-00000006")
    augment = newest.config.augment.model_copy(update={"only": []})
    still = newest._replace(config=newest.config.model_copy(update={"augment": augment}))
    [row, _] = rank_curve([still], ImageStore(small_store), np.arange(20), views=2, seed=0)
    assert row.ranks.alignment == 0
    assert "20 images of 32 features: ranks are those of the images: take more" in caplog.text
    assert "views by policy simclr-small are not random: align and LiDAR say nothing" in caplog.text


def test_rank_prints_a_table_draws_a_curve_and_has_json(
    command: Command, run: Path, small_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    mine = shutil.copytree(run, tmp_path / "run")
    done = command("evaluate", "rank", mine, "--store", small_store, "--images", "20", "--views", "2", "--json")
    assert done.code == 0, done
    assert [(row["step"], row["weights"]) for row in done.json["rows"]] == [
        *((None, "random"), (2, "trained"), (6, "trained"))
    ]
    assert (done.json["images"], done.json["views"], done.json["picture"]) == (20, 2, str(mine / "rank.png"))
    assert Image.open(mine / "rank.png").size == (4 * 4 * 110, 3 * 110)
    assert "20 of 51 images" in done.err
    assert max(map(len, done.err.splitlines()[-12:-1])) <= 80
    alone = command("evaluate", "rank", mine, "--store", small_store, "--checkpoint", "6", "--images", "20", "--json")
    assert [row["step"] for row in alone.json["rows"]] == [None, 6]
    assert alone.json["picture"] is None


def test_rank_needs_no_labels(command: Command, run: Path, tmp_path: Path) -> None:
    write_images(tmp_path / "images", num_classes=1, per_class=12)
    build(tmp_path / "images" / "class0", tmp_path / "store", workers=1)
    done = command("evaluate", "rank", run, "--store", tmp_path / "store", "--checkpoints", "newest", "--json")
    assert (done.code, done.json["images"]) == (0, 12)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--checkpoint", "last"), "--checkpoint last: it is all, newest, best, or a step such as 500"),
        (("--checkpoint", "3"), "has no checkpoint of step 3; the steps are: 6, 4, 2"),
        (("--out", "curve.jpg"), "--out curve.jpg: its name must end in .png"),
        (("--out", "nowhere/curve.png"), "--out nowhere/curve.png: there is no folder nowhere"),
        (("--images", "1"), "than or equal to 2"),
    ],
)
def test_rank_refuses_in_one_line(
    command: Command, run: Path, small_store: Path, options: tuple[str, ...], message: str
) -> None:
    done = command("evaluate", "rank", run, "--store", small_store, *options)
    assert done.code == 2
    assert message in done.err
    assert "Traceback" not in done.err


def test_rank_refuses_a_run_without_checkpoints_and_a_store_of_another_size(
    command: Command, run: Path, small_store: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "empty").mkdir()
    assert "holds no checkpoint" in command("evaluate", "rank", tmp_path / "empty", "--store", small_store).err
    write_images(tmp_path / "images", num_classes=2, per_class=3, size_px=8)
    build(tmp_path / "images", tmp_path / "store", workers=1)
    done = command("evaluate", "rank", run, "--store", tmp_path / "store", "--checkpoint", "newest")
    assert (done.code, "build it with --size-px 16" in done.err) == (2, True)
