"""Damaged shards: flipped bits, cuts and torn writes are named by shard, batch and rows, and never read as images."""

from __future__ import annotations

import json
import logging
import mmap
import shutil
from pathlib import Path

import numpy as np
import pytest

from ssl_dist import store
from ssl_dist.collectives import World
from ssl_dist.data import SamplePlan, resolve
from ssl_dist.data.batches import Batches
from ssl_dist.errors import StoreDamaged, StoreError
from ssl_dist.evaluate.probe import Probe
from ssl_dist.store import ImageStore, image_store
from ssl_dist.store.building import builder
from ssl_dist.store.schema import NO_BATCH
from ssl_dist.store.shard_reader import ShardReader
from tests.helpers import small_config

SECTOR = 512  # bytes that a disk writes as a unit


@pytest.fixture(scope="module", params=["raw", "jpeg"])
def many_batches(request: pytest.FixtureRequest, image_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build a store of 51 images in three shards, of five record batches or fewer."""
    path: Path = tmp_path_factory.mktemp("stores") / request.param
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(builder, "SHARD_IMAGES", 20)
        patch.setattr(builder, "BATCH_ROWS", 4)
        store.build(image_folder, path, encoding=request.param, workers=1)
    return path


def damaged(whole: bytes, random: np.random.Generator) -> bytes:
    """Return a copy with a flipped bit, cut off, or with sectors of zeros or of random bytes."""
    torn, kind = bytearray(whole), random.integers(4)
    place = int(random.integers(len(whole)))
    if kind == 0:
        torn[place] ^= 1 << int(random.integers(8))
    elif kind == 1:
        del torn[place:]
    else:
        start, stop = (np.array([place, place + random.integers(1, 4 * SECTOR)]) // SECTOR * SECTOR).tolist()
        part = slice(start, max(stop, start + SECTOR))
        size = len(torn[part])
        torn[part] = bytes(size) if kind == 2 else random.bytes(size)
    return bytes(torn)


def differing_rows(before: bytes, after: bytes, path: Path, name: str) -> dict[int, tuple[int, int]]:
    """Return the record batches in which two versions of a shard differ, with their sample ids."""
    first, found = 0, {}
    for entry in json.loads((path / "manifest.json").read_text())["shards"]:
        for number, batch in enumerate(entry["batches"]):
            part = slice(batch["offset"], batch["offset"] + batch["length"])
            if entry["file"] == name and before[part] != after[part]:
                found[number] = (first, first + batch["rows"])
            first += batch["rows"]
    return found


def damage_and_look(path: Path, cases: int, seed: int) -> None:
    """Damage one shard in each case: the store must name exactly what differs, and read the rest as before."""
    random, original = np.random.default_rng(seed), ImageStore(path).gather(np.arange(51))
    for case in range(cases):
        file = path / f"shard-{random.integers(3):05d}.arrow"
        whole = file.read_bytes()
        torn = damaged(whole, random)
        if torn == whole:  # zeros replaced zeros
            continue
        file.write_bytes(torn)
        rows = differing_rows(whole, torn, path, file.name)
        opened = ImageStore(path)
        expected = [(file.name, number, at) for number, at in rows.items()] or [(file.name, NO_BATCH, (0, 0))]
        assert opened.verify() == expected, case
        lost = np.zeros(51, dtype=bool)
        for number, (start, stop) in rows.items():
            lost[start:stop] = True
            with pytest.raises(
                StoreDamaged, match=rf"{file.name}: record batch {number} \(samples {start}\.\.{stop - 1}\)"
            ):
                opened.gather(np.array([start]))
        assert np.array_equal(opened.intact(np.arange(51)), ~lost)
        left = np.flatnonzero(~lost)
        assert np.array_equal(opened.gather(left), original[left])
        with pytest.raises(StoreDamaged, match=f"{len(expected)} damaged record batches"):
            ImageStore(path, verify="full")
        file.write_bytes(whole)


def test_damage_is_named_and_never_read(many_batches: Path, tmp_path: Path) -> None:
    damage_and_look(Path(shutil.copytree(many_batches, tmp_path / "s")), 150, seed=0)


@pytest.mark.slow
def test_ten_thousand_damages_are_named_and_never_read(many_batches: Path, tmp_path: Path) -> None:
    """Try five thousand for each encoding."""
    damage_and_look(Path(shutil.copytree(many_batches, tmp_path / "s")), 5000, seed=1)


def test_a_damaged_manifest_is_refused(many_batches: Path, tmp_path: Path) -> None:
    path = Path(shutil.copytree(many_batches, tmp_path / "s"))
    whole, random = (path / "manifest.json").read_bytes(), np.random.default_rng(0)
    for _ in range(150):
        torn = damaged(whole, random)
        (path / "manifest.json").write_bytes(torn)
        if json_of(torn) == json_of(whole):  # only white space differs
            continue
        with pytest.raises(StoreError, match=r"manifest\.json cannot be read"):
            ImageStore(path)


def json_of(content: bytes) -> object:
    try:
        return json.loads(content)
    except ValueError:
        return None


def test_a_shard_cut_while_it_is_open_does_not_kill_the_process(many_batches: Path, tmp_path: Path) -> None:
    path = Path(shutil.copytree(many_batches, tmp_path / "s"))
    opened = ImageStore(path)
    opened.gather(np.arange(51))
    with (path / "shard-00001.arrow").open("r+b") as file:
        file.truncate(mmap.PAGESIZE)
    with pytest.raises(StoreDamaged, match=r"shard-00001\.arrow has been cut"):
        opened.gather(np.arange(51))


def test_a_large_store_reads_each_record_batch_once_for_labels_and_images(
    many_batches: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(image_store, "MAX_MAPPED_BYTES", 5000)
    opened, message, asked = ImageStore(many_batches), ShardReader.read_message, list[tuple[str, int]]()

    def counted(self: ShardReader, index: int) -> np.ndarray:
        asked.append((self.path, index))
        return message(self, index)

    monkeypatch.setattr(ShardReader, "read_message", counted)
    assert len(opened.labels) == len(opened.gather(np.arange(51))) == 51
    assert len(asked) == len(set(asked)) > 3


def test_a_manifest_that_promises_more_than_a_file_has_allocates_nothing(
    many_batches: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = Path(shutil.copytree(many_batches, tmp_path / "s"))
    manifest = json.loads((path / "manifest.json").read_text()) | {"xxh3": None}
    shard = manifest["shards"][1]
    shard["bytes"], number = 1 << 60, len(shard["batches"]) - 1
    shard["batches"][number]["length"] = (1 << 60) - shard["batches"][number]["offset"]
    (path / "manifest.json").write_text(json.dumps(manifest))
    monkeypatch.setattr(image_store, "MAX_MAPPED_BYTES", 5000)
    opened = ImageStore(path)
    [found] = opened.verify()
    assert found[:2] == ("shard-00001.arrow", number)
    with pytest.raises(StoreDamaged, match=rf"shard-00001\.arrow: record batch {number}"):
        opened.gather(np.arange(*found.rows))


def test_a_store_that_does_not_stay_mapped_reads_the_same(
    many_batches: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = np.random.default_rng(0).integers(0, 51, 200)
    expected, path = ImageStore(many_batches).gather(ids), Path(shutil.copytree(many_batches, tmp_path / "s"))
    monkeypatch.setattr(image_store, "MAX_MAPPED_BYTES", 5000)
    opened = ImageStore(path)
    assert np.array_equal(opened.gather(ids), expected)
    assert opened.verify() == []
    assert np.array_equal(opened.labels, ImageStore(many_batches).labels)
    assert len(list(opened.rows())) == 51
    assert str(path) not in Path("/proc/self/maps").read_text(), "no page of the store counts as this process' memory"
    with (path / "shard-00001.arrow").open("r+b") as file:
        file.truncate(100)
    with pytest.raises(StoreDamaged, match=r"shard-00001\.arrow has been cut"):
        opened.gather(ids)


@pytest.fixture
def half_damaged(many_batches: Path, tmp_path: Path) -> Path:
    """Return a store with one bit flipped in the first record batch of each shard: 12 images, of all classes."""
    path = Path(shutil.copytree(many_batches, tmp_path / "s"))
    for entry in json.loads((path / "manifest.json").read_text())["shards"]:
        torn = bytearray((path / entry["file"]).read_bytes())
        torn[entry["batches"][0]["offset"] + entry["batches"][0]["length"] // 2] ^= 1
        (path / entry["file"]).write_bytes(torn)
    return path


LOST = np.array([*range(4), *range(20, 24), *range(40, 44)])


def test_a_run_stops_at_damage_unless_told_to_skip_it(half_damaged: Path) -> None:
    config = small_config(half_damaged, probe=None)
    opened = resolve(config).store
    with pytest.raises(StoreDamaged, match=r"record batch 0 \(samples .* data\.damaged=skip"):
        list(Batches(SamplePlan(config, opened), World(), 0, 10))


def test_other_images_replace_damaged_ones(
    half_damaged: Path, many_batches: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Replace damaged images only, in the same way for any part of the batch and at any step."""
    config = small_config(half_damaged, data__damaged="skip", probe=None)
    opened = resolve(config).store
    found, planned = SamplePlan(config, opened), SamplePlan(small_config(many_batches), ImageStore(many_batches))
    for step in (0, 1, 2, 3, 100):
        ids, epochs, _ = found.select(step, range(3))
        others, same_epochs, _ = planned.select(step, range(3))
        assert np.array_equal(epochs, same_epochs)
        assert not np.isin(ids, LOST).any()
        lost = np.isin(others, LOST)
        assert np.array_equal(ids[~lost], others[~lost])
        parts = [found.select(step, range(number, number + 1))[0] for number in range(3)]
        assert np.array_equal(np.concatenate(parts), ids)
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        batches = list(Batches(SamplePlan(config, ImageStore(half_damaged, damaged="skip")), World(), 0, 10))
    assert len(batches) == 10
    assert caplog.text.count("its images are left out") == 3
    assert "shard-00001.arrow: record batch 0 (samples 20..23)" in caplog.text


def test_damaged_images_have_no_label_and_are_not_in_a_probe(half_damaged: Path, many_batches: Path) -> None:
    opened = ImageStore(half_damaged, damaged="skip")
    expected = ImageStore(many_batches).labels.copy()
    expected[LOST] = -1
    assert np.array_equal(opened.labels, expected)
    for kind in ("knn", "rankme"):
        config = small_config(half_damaged, data__damaged="skip", probe__kind=kind)
        probe = Probe(config, opened)
        assert not np.isin(probe.ids, LOST).any()
        assert len(probe.ids) == 51 - len(LOST)
    with pytest.raises(StoreDamaged):
        _ = ImageStore(half_damaged).labels


def test_labels_of_a_file_do_not_bring_damaged_images_back(half_damaged: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "labels.npy", np.arange(51) % 3)
    supervised = {"name": "supervised", "num_classes": 3}
    given = {"data__label_file": str(tmp_path / "labels.npy"), "data__damaged": "skip", "probe": None}
    config = small_config(half_damaged, method=supervised, augment={"recipe": "weak"}, **given)
    found = resolve(config)
    assert found.config.facts.num_samples == 51 - len(LOST)
    seen = np.concatenate([found.sample_plan.select(step, range(3))[0] for step in range(12)])
    assert not np.isin(seen, LOST).any()


def test_a_store_with_no_intact_image_is_refused(half_damaged: Path) -> None:
    for file in half_damaged.glob("*.arrow"):
        file.write_bytes(bytes(file.stat().st_size))
    config = small_config(half_damaged, data__damaged="skip", probe=None)
    with pytest.raises(StoreDamaged, match="next to no image is intact"):
        resolve(config).sample_plan.select(0, range(3))
