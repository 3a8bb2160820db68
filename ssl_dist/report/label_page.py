"""Pages on which a person labels images: self-contained HTML that works without a network and saves a CSV file."""

from __future__ import annotations

import base64
import html
import io
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import xxhash

from ssl_dist.store import ImageStore

_TEMPLATE = Path(__file__).with_name("label_page.html")
_MOST_ON_A_PAGE = 200
_MOST_PX = 160  # side of a thumbnail
_SMALL_PX = 64  # images up to this size are shown enlarged, with hard edges
_QUALITY = 85  # of JPEG


def write_pages(
    folder: Path, title: str, keys: Sequence[str], images: ImageStore, ids: np.ndarray, command: str
) -> list[str]:
    """Write index.html, and page-2.html and so on where there are more than 200 images; return their names.

    Each class is a button, or where there are more than ten an entry that a field completes. Labels stay in the
    browser's storage, which all pages of a request share where the browser allows it, and are saved as labels.csv.

    Args:
        keys: of the images, ``[n]``.
        images: the store, whose classes are offered; where it names none, a person does.
        ids: sample ids of the images, int64 ``[n]``.
        command: what to do with the file, shown on the page.
    """
    parts = [slice(start, start + _MOST_ON_A_PAGE) for start in range(0, len(keys), _MOST_ON_A_PAGE)]
    names = ["index.html", *(f"page-{number}.html" for number in range(2, len(parts) + 1))]
    template = _TEMPLATE.read_text(encoding="utf-8")
    data = {
        "request": xxhash.xxh3_64_hexdigest("\n".join([title, *keys]).encode()),
        "classes": list(images.class_names),
        "total": len(keys),
        "command": command,
    }
    for page, part in zip(names, parts, strict=True):
        figures = "\n".join(map(_figure, keys[part], images.gather(ids[part])))
        text = template
        for mark, content in (
            ("TITLE", html.escape(title)),
            ("PAGES", _links(names, page)),
            ("DATA", json.dumps(data).replace("<", "\\u003c")),
            ("FIGURES", figures),  # last: nothing in a key is taken for a mark
        ):
            text = text.replace(f"<!--{mark}-->", content)
        (folder / page).write_text(text, encoding="utf-8")
    return names


def _links(names: Sequence[str], page: str) -> str:
    """Return links to all pages as HTML; nothing where there is one page."""
    here = {page: ' aria-current="page"'}
    links = [f'<a href="{name}"{here.get(name, "")}>{number}</a>' for number, name in enumerate(names, 1)]
    return "".join(links) if len(names) > 1 else ""


def _figure(key: str, pixels: np.ndarray) -> str:
    """Return an image with its key as HTML; the script of the page adds what labels it."""
    name, small = html.escape(key), ' class="small"' * is_small(pixels.shape)
    image = f'<img{small} src="data:image/jpeg;base64,{thumbnail(pixels)}" alt="" loading="lazy">'
    return f'<figure tabindex="0" data-key="{name}">{image}<figcaption>{name}</figcaption><div></div></figure>'


def is_small(shape: tuple[int, ...]) -> bool:
    """Return whether images of this shape, (H, W, 3), are shown enlarged, with hard edges."""
    return max(shape[:2]) <= _SMALL_PX


def thumbnail(pixels: np.ndarray) -> str:
    """Return an image, uint8 ``[H, W, 3]``, as the base64 text of a JPEG file of at most 160 px."""
    from PIL import Image

    image, content = Image.fromarray(pixels), io.BytesIO()
    image.thumbnail((_MOST_PX, _MOST_PX))
    image.save(content, "JPEG", quality=_QUALITY)
    return base64.b64encode(content.getvalue()).decode("ascii")
