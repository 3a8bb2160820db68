"""The page of a map holds all that it shows, whatever its images are called."""

from __future__ import annotations

import base64
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ssl_dist.errors import RunError
from ssl_dist.evaluate.maps import Groups, Panel
from ssl_dist.report.map_page import write_page
from ssl_dist.store import ImageStore, build
from tests.conftest import write_images

HOSTILE = "class0/</script><b>&amp;'\" __SHEET__ é.png"


class Page(HTMLParser):
    """Collects a page's elements, and the text in each kind of them."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements, self.texts, self._inside = list[tuple[str, dict[str, str | None]]](), dict[str, str](), ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self._inside = dict(attrs).get("id") or tag

    def handle_data(self, data: str) -> None:
        self.texts[self._inside] = self.texts.get(self._inside, "") + data

    @property
    def data(self) -> Any:
        return json.loads(self.texts["data"])

    def sheet(self) -> Image.Image:
        [source] = [attributes["src"] for tag, attributes in self.elements if tag == "img"]
        assert source is not None
        kind, _, content = source.partition(";base64,")
        assert kind == "data:image/jpeg"
        return Image.open(io.BytesIO(base64.b64decode(content)))


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> ImageStore:
    """Build a store of 14 images of 12 px, one of which has a name that is HTML."""
    folder = tmp_path_factory.mktemp("images")
    write_images(folder, num_classes=2, per_class=7, size_px=12)
    hostile = folder / HOSTILE
    hostile.parent.mkdir(parents=True)
    (folder / "class0" / "003.png").rename(hostile)
    build(folder, folder.parent / "store", workers=1)
    return ImageStore(folder.parent / "store")


def made(store: ImageStore, folder: Path, title: str = "a map", num_panels: int = 2) -> Page:
    ids = np.array([13, 0, 2, 5, 7, 1, 3, 4, 6])
    random = np.random.default_rng(0)
    panels = [Panel(step, random.normal(size=(9, 2)) * (5, 1) + 40) for step in [None, 8, 16][:num_panels]]
    groups = Groups("class <i>", ["<u>one</u>", "two"], np.array([1, 0, 0, 0, 1, 0, 0, 0, 0]), np.ones(9, bool))
    write_page(panels, groups, title, store, ids, folder / "map.html")
    return Page((folder / "map.html").read_text(encoding="utf-8"))


def test_the_page_has_all_points_keys_and_groups(store: ImageStore, tmp_path: Path) -> None:
    data = made(store, tmp_path).data
    assert data["keys"] == store.keys_at(np.array([13, 0, 2, 5, 7, 1, 3, 4, 6]))
    assert data["group"] == [1, 0, 0, 0, 1, 0, 0, 0, 0]
    assert [(group["name"], group["count"]) for group in data["groups"]] == [("<u>one</u>", 7), ("two", 2)]
    assert [panel["title"] for panel in data["panels"]] == ["random weights", "step 8"]
    for panel in data["panels"]:
        assert len(panel["x"]) == len(panel["y"]) == 9
        assert (min(panel["x"]), max(panel["x"])) == (0, data["side"])
        assert max(panel["y"]) - min(panel["y"]) < data["side"], "both directions have one scale"


def test_places_are_the_points_with_y_upward(store: ImageStore, tmp_path: Path) -> None:
    [panel] = made(store, tmp_path, num_panels=1).data["panels"]
    points = np.random.default_rng(0).normal(size=(9, 2)) * (5, 1) + 40
    found = np.stack([panel["x"], np.negative(panel["y"])], axis=1)
    scale = 9999 / np.ptp(points[:, 0])
    assert found - found[0] == pytest.approx((points - points[0]) * scale, abs=1.1)  # both are rounded


def test_nothing_in_a_name_becomes_html(store: ImageStore, tmp_path: Path) -> None:
    plain, hostile = made(store, tmp_path), made(store, tmp_path, "</title><b>__DATA__")
    assert HOSTILE in hostile.data["keys"]
    assert hostile.data["title"] == hostile.texts["title"].strip() == "</title><b>__DATA__"
    assert [tag for tag, _ in hostile.elements] == [tag for tag, _ in plain.elements]
    assert "b" not in {tag for tag, _ in hostile.elements}


def test_the_sheet_shows_each_image_at_its_place(store: ImageStore, tmp_path: Path) -> None:
    page = made(store, tmp_path)
    px, columns = page.data["thumbnails"]["px"], page.data["thumbnails"]["columns"]
    sheet = np.asarray(page.sheet()).astype(float)
    assert (px, columns, sheet.shape) == (16, 3, (48, 48, 3))
    for number, sample in enumerate([13, 0, 2, 5, 7, 1, 3, 4, 6]):
        top, left = number // 3 * 16, number % 3 * 16
        given = Image.fromarray(store.gather(np.array([sample]))[0]).resize((16, 16), Image.Resampling.LANCZOS)
        assert np.abs(sheet[top : top + 16, left : left + 16] - np.asarray(given)).mean() < 4  # grey levels, of a JPEG


def test_the_page_loads_nothing_from_elsewhere(store: ImageStore, tmp_path: Path) -> None:
    page = made(store, tmp_path)
    loaded = [attributes[name] for _, attributes in page.elements for name in ("src", "href") if name in attributes]
    assert [str(one).partition(":")[0] for one in loaded] == ["data"]
    text = (tmp_path / "map.html").read_text(encoding="utf-8")
    assert not re.search(r"https?://|@import|url\(|fetch\(|XMLHttpRequest", text)
    policy = [attributes["content"] for _, attributes in page.elements if "http-equiv" in attributes]
    assert str(policy[0]).startswith("default-src 'none'; img-src data:;")


def test_a_page_that_cannot_be_written_leaves_nothing(store: ImageStore, tmp_path: Path) -> None:
    (tmp_path / "map.html").mkdir()
    (tmp_path / "map.html" / "file").touch()
    with pytest.raises(RunError, match=r"map\.html cannot be written"):
        made(store, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["map.html"]
