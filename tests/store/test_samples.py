"""Images, classes and masks of one name: one image a sample, with its own class, or a refusal."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest

from ssl_dist.errors import SourceError
from ssl_dist.store.building.sources import list_source
from tests.store.sources import assert_holds, built, left_out, png, random_images, shard_of

IMAGE = png(random_images(1, 16)[0])
Make = Callable[[Path, Mapping[str, bytes]], Path]


def unpacked(path: Path, samples: Mapping[str, bytes]) -> Path:
    for name, content in samples.items():
        file = path.with_suffix("") / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
    return path.with_suffix("")


def labels_of(source: Path) -> dict[str, int]:
    return {member.key: member.label for member in list_source(source).members()}


def samples_of(*names: str, **classes: int) -> dict[str, bytes]:
    return dict.fromkeys(names, IMAGE) | {
        f"{name.replace('_', '.')}.cls": str(number).encode() for name, number in classes.items()
    }


@pytest.mark.parametrize("make", [shard_of, unpacked])
@pytest.mark.parametrize(
    ("files", "labels"),
    [
        (samples_of("i.v2.0.png", "i.v2.1.png", i_v2_0=0, i_v2_1=1), {"i.v2.0.png": 0, "i.v2.1.png": 1}),
        (samples_of("a.0.png", "a.1.png", a_1=1), {"a.0.png": -1, "a.1.png": 1}),
        (samples_of("a.b.png", "a.png", a_b=1, a=0), {"a.b.png": 1, "a.png": 0}),
        (samples_of("a.seg.png", a=2), {"a.seg.png": 2}),
        (samples_of("a.png", a_label=3), {"a.png": 3}),
        (samples_of("x.y/0.png", "x.y/1.png") | {"x.y/1.cls": b"4\n"}, {"x.y/0.png": -1, "x.y/1.png": 4}),
        (samples_of("a.png") | {"a.png.cls": b" 1 "}, {"a.png": 1}),
        (samples_of("a.png", "b.png", a=-1, b=0), {"a.png": -1, "b.png": 0}),
    ],
)
def test_each_image_has_its_own_class(
    make: Make, files: dict[str, bytes], labels: dict[str, int], tmp_path: Path
) -> None:
    assert labels_of(make(tmp_path / "d.tar", files)) == labels
    assert labels_of(make(tmp_path / "e.tar", dict(reversed(files.items())))) == labels


@pytest.mark.parametrize("make", [shard_of, unpacked])
@pytest.mark.parametrize(
    ("files", "message"),
    [
        (samples_of("a.png", a_coarse=0, a_fine=1), r"a\.png has several classes \(.*a\.coarse\.cls, .*a\.fine\.cls\)"),
        (samples_of("a.png") | {"a.cls": b"dog"}, r"a\.cls says 'dog', which is not the number of a class"),
        (
            samples_of("a.png") | {"a.cls": b"1" + 80 * b" " + b"2"},
            r"a\.cls says '1 *', which is not the number of a class",
        ),
    ],
)
def test_a_class_that_is_not_clear_is_refused(
    make: Make, files: dict[str, bytes], message: str, tmp_path: Path
) -> None:
    with pytest.raises(SourceError, match=message):
        list_source(make(tmp_path / "d.tar", files))


def test_two_classes_of_one_name_in_a_tar_are_refused(tmp_path: Path) -> None:
    whole = shard_of(tmp_path / "a.tar", samples_of("0.png", **{"0": 1})).read_bytes()
    more = shard_of(tmp_path / "b.tar", samples_of(**{"0": 2})).read_bytes()
    (tmp_path / "c.tar").write_bytes(whole.rstrip(b"\0") + bytes(-len(whole.rstrip(b"\0")) % 512) + more)
    with pytest.raises(SourceError, match=r"there are two files 0\.cls, with different classes"):
        list_source(tmp_path / "c.tar")


def test_classes_of_no_image_are_left_out_by_name(tmp_path: Path) -> None:
    listed = list_source(shard_of(tmp_path / "a.tar", samples_of("0.png", "1.png", **{"0": 1, "9": 2})))
    assert listed.left_out == (("9.cls", "the class of no image"),)
    assert [member.label for member in listed.members()] == [1, -1]


@pytest.mark.parametrize(
    ("files", "images"),
    [
        (samples_of("0.png", "0.seg.png", "1.seg.png", "1.png", **{"0": 0, "1": 1}), ["0.png", "1.png"]),
        (samples_of("0.mask.png", "0.jpg", "1.jpg", "1.mask.png"), ["0.jpg", "1.jpg"]),
        (samples_of("0.png", "0.jpg", "1.jpeg", "1.png"), ["0.jpg", "1.jpeg"]),
        (samples_of("a/0.png", "a/0.depth.left.png", "b/0.png"), ["a/0.png", "b/0.png"]),
        (samples_of("0.input.png", "0.target.png", **{"0": 3}), ["0.input.png"]),
        (samples_of("i.1.png", "i.2.png", "i.3.png"), ["i.1.png", "i.2.png", "i.3.png"]),
        (samples_of("0.gif", "0.png"), ["0.png"]),
        (samples_of("scan.001", "scan.002", "1.tif", "1.dat"), ["scan.001", "scan.002", "1.tif", "1.dat"]),
        (samples_of("0.jpg", "0_mask.png", "1-seg.png", "1.png", **{"0": 3}), ["0.jpg", "1.png"]),
        (samples_of("0", "0.jpg", "1", "1.seg.png", **{"1": 4}), ["0.jpg", "1"]),
        (samples_of("a.b/0", "a.b/0.mask.png", "a.b/1.jpg_large"), ["a.b/0", "a.b/1.jpg_large"]),
    ],
)
def test_a_sample_is_one_image_and_the_others_are_named(
    files: dict[str, bytes], images: list[str], tmp_path: Path
) -> None:
    listed = list_source(shard_of(tmp_path / "a.tar", files))
    assert [member.key for member in listed.members()] == images
    others = sorted(name for name in files if name not in images and not name.endswith(".cls"))
    assert sorted(left_out(listed)) == others
    assert all(reason.startswith("beside the image of its sample: ") for _, reason in listed.left_out)


def test_pictures_of_a_folder_are_samples_only_where_classes_say_so(tmp_path: Path) -> None:
    names = ["photo.png", "photo.1.png", "photo.jpg"]
    assert sorted(labels_of(unpacked(tmp_path / "a", samples_of(*names)))) == sorted(names)
    assert labels_of(unpacked(tmp_path / "b", samples_of("0.png", "0.seg.png", **{"0": 1}))) == {"0.png": 1}


@pytest.mark.parametrize(
    ("names", "images"),
    [
        (["0.jpg", "0_mask.png"], ["0.jpg"]),
        (["a/0.png", "a/0.seg.png", "b/0_GT.png"], ["a/0.png", "b/0_GT.png"]),
        (["0-label.bmp", "0.webp", "0.png"], ["0.png", "0.webp"]),
        (["mask.png", "_mask.png", "landmask.png", "land.png"], ["_mask.png", "land.png", "landmask.png", "mask.png"]),
    ],
)
def test_masks_beside_pictures_are_left_out_by_name(names: list[str], images: list[str], tmp_path: Path) -> None:
    listed = list_source(unpacked(tmp_path / "a", samples_of(*names)))
    assert sorted(member.key for member in listed.members()) == images
    assert sorted(left_out(listed)) == sorted(set(names) - set(images))


def test_folders_that_a_pattern_names_keep_their_own_classes(tmp_path: Path) -> None:
    images = random_images(2, 16)
    for number, name in enumerate("ab"):
        unpacked(tmp_path / name, {"0.png": png(images[number]), "0.cls": str(1 - number).encode()})
    assert_holds(built(f"{tmp_path}/{{a,b}}/*", tmp_path / "s"), np.stack(list(images)), [1, 0])
