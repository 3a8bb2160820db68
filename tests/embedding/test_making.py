"""Embeddings: the features of ``Encoder.embed`` for every kind of source, their neighbours and their map."""

from __future__ import annotations

import errno
import io
import multiprocessing
import re
import resource
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image
from pyarrow import fs, parquet
from torch import Tensor, nn

from ssl_dist import store as stores
from ssl_dist.checkpoint import Checkpoints, State
from ssl_dist.embedding import embed, images, making
from ssl_dist.embedding.images import open_images
from ssl_dist.encoder import Encoder
from ssl_dist.errors import RunError, SourceError, StoreError, UsageError
from ssl_dist.evaluate.over_training import drawn
from ssl_dist.export import export
from ssl_dist.store import ImageStore
from ssl_dist.uris import join_uri
from tests.command import Command
from tests.embedding.conftest import features_of, watched
from tests.helpers import resolved_config

pytestmark = pytest.mark.usefixtures("small_parts")
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["tests.embedding.killed", "ssl_dist.encoder"])


def test_a_store_has_the_features_of_the_library_bit_for_bit(
    run: Path, small_store: Path, features: Tensor, tmp_path: Path
) -> None:
    embed(run, small_store, tmp_path / "e.parquet")
    found, store = parquet.read_table(tmp_path / "e.parquet"), ImageStore(small_store)
    assert torch.equal(features_of(tmp_path / "e.parquet"), features)
    assert found["key"].to_pylist() == store.keys_at(np.arange(51))
    assert found["label"].to_pylist() == store.labels.tolist()
    assert found["class"].to_pylist() == [store.class_names[label] for label in store.labels]
    assert found.schema.names == ["key", "label", "class", "embedding"]
    assert found.schema.field("embedding").type == pa.list_(pa.float32(), features.shape[1])
    assert [found.schema.field(name).type for name in ("key", "label", "class")] == [
        pa.string(),
        pa.int32(),
        pa.string(),
    ]


def a_tar(folder: Path, tmp_path: Path) -> str:
    with tarfile.open(tmp_path / "images.tar", "w") as archive:
        archive.add(folder, "images")
    return str(tmp_path / "images.tar")


def a_table(folder: Path, tmp_path: Path) -> str:
    files = sorted(folder.rglob("*.png"))
    columns = {"image": [file.read_bytes() for file in files], "label": [int(file.parent.name[-1]) for file in files]}
    parquet.write_table(pa.table(columns), tmp_path / "images.parquet")
    return str(tmp_path / "images.parquet")


SOURCES: dict[str, Callable[[Path, Path], str]] = {
    "folder": lambda folder, _: str(folder),
    "pattern": lambda folder, _: f"{folder}/class{{0,1,2}}/*.png",
    "tar": a_tar,
    "table": a_table,
}


@pytest.mark.parametrize("kind", SOURCES)
def test_a_source_has_the_features_of_a_store_that_is_built_of_it(
    run: Path, image_folder: Path, features: Tensor, tmp_path: Path, kind: str
) -> None:
    source, out = SOURCES[kind](image_folder, tmp_path), tmp_path / "e.parquet"
    stores.build(source, tmp_path / "s", workers=1)
    embed(run, source, out)
    embed(run, tmp_path / "s", tmp_path / "of-store.parquet")
    assert parquet.read_table(out).equals(parquet.read_table(tmp_path / "of-store.parquet"))
    assert torch.equal(features_of(out).sort(0)[0], features.sort(0)[0]), "a tar may have another order"


def test_images_of_a_bucket_are_embedded_and_the_file_has_no_secret(
    run: Path, small_store: Path, image_folder: Path, bucket: str, features: Tensor, tmp_path: Path
) -> None:
    system, base = fs.FileSystem.from_uri(join_uri(bucket, "embedded"))
    fs.copy_files(str(small_store), f"{base}/store", destination_filesystem=system)
    fs.copy_files(str(image_folder), f"{base}/images", destination_filesystem=system)
    for number, where in enumerate(("embedded/store", "embedded/images", "embedded/images/*/*.png")):
        out = tmp_path / f"{number}.parquet"
        facts = embed(run, join_uri(bucket, where), out).facts
        assert torch.equal(features_of(out), features)
        assert facts.store == f"s3://bucket/runs/{where}"
        assert b"secret" not in out.read_bytes()


def test_a_run_may_be_a_checkpoint_or_an_exported_folder(
    run: Path, small_store: Path, features: Tensor, tmp_path: Path
) -> None:
    export(str(run), tmp_path / "exported", "safetensors")
    found = {}
    for where in (run, run / "checkpoints" / "step-00000002", tmp_path / "exported"):
        facts = embed(where, small_store, tmp_path / f"{where.name}.parquet").facts
        assert torch.equal(features_of(tmp_path / f"{where.name}.parquet"), features)
        found[where.name] = (facts.encoder, facts.step, facts.checkpoint)
    encoder, *_ = found[run.name]
    assert found == {
        run.name: (encoder, 2, 2),
        "step-00000002": (encoder, 2, "newest"),
        "exported": (encoder, 2, "newest"),
    }


def test_images_without_a_label_have_none(run: Path, image_folder: Path, tmp_path: Path) -> None:
    for number in range(3):
        shutil.copytree(image_folder / f"class{number}", tmp_path / "images", dirs_exist_ok=True)
    embed(run, tmp_path / "images", tmp_path / "e.parquet")
    found = parquet.read_table(tmp_path / "e.parquet")
    assert found.schema.names == ["key", "label", "embedding"]
    assert found["label"].null_count == len(found) == 17


def test_what_cannot_be_read_is_left_out_by_name_and_changes_no_other(
    run: Path, image_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder, out = tmp_path / "images", tmp_path / "e.parquet"
    shutil.copytree(image_folder, folder)
    embed(run, folder, tmp_path / "before.parquet")
    lost = ["class0/003.png", "class2/016.png", *(f"class1/{number:03d}.png" for number in range(2, 15))]
    for name in lost:
        (folder / name).write_bytes(b"no image")
    facts = embed(run, folder, out).facts
    kept, before = parquet.read_table(out), parquet.read_table(tmp_path / "before.parquet")
    rows = [number for number, key in enumerate(before["key"].to_pylist()) if key not in lost]
    assert kept.equals(before.take(rows)), "also a part without any image"
    assert (facts.num_images, facts.left_out) == (36, 15)
    named = Path(f"{out}-left-out.txt").read_text().splitlines()
    assert sorted(line.partition(": ")[0] for line in named) == sorted(lost)
    assert "left out 15" in caplog.text


def test_a_source_without_a_readable_image_is_refused(run: Path, tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    for number in range(12):
        (tmp_path / "images" / f"{number}.png").write_bytes(b"no image")
    with pytest.raises(SourceError, match="none of its 12 image files could be read"):
        embed(run, tmp_path / "images", tmp_path / "e.parquet")
    assert not (tmp_path / "e.parquet").exists()


def test_large_images_make_small_parts_of_whole_passes(
    image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(images, "PART_BYTES", 1)
    parts = list(open_images(a_tar(image_folder, tmp_path)).parts(8, 4))
    assert [len(part) for part in parts] == [4] * 12 + [3]


def test_neighbours_are_those_of_float64_arithmetic(
    run: Path, image_folder: Path, features: Tensor, tmp_path: Path
) -> None:
    folder = tmp_path / "images"
    shutil.copytree(image_folder, folder)
    shutil.copy(folder / "class0" / "000.png", folder / "class2" / "equal.png")
    embed(run, folder, tmp_path / "e.parquet", num_neighbours=6)
    table = parquet.read_table(tmp_path / "e.parquet")
    rows = nn.functional.normalize(features_of(tmp_path / "e.parquet").double(), dim=1)
    similarity = (rows @ rows.T).fill_diagonal_(-torch.inf)
    wanted, order = similarity.topk(6, dim=1)
    keys = table["key"].to_pylist()
    found = np.array(table["similarities"].to_pylist())
    np.testing.assert_allclose(found, wanted.numpy(), rtol=0, atol=1e-7)  # they are kept as float32
    exact = [[keys[row] for row in some] for some in order.tolist()]
    equal = {"class0/000.png", "class2/equal.png"}  # these two are as near to any other image
    for number, (ours, theirs) in enumerate(zip(table["neighbours"].to_pylist(), exact, strict=True)):
        if not equal & {keys[number], *ours, *theirs}:
            assert ours == theirs
    assert table["neighbours"][0].as_py()[0] == "class2/equal.png"


def test_there_are_no_more_neighbours_than_other_images(run: Path, image_folder: Path, tmp_path: Path) -> None:
    embed(run, f"{image_folder}/class0/00[0-3].png", tmp_path / "e.parquet", num_neighbours=9)
    table = parquet.read_table(tmp_path / "e.parquet")
    for key, others in zip(table["key"].to_pylist(), table["neighbours"].to_pylist(), strict=True):
        assert sorted([key, *others]) == table["key"].to_pylist()
    embed(run, image_folder / "class0" / "000.png", tmp_path / "one.parquet", num_neighbours=2)
    assert parquet.read_table(tmp_path / "one.parquet")["neighbours"].to_pylist() == [[]]


def test_a_map_places_the_other_images_beside_their_nearest(
    run: Path, small_store: Path, features: Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ssl_dist.embedding.plane.MAP_IMAGES", 20)
    facts = embed(run, small_store, tmp_path / "e.parquet", with_map=True).facts
    table = parquet.read_table(tmp_path / "e.parquet")
    places = np.stack([table["x"], table["y"]], axis=1)
    fitted = drawn(20, 51, 0)
    rows = nn.functional.normalize(features.double(), dim=1)
    nearest = (rows @ rows[fitted].T).topk(3, dim=1)[1].numpy()
    middle = places[fitted][nearest].astype(np.float64).mean(1)
    others = np.setdiff1d(np.arange(51), fitted)
    np.testing.assert_array_equal(places[others], middle[others].astype(np.float32))
    assert len(np.unique(places[fitted], axis=0)) == 20
    assert facts.map is not None
    assert facts.map.startswith("t-SNE of 20 of 51 images")


def test_a_map_of_equal_images_is_refused_after_their_features_are_kept(run: Path, tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    for number in range(3):
        Image.new("RGB", (16, 16), "red").save(tmp_path / "images" / f"{number}.png")
    with pytest.raises(RunError, match="all images have the same features"):
        embed(run, tmp_path / "images", tmp_path / "e.parquet", with_map=True)
    ran = list[str]()
    embed(run, tmp_path / "images", tmp_path / "e.parquet", executor=watched(ran))
    assert ran == []


class _Wide(nn.Module):
    """4,096 features of an image, made of its pixels."""

    dim, normalisation = 4096, None

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.linspace(0, 1, self.dim))

    def forward(self, pixels: Tensor) -> Tensor:
        return (pixels.flatten(1).sum(1, keepdim=True) * self.scale).sin()


def _peak_bytes(store: Path, out: Path, sender: Any) -> None:
    torch.set_num_threads(1)
    making.load_encoder = lambda *_: Encoder(_Wide(), 8, 64)  # type: ignore[assignment, arg-type, misc]
    making.PART_ROWS, making.BLOCK_PARTS = 64, 2
    embed(out.parent, store, out)
    sender.send(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)


def test_memory_does_not_grow_with_the_number_of_images(tmp_path: Path) -> None:
    """4,608 images more have 75 MB of features; the allocator's peaks differ by about 15 MB from run to run."""
    (tmp_path / "step-1").mkdir()
    file, peaks = io.BytesIO(), {}
    Image.new("RGB", (8, 8), "red").save(file, "BMP")
    for number in (512, 5120):
        images_ = pa.table({"image": [file.getvalue()] * number})
        parquet.write_table(images_, tmp_path / f"{number}.parquet", use_dictionary=False)
        receiver, sender = PROCESSES.Pipe(duplex=False)
        arguments = (tmp_path / f"{number}.parquet", tmp_path / "step-1" / f"{number}.parquet", sender)
        process = PROCESSES.Process(target=_peak_bytes, args=arguments)
        process.start()
        sender.close()  # so that an error there ends the wait
        peaks[number] = receiver.recv()
        process.join()
    assert peaks[5120] - peaks[512] < 35e6


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("{run} {store} {new}/e.csv", "OUT .*e.csv: its name must end in .parquet"),
        ("{run} {store} {new}/no/e.parquet", "there is no folder"),
        ("{run} {store} {new}/folder.parquet", "it is a folder"),
        ("{new}/none {store} {new}/e.parquet", "none is not a run directory"),
        ("{new} {store} {new}/e.parquet", "checkpoint"),
        ("{run} {new}/none {new}/e.parquet", "none: no such file or folder"),
        ("{run} {new}/empty {new}/e.parquet", "no image file"),
        ("{run} {store} {new}/e.parquet --checkpoint 7", "step 7|no checkpoint"),
        ("{run} {store} {new}/e.parquet --checkpoint last", "newest, best, or a step"),
        ("{run} {store} {new}/e.parquet --neighbours -1", "greater than or equal to 0"),
    ],
)
def test_a_mistake_is_one_line_and_leaves_nothing(
    command: Command, run: Path, small_store: Path, tmp_path: Path, arguments: str, message: str
) -> None:
    (tmp_path / "folder.parquet").mkdir()
    (tmp_path / "empty").mkdir()
    before = sorted(tmp_path.rglob("*"))
    done = command("embed", *arguments.format(run=run, store=small_store, new=tmp_path).split())
    assert done.code == 2
    assert re.search(message, done.err), done.err
    assert "Traceback" not in done.err
    assert sorted(tmp_path.rglob("*")) == before


def test_features_that_are_not_finite_are_refused(small_store: Path, tmp_path: Path) -> None:
    config = resolved_config(small_store)
    state = config.initial_method().state_dict()
    name = next(name for name in state if name.startswith("backbone.") and name.endswith("weight"))
    state[name] = torch.full_like(state[name], torch.nan)
    Checkpoints(tmp_path / "run").save(1, config, State(state, {}))
    with pytest.raises(RunError, match="not finite numbers: take an earlier --checkpoint"):
        embed(tmp_path / "run", small_store, tmp_path / "e.parquet")


def test_a_folder_that_is_no_store_any_more_is_a_usage_error(run: Path, small_store: Path, tmp_path: Path) -> None:
    shutil.copytree(small_store, tmp_path / "s")
    (tmp_path / "s" / "manifest.json").write_text("{}")
    with pytest.raises(StoreError, match=r"manifest.json cannot be read"):
        embed(run, tmp_path / "s", tmp_path / "e.parquet")
    (tmp_path / "s" / "manifest.json").unlink()
    with pytest.raises(UsageError, match="is a shard of a store"):
        embed(run, tmp_path / "s", tmp_path / "e.parquet")


def test_a_disk_without_room_is_one_line(
    run: Path, small_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "part")

    monkeypatch.setattr("ssl_dist.embedding.tasks.write_part", full)
    with pytest.raises(RunError, match=r"part cannot be written \(No space left on device\)"):
        embed(run, small_store, tmp_path / "e.parquet")


def test_the_mirror_of_a_run_is_enough(
    run: Path, small_store: Path, features: Tensor, bucket: str, tmp_path: Path
) -> None:
    uri = join_uri(bucket, "mirrored")
    system, base = fs.FileSystem.from_uri(uri)
    fs.copy_files(str(run / "checkpoints"), f"{base}", destination_filesystem=system)
    facts = embed(join_uri(uri, "step-00000002"), small_store, tmp_path / "e.parquet").facts
    assert torch.equal(features_of(tmp_path / "e.parquet"), features)
    assert facts.run == "s3://bucket/runs/mirrored/step-00000002"
