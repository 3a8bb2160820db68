"""Reports in a real browser: on a phone, on a desk, light, dark and printed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from ssl_dist.report.page import RunFiles, write_page
from tests.browser import Browser, browser, find
from tests.helpers import resolved_config
from tests.report.pages import whole_run, write_run

pytestmark = pytest.mark.extras

# Text whose contrast with what lies behind it is below WCAG 2's AA, as "ratio text".
FAINT = """
(() => {
  const parse = (text) => {
    const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
    canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = text; canvas.fillRect(0, 0, 1, 1);
    const [r, g, b, a] = canvas.getImageData(0, 0, 1, 1).data;
    return [r, g, b, a / 255];
  };
  const over = (top, below) => [0, 1, 2].map((i) => top[i] * top[3] + below[i] * (1 - top[3]));
  const light = (rgb) => {
    const [r, g, b] = rgb.map((c) => c / 255).map((c) => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const ground = (element) => {
    const layers = [];
    for (let one = element; one; one = one.parentElement) layers.push(parse(getComputedStyle(one).backgroundColor));
    return layers.reverse().reduce((below, top) => over(top, below), [255, 255, 255]);
  };
  const found = [], walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  let seen = 0;
  for (let node = walker.nextNode(); node; node = walker.nextNode()) {
    const element = node.parentElement;
    if (!node.data.trim() || element.closest("script, style") || !element.getClientRects().length) continue;
    const style = getComputedStyle(element), size = parseFloat(style.fontSize), below = ground(element);
    const colour = over(parse(element.closest("svg") ? style.fill : style.color), below);
    const [dark, bright] = [light(colour), light(below)].sort((a, b) => a - b);
    const ratio = (bright + 0.05) / (dark + 0.05), large = size >= 24 || (size >= 18.66 && style.fontWeight >= 700);
    seen += 1;
    if (ratio < (large ? 3 : 4.5)) found.push(ratio.toFixed(2) + " " + node.data.trim());
  }
  return seen > 100 ? found : ["only " + seen + " texts were seen"];
})()
"""
PICTURES = """
Promise.all([...document.images].map((one) => one.decode().then(() => one.naturalWidth > 0, () => false)))
  .then((all) => all.length + " " + all.every((one) => one))
"""


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    command = find()
    if command is None:
        pytest.skip("no Chromium is installed: apt install chromium, or name one by CHROME")
    with browser(command) as one:
        yield one


@pytest.fixture(scope="module")
def pages(small_store: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Write the page of a run with all there is, of one with long names and nothing else, and of several."""
    folder = tmp_path_factory.mktemp("pages")
    whole = whole_run(folder / "whole", small_store)
    bare = write_run(folder / ("a-name-without-blanks" * 8), resolved_config(small_store), probe=0.1)
    others = [
        write_run(folder / f"run-{n}", resolved_config(small_store, seed=n, optim__lr=n / 7)) for n in range(1, 9)
    ]
    for name, runs in {"one": [whole], "bare": [bare], "several": [whole, bare, *others]}.items():
        write_page([RunFiles.read(run) for run in runs], "some", folder / f"{name}.html", 1.5)
    return {file.stem: file for file in folder.glob("*.html")}


@pytest.mark.parametrize("name", ["one", "bare", "several"])
@pytest.mark.parametrize("width", [390, 1400])
@pytest.mark.parametrize("dark", [False, True])
def test_a_page_reads_well(chromium: Browser, pages: dict[str, Path], name: str, width: int, dark: bool) -> None:
    chromium.open(pages[name], width=width, dark=dark)
    assert chromium.run("innerWidth") == width
    assert chromium.run("document.documentElement.scrollWidth") <= width, "the page scrolls to the side"
    assert chromium.run("matchMedia('(prefers-color-scheme: dark)').matches") == dark
    assert chromium.run(FAINT) == []
    count, loaded = chromium.run(PICTURES).split()
    assert (int(count) >= 24, loaded) == (name != "several", "true")
    assert chromium.complaints == []


def test_a_page_that_is_printed_is_light_and_has_all(chromium: Browser, pages: dict[str, Path]) -> None:
    chromium.open(pages["one"], width=700, dark=True, medium="print")
    assert chromium.run("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert chromium.run(FAINT) == []
    assert chromium.pdf().count(b"/Type /Page\n") >= 2


@pytest.mark.parametrize("name", ["one", "several"])
def test_a_chart_tells_the_values_under_the_pointer(chromium: Browser, pages: dict[str, Path], name: str) -> None:
    chromium.open(pages[name], width=1400)
    chart = "document.querySelector('.chart')"
    box = chromium.run(f"{chart}.scrollIntoView(), {chart}.querySelector('.plot').getBoundingClientRect().toJSON()")
    shown = f"[...{chart}.querySelectorAll('.legend b, .at')].map(one => one.textContent)"
    before = chromium.run(shown)
    chromium.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    under = chromium.run(shown)
    assert before[-1] == "last"
    assert under[-1].startswith("at epoch 2.")
    assert under[0] != before[0]
    chromium.move(1, 1)
    assert chromium.run(shown) == before
