"""Decoding one image file: the content decides its type, and its size in pixels bounds the time and memory."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from ssl_dist.errors import Unreadable
from ssl_dist.store.decode import decode
from tests.store.hostile import images

ROOT = Path(__file__).parent.parent.parent


@pytest.mark.parametrize("between", [b"", b"\xff\x01", b"\xff\xff\xff"])
def test_a_jpeg_of_too_many_scans_is_refused(between: bytes) -> None:
    """Each scan is a pass over all blocks: a file of 4 MB with 1000 scans over 64 million pixels took 8 s."""
    assert decode(images.jpeg_of_scans(32, 99, between), None).shape == (32, 32, 3)
    with pytest.raises(Unreadable, match="a JPEG of more than 100 scans"):
        decode(images.jpeg_of_scans(32, 100, between), None)


def test_scans_of_embedded_thumbnails_do_not_count() -> None:
    inside = images.jpeg_of_scans(16, 150)
    comment = b"\xff\xfe" + (len(inside) + 2).to_bytes(2, "big") + inside
    outside = images.jpeg_of_scans(32, 9)
    assert decode(outside[:2] + comment + outside[2:] + inside, None).shape == (32, 32, 3)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")  # pytest replaces decode's own filter
@pytest.mark.parametrize("size", [(60000, 60000), (2**31 - 1, 2**31 - 1), (10000, 9000)])
def test_a_too_large_size_is_refused_in_every_format(size: tuple[int, int]) -> None:
    for content in images.seeds():
        with pytest.raises(Unreadable):
            decode(images.resized(content, *size), None)


def test_a_too_long_side_is_refused() -> None:
    with pytest.raises(Unreadable, match="more than 65,536 pixels a side: 70000 x 1"):
        decode(images.png_of(70000, 1, 8, 2), None)


def test_colour_of_16_bits_keeps_the_upper_eight() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    assert np.array_equal(decode(images.sixteen_bits(pixels), None), pixels)


def test_no_warning_is_printed_for_refused_images() -> None:
    """Pillow would warn of huge sizes, transparency and EXIF tags, for every one of millions of images."""
    code = (
        "from tests.store.hostile import images\n"
        "from ssl_dist.store.decode import decode\n"
        "for content in [*images.seeds(), *images.warned_of()]:\n"
        "    try: decode(content, 24)\n"
        "    except Exception as error: assert type(error).__name__ == 'Unreadable', repr(error)\n"
    )
    ended = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "", "")
