"""A file that is cut behind its last pixel is read; one that lacks pixels is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ssl_dist import store
from ssl_dist.errors import Unreadable
from ssl_dist.store import ImageStore
from ssl_dist.store.decode import decode, is_plain_jpeg
from tests.store.hostile.images import chunk
from tests.store.test_readable import PIXELS, encoded, png_with

RANDOM = np.random.default_rng(1)
NOISE = RANDOM.integers(0, 256, (17, 23, 3), dtype=np.uint8)
RAMP = (np.add.outer(np.arange(24), np.arange(32))[..., None] * 3 + np.array([10, 40, 80])).astype(np.uint8)
IMAGES = {"noise": NOISE, "a ramp": RAMP, "black": np.zeros((16, 16, 3), np.uint8), "grey": NOISE[..., 0]}
OPTIONS = {
    "plain": {},
    "all colours": {"subsampling": 0},
    "coarse": {"quality": 20},
    "short codes": {"optimize": True},
    "markers between blocks": {"restart_marker_blocks": 1},
    "markers between rows": {"restart_marker_rows": 1},
}


def test_a_png_that_is_cut_behind_its_pixels_is_read_and_one_cut_before_is_not() -> None:
    whole = png_with(chunk(b"tEXt", b"name\0" + bytes(400)), behind=True)
    end = whole.index(b"tEXt")
    for cut in (4, 6, 200):
        assert np.array_equal(decode(whole[: end + cut], None), PIXELS)
    with pytest.raises(Unreadable, match="a PNG file that cannot be decoded: image file is truncated"):
        decode(whole[: end - 60], None)


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("image", IMAGES)
def test_of_all_cut_jpegs_only_those_with_all_pixels_are_read(image: str, options: str) -> None:
    whole = encoded("JPEG", IMAGES[image], **OPTIONS[options])
    pixels, read = decode(whole, None), []
    for cut in range(1, len(whole)):
        try:
            found = decode(whole[:-cut], None)
        except Unreadable:
            continue
        assert np.array_equal(found, pixels)
        read.append(cut)
    assert read == [1, 2]  # half of the end marker, or all of it


def test_a_cut_jpeg_that_is_decoded_at_a_fraction_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ssl_dist.store.decode.MAX_PIXELS", 64 * 64)
    whole = encoded("JPEG", np.kron(NOISE, np.ones((6, 6, 1), np.uint8)))
    assert np.array_equal(decode(whole[:-2], 16), decode(whole, 16))
    with pytest.raises(Unreadable, match="a JPEG file that cannot be decoded: image file is truncated"):
        decode(whole[:-40], 16)


def test_a_jpeg_of_several_passes_that_is_cut_is_refused() -> None:
    whole = encoded("JPEG", RAMP, progressive=True)
    for cut in (1, 2, 60):
        with pytest.raises(Unreadable, match="image file is truncated"):
            decode(whole[:-cut], None)


@pytest.mark.parametrize("encoding", ["raw", "jpeg"])
def test_a_store_has_the_pixels_of_a_jpeg_without_its_end(encoding: str, tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    whole = encoded("JPEG", RAMP[:, :24])
    assert is_plain_jpeg(whole, (24, 24))
    assert not is_plain_jpeg(whole[:-2], (24, 24))  # other readers refuse it
    (tmp_path / "source" / "a.jpg").write_bytes(whole[:-2])
    (tmp_path / "source" / "b.png").write_bytes(encoded("PNG", RAMP))
    store.build(tmp_path / "source", tmp_path / "store", encoding=encoding, size_px=24, workers=1)
    kept = ImageStore(tmp_path / "store").gather([0])[0].astype(int)
    assert np.abs(kept - decode(whole, 24)).mean() <= (2 if encoding == "jpeg" else 0)  # it is written again as JPEG
