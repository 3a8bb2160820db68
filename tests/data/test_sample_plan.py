"""The sample plan: seed and step alone decide the images of a step and the labels that the method sees."""

from __future__ import annotations

import io
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ssl_dist import store
from ssl_dist.collectives import World
from ssl_dist.config import RunConfig
from ssl_dist.data import SamplePlan, permutation, resolve
from ssl_dist.data.batches import Batches
from ssl_dist.data.stratified_order import StratifiedOrder
from ssl_dist.errors import ConfigError, StoreError
from ssl_dist.evaluate.probe import Probe
from ssl_dist.store import ImageStore
from ssl_dist.store.building import builder
from tests.helpers import resolved_config, small_config

FIXMATCH = {"name": "fixmatch", "num_classes": 3}
SUPERVISED = {"name": "supervised", "num_classes": 3}
SOME = {"method": FIXMATCH, "augment": {"recipe": "weak-strong"}, "batch": {"size": 12, "micro": 6, "labelled": 4}}
ALL = {"method": SUPERVISED, "augment": {"recipe": "weak"}, "batch": {"size": 12, "micro": 4}}
HIDDEN = 40  # of the small store's 51 images: labels are known of 11


@pytest.fixture
def labels(small_store: Path) -> np.ndarray:
    """Hide most labels of the small store."""
    known = ImageStore(small_store).labels.copy()
    known[np.random.default_rng(0).permutation(len(known))[:HIDDEN]] = -1
    return known


@pytest.fixture
def label_file(labels: np.ndarray, tmp_path: Path) -> str:
    np.save(tmp_path / "labels.npy", labels)
    return str(tmp_path / "labels.npy")


def sample_plan(config: RunConfig) -> SamplePlan:
    return SamplePlan(config, ImageStore(config.data.store))


def whole_steps(config: RunConfig, steps: range) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return ids, epochs and labels ``[steps, micro-batches, m]``."""
    plan, sizes = sample_plan(config), config.batch
    found = [plan.select(step, range(sizes.num_micro)) for step in steps]
    ids, epochs, seen = (np.stack(part).reshape(-1, sizes.num_micro, sizes.micro) for part in zip(*found, strict=True))
    return ids, epochs, seen


def test_labelled_images_come_first_in_each_micro_batch(small_store: Path, labels: np.ndarray, label_file: str) -> None:
    ids, _, seen = whole_steps(small_config(small_store, data__label_file=label_file, **SOME), range(40))
    assert np.array_equal(seen[:, :, :2], labels[ids[:, :, :2]])
    assert (seen[:, :, :2] >= 0).all()
    assert (seen[:, :, 2:] == -1).all(), "the others' labels are hidden, also where there are some"
    assert (labels[ids[:, :, 2:]] >= 0).any()


@pytest.mark.parametrize(
    ("size", "micro"), [(64, 32), (96, 48), (192, 96), (672, 168)], ids=["1:1", "1:2", "1:5", "1:20"]
)
def test_thirty_two_labelled_images_stand_beside_any_number_of_others(
    small_store: Path, label_file: str, size: int, micro: int
) -> None:
    """Try the ratios that FixMatch's recipe names."""
    batch = {"size": size, "micro": micro, "labelled": 32}
    config = small_config(small_store, data__label_file=label_file, **{**SOME, "batch": batch})
    _, _, seen = whole_steps(config, range(3))
    assert ((seen >= 0).sum(axis=(1, 2)) == 32).all()
    assert ((seen < 0).sum(axis=(1, 2)) == size - 32).all()


def test_each_stream_has_each_of_its_images_once_an_epoch(
    small_store: Path, labels: np.ndarray, label_file: str
) -> None:
    ids, epochs, _ = whole_steps(small_config(small_store, data__label_file=label_file, **SOME), range(51))
    streams = {"labelled": (slice(0, 2), np.flatnonzero(labels >= 0)), "others": (slice(2, 6), np.arange(51))}
    for mine, rows in streams.values():
        stream_ids, stream_epochs = ids[:, :, mine].ravel(), epochs[:, :, mine].ravel()
        assert (np.diff(stream_epochs) >= 0).all()
        for epoch in range(stream_epochs[-1]):
            assert sorted(stream_ids[stream_epochs == epoch]) == rows.tolist()
        assert stream_epochs[-1] >= 7
    first, second = (ids[:, :, :2].ravel()[epochs[:, :, :2].ravel() == epoch] for epoch in (0, 1))
    assert not np.array_equal(first, second)


@pytest.mark.parametrize("settings", [{}, SOME, ALL], ids=["none", "some", "all"])
def test_any_micro_batches_of_any_step_are_computed_alone(
    small_store: Path, label_file: str, settings: dict[str, Any]
) -> None:
    config = small_config(small_store, data__label_file=label_file, **settings)
    whole = [part.reshape(-1) for part in whole_steps(config, range(7, 8))]
    for size in (1, 2, 3, 4):
        shares = [World(rank, size).share(config.batch.num_micro) for rank in range(size)]
        parts = zip(*(sample_plan(config).select(7, share) for share in shares), strict=True)
        for part, expected in zip(parts, whole, strict=True):
            joined = np.concatenate(part)
            assert joined.dtype == np.int64
            assert np.array_equal(joined, expected)


def test_a_method_that_needs_no_labels_gets_none(small_store: Path) -> None:
    config = small_config(small_store)
    ids, epochs, seen = whole_steps(config, range(5))
    expected = permutation.stream(config.seed, 0, 60, 51)
    assert np.array_equal(ids.ravel(), expected[0])
    assert np.array_equal(epochs.ravel(), expected[1])
    assert (seen == -1).all()


def test_a_method_that_needs_all_labels_gets_labelled_images_only(
    small_store: Path, labels: np.ndarray, label_file: str
) -> None:
    config = small_config(small_store, data__label_file=label_file, **ALL)
    ids, epochs, seen = whole_steps(config, range(11))
    assert sample_plan(config).num_samples == 11
    assert np.array_equal(seen, labels[ids])
    assert sorted(ids.ravel()[epochs.ravel() == 3].tolist()) == np.flatnonzero(labels >= 0).tolist()
    assert sample_plan(small_config(small_store, **ALL)).num_samples == 51, "the store's own labels, without a file"
    assert sample_plan(small_config(small_store, data__label_file=label_file, **SOME)).num_samples == 51


def test_an_epoch_of_stratified_batches_has_the_images_with_a_label(small_store: Path, label_file: str) -> None:
    config = small_config(small_store, data__label_file=label_file, data__stratified=True)
    ids, _, seen = whole_steps(config, range(40))
    assert sample_plan(config).num_samples == len(np.unique(ids)) == 11
    assert (seen == -1).all(), "images are drawn by label, and the method sees none"
    assert sample_plan(small_config(small_store, data__stratified=True)).num_samples == 51


def test_batches_have_the_labels_of_the_plan(small_store: Path, label_file: str) -> None:
    config = small_config(small_store, data__label_file=label_file, **SOME)
    store = ImageStore(small_store)
    batch = Batches(SamplePlan(config, store), World(0, 2), 0, 9).fetch(4)
    ids, _, seen = sample_plan(config).select(4, batch.micro_batches)
    assert torch.equal(batch.labels, torch.from_numpy(seen))
    assert np.array_equal(batch.images.numpy(), store.gather(ids))
    assert torch.equal(batch.views(0, torch.device("cpu")).labels, batch.labels[:6])
    nothing = Batches(SamplePlan(config, store), World(2, 3), 0, 9).fetch(4).views(0, torch.device("cpu"))
    assert (nothing.labels == -1).all()
    assert batch.progress.epoch == 4 * 8 / 51, "an epoch is of the others"


def test_noise_depends_on_the_micro_batch_and_not_on_its_worker(small_store: Path) -> None:
    config, store = small_config(small_store), ImageStore(small_store)
    alone = Batches(SamplePlan(config, store), World(), 0, 9).fetch(4)
    second = Batches(SamplePlan(config, store), World(1, 2), 0, 9).fetch(4)
    seeds = [alone.noise_seed(slot) for slot in range(3)]
    assert len(set(seeds)) == 3
    assert second.noise_seed(0) == seeds[second.micro_batches[0]]
    assert Batches(SamplePlan(config, store), World(), 0, 9).fetch(5).noise_seed(0) not in seeds


def test_each_block_has_one_sample_of_each_label() -> None:
    labels = np.array([5, 0, 2, -1, 0, 0, 2, 5, -1, 0, 5, 0, 0])
    stream = StratifiedOrder(3, labels).stream
    ids, epochs = stream(0, 90)
    assert ids.dtype == epochs.dtype == np.int64
    assert np.array_equal(np.sort(labels[ids].reshape(30, 3)), np.tile([0, 2, 5], (30, 1)))
    for label, count in ((0, 6), (2, 2), (5, 3)):
        mine = labels[ids] == label
        for epoch in range(30 // count):
            assert sorted(ids[mine & (epochs == epoch)]) == np.flatnonzero(labels == label).tolist()
    orders = {tuple(block) for block in labels[ids].reshape(30, 3).tolist()}
    assert len(orders) == 6, "the order of labels in a block is random"
    for start, stop in ((0, 0), (1, 2), (4, 11), (50, 90)):
        part = stream(start, stop)
        assert np.array_equal(part[0], ids[start:stop])
        assert np.array_equal(part[1], epochs[start:stop])
    assert not np.array_equal(StratifiedOrder(4, labels).stream(0, 90)[0], ids)


@pytest.mark.parametrize(
    ("settings", "spread"),
    [
        ({"batch": {"size": 12, "micro": 4}}, 0),
        ({"batch": {"size": 8, "micro": 4}}, 2),  # of three labels two images, and two more
        (ALL, 0),
        ({**SOME, "batch": {"size": 18, "micro": 6, "labelled": 6}}, 0),
    ],
)
def test_stratified_batches_have_as_many_of_each_label(
    small_store: Path, labels: np.ndarray, label_file: str, settings: dict[str, Any], spread: int
) -> None:
    config = small_config(small_store, data__label_file=label_file, data__stratified=True, **settings)
    ids, _, seen = whole_steps(config, range(30))
    of_labels = config.num_labelled * config.batch.micro // config.batch.size or config.batch.micro
    for step in ids[:, :, :of_labels]:
        counts = Counter(labels[step].ravel().tolist())
        assert set(counts) == {0, 1, 2}
        assert max(counts.values()) - min(counts.values()) <= spread
    assert (seen[:, :, :of_labels] >= 0).all() == bool(config.num_labelled)
    if of_labels < config.batch.micro:
        assert set(labels[ids[:, :, of_labels:]].ravel().tolist()) == {-1, 0, 1, 2}, "the others are of all images"


def archive(array: np.ndarray) -> bytes:
    """Make a .npz."""
    content = io.BytesIO()
    np.savez(content, array)
    return content.getvalue()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot be read"),
        (b"no array", "cannot be read"),
        (b"", "cannot be read"),
        (archive(np.arange(51)), "cannot be read"),
        (np.array([{}] * 51), "cannot be read"),  # an array of objects, which would have to be unpickled
        (np.zeros(50, np.int64), r"int64 \(50,\): the store has 51 images"),
        (np.zeros((51, 1), np.int64), r"int64 \(51, 1\): the store has 51 images"),
        (np.zeros(51), r"float64 \(51,\): .* each needs a whole number, -1 for none"),
        (np.full(51, 2**31), r"has a label 2147483648, of image 0: it is -1 for none, .*, or 0 to 2147483647"),
        (np.full(51, 2**63, np.uint64), "has a label 9223372036854775808, of image 0"),
        (np.array([0, 1, -3] * 17), "has a label -3, of image 2"),
        # what a NaN of a float column becomes as int64, and what becomes class 0 as int32
        (np.array([0, 1, -(2**63)] * 17), "has a label -9223372036854775808, of image 2"),
        (np.full(51, -1), r"method supervised needs labels, and .*labels\.npy has none"),
        (np.arange(51), r"method\.num_classes 3: there is a label 50, so it is 51 or more"),
    ],
)
def test_a_label_file_that_does_not_fit_is_refused(
    small_store: Path, tmp_path: Path, content: Any, message: str
) -> None:
    file = tmp_path / "labels.npy"
    if isinstance(content, np.ndarray):
        np.save(file, content)
    elif content is not None:
        file.write_bytes(content)
    with pytest.raises(ConfigError, match=message):
        sample_plan(small_config(small_store, data__label_file=str(file), **ALL))


def test_stratified_batches_without_labels_are_refused(small_store: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "labels.npy", np.full(51, -1))
    settings = {"data__label_file": str(tmp_path / "labels.npy"), "data__stratified": True}
    with pytest.raises(ConfigError, match=r"data\.stratified needs labels, and .*labels\.npy has none"):
        sample_plan(small_config(small_store, **settings))


def test_a_run_resumes_with_the_labels_it_began_with_only(
    small_store: Path, label_file: str, labels: np.ndarray
) -> None:
    config = small_config(small_store, data__label_file=label_file, **ALL)
    began = resolve(config).config
    assert (began.facts.num_images, began.facts.num_samples) == (51, 11)
    assert began.data.label_file == label_file
    began.expect_same_data(resolve(config).config)
    np.save(label_file, np.where(labels >= 0, 2 - labels, -1))
    with pytest.raises(StoreError, match=r"label_digest .*: set data\.label_file to what it was"):
        began.expect_same_data(resolve(config).config)


def test_a_run_begun_with_the_stores_labels_does_not_resume_with_a_files(small_store: Path, label_file: str) -> None:
    began = resolved_config(small_store)
    found = resolved_config(small_store, data__label_file=label_file)
    with pytest.raises(StoreError, match=r"where the run began with None: set data\.label_file to what it was"):
        began.expect_same_data(found)


@pytest.fixture(scope="module")
def shards(image_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the small store with six shards: five of nine images, one of six."""
    path = tmp_path_factory.mktemp("stores") / "shards"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(builder, "SHARD_IMAGES", 9)
        store.build(image_folder, path, workers=1)
    return path


WINDOWS = {"data__order": "shards", "data__window": 18}


@pytest.mark.parametrize("settings", [{}, SOME, ALL], ids=["none", "some", "all"])
def test_steps_in_windows_announce_the_shards_that_they_need(
    shards: Path, label_file: str, settings: dict[str, Any]
) -> None:
    config = small_config(shards, data__label_file=label_file, **WINDOWS, **settings)
    plan, announced = sample_plan(config), set[int]()
    whole = [part.reshape(12, -1) for part in whole_steps(config, range(12))]
    for step in range(12):
        now, soon = plan.needed_shards(step)
        assert set(whole[0][step] // 9) <= set(now)
        assert not step or set(now) <= announced
        announced = {*now, *soon}
        for size in (1, 2, 3):
            shares = [World(rank, size).share(config.batch.num_micro) for rank in range(size)]
            parts = zip(*(sample_plan(config).select(step, share) for share in shares), strict=True)
            for part, expected in zip(parts, whole, strict=True):
                assert np.array_equal(np.concatenate(part), expected[step])
    full = sample_plan(small_config(shards, data__label_file=label_file, **settings))
    assert full.needed_shards(3) == (range(6), ())


def test_labels_in_windows_are_each_seen_once_an_epoch(shards: Path, labels: np.ndarray, label_file: str) -> None:
    ids, epochs, seen = whole_steps(small_config(shards, data__label_file=label_file, **WINDOWS, **SOME), range(51))
    mine = slice(0, 2)
    for epoch in range(7):
        of_epoch = ids[:, :, mine].ravel()[epochs[:, :, mine].ravel() == epoch]
        assert sorted(of_epoch) == np.flatnonzero(labels >= 0).tolist()
    assert np.array_equal(seen[:, :, mine], labels[ids[:, :, mine]])


def test_a_damaged_image_is_replaced_by_one_of_its_window(shards: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(shards, copy)
    batch = ImageStore(copy).manifest.shards[2].batches[0]
    content = bytearray((copy / "shard-00002.arrow").read_bytes())
    content[batch.offset + 200] ^= 1
    (copy / "shard-00002.arrow").write_bytes(content)
    halves = {**WINDOWS, "data__window": 27}
    whole = whole_steps(small_config(shards, **halves), range(12))[0].reshape(12, -1)
    config = small_config(copy, data__damaged="skip", **halves)
    ids = whole_steps(config, range(12))[0].reshape(12, -1)
    assert (whole // 9 == 2).any()
    assert not (ids // 9 == 2).any()
    assert np.array_equal(ids[whole // 9 != 2], whole[whole // 9 != 2])
    for step in range(12):
        assert set(ids[step] // 9) <= set(sample_plan(config).needed_shards(step).now)
    alone = small_config(copy, data__damaged="skip", **{**WINDOWS, "data__window": 9})
    assert not (whole_steps(alone, range(12))[0] // 9 == 2).any(), "a window of a damaged shard alone borrows"


def test_stratified_batches_in_windows_are_refused(shards: Path) -> None:
    with pytest.raises(ConfigError, match=r"data\.stratified with data\.order shards: .* set data\.order=full"):
        small_config(shards, data__stratified=True, **WINDOWS)


def test_a_run_in_windows_resumes_with_the_shards_it_began_with_only(shards: Path, small_store: Path) -> None:
    began = resolved_config(shards, **WINDOWS)
    began.expect_same_data(resolved_config(shards, **WINDOWS))
    with pytest.raises(StoreError, match=r"shards_digest .*: set data\.store to what it was"):
        began.expect_same_data(resolved_config(small_store, **WINDOWS))
    assert resolved_config(shards).facts.shards_digest is None, "a full order does not depend on it"


def test_a_probe_of_a_run_in_windows_reads_the_shards_of_one_window(shards: Path) -> None:
    probe = Probe(small_config(shards, probe={"bank": 10, "queries": 4}, **WINDOWS), ImageStore(shards))
    assert probe.num_bank == 10
    assert len(set(probe.ids)) == 14
    assert len(set(probe.ids // 9)) <= 3
    assert (np.diff(probe.ids[:10]) > 0).all(), "in the order of the store: each shard is needed once"


@pytest.fixture
def partly_used(labels: np.ndarray, tmp_path: Path) -> tuple[str, set[int]]:
    """Leave 20 of the images out, of which the labels had named some; return the file and the others."""
    out = np.random.default_rng(1).permutation(len(labels))[:20]
    assert (labels[out] >= 0).any()
    np.save(tmp_path / "partly.npy", np.where(np.isin(np.arange(len(labels)), out), -2, labels))
    return str(tmp_path / "partly.npy"), set(range(len(labels))) - set(out.tolist())


def test_images_that_are_left_out_are_never_seen(
    small_store: Path, labels: np.ndarray, partly_used: tuple[str, set[int]]
) -> None:
    """An epoch has every other image once, labelled ones also among those without a visible label."""
    file, used = partly_used
    config = resolved_config(small_store, data__label_file=file, **SOME)
    assert config.facts.num_samples == len(used) == 31
    ids, epochs, seen = whole_steps(config, range(31))
    hidden = seen < 0
    for epoch in range(31 * 8 // 31):
        assert sorted(ids[hidden][epochs[hidden] == epoch]) == sorted(used)
    assert set(ids[~hidden].tolist()) == {one for one in used if labels[one] >= 0}
    assert (seen[~hidden] == labels[ids[~hidden]]).all()
    everything = resolved_config(small_store, data__label_file=file, **ALL)
    assert everything.facts.num_samples == len({one for one in used if labels[one] >= 0})


@pytest.mark.parametrize("setting", [{"data__order": "shards"}, {"data__damaged": "skip"}])
def test_images_are_left_out_of_plain_orders_only(
    small_store: Path, partly_used: tuple[str, set[int]], setting: dict[str, Any]
) -> None:
    with pytest.raises(
        ConfigError, match=r"leaves images out \(-2\): that needs data\.order=full and data\.damaged=refuse"
    ):
        sample_plan(small_config(small_store, data__label_file=partly_used[0], **setting, **SOME))


def test_a_label_below_minus_two_is_refused(small_store: Path, labels: np.ndarray, tmp_path: Path) -> None:
    np.save(tmp_path / "wrong.npy", np.where(labels < 0, -3, labels))
    with pytest.raises(
        ConfigError, match=r"a label -3, of image \d+: it is -1 for none, -2 to leave the image out, or 0 to"
    ):
        sample_plan(small_config(small_store, data__label_file=str(tmp_path / "wrong.npy"), **SOME))
