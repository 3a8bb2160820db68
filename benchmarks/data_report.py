"""Report of ``benchmarks.data``: its results as tables, as a plot and as the text of docs/performance.md."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks import page
from benchmarks.loaders import BATCH, ROWS

Record = dict[str, Any]
_OURS = "ours"
_ROWS = ["", *(column for batch in ROWS for column in (f"rows/s, {batch:,} a call", "ours in units of it"))]
_VIEWS = (_OURS, "torchvision", "kornia", "lightly")
_LOADERS = ["", "pixels alone", *(f"views by {name}" for name in _VIEWS), "ours in units of its best"]
_LOADERS += ["first batch, ms", "RSS, MB", "anonymous, MB"]


def _of(records: list[Record], **wanted: Any) -> list[Record]:
    return [one for one in records if all(one.get(key) == value for key, value in wanted.items())]


def _sizes(records: list[Record]) -> list[int]:
    return list(dict.fromkeys(one["px"] for one in records))


def row_lines(records: list[Record], px: int) -> list[list[str]]:
    """Return the table of random rows: for each contestant, its cells under the header _ROWS."""
    found = {(one["contestant"], one["batch"]): one["rows_per_s"] for one in _of(records, px=px, measure="rows")}
    return [
        [name, *(cell for n in ROWS for cell in (f"{found[name, n]:,.0f}", f"{found[_OURS, n] / found[name, n]:.2f}"))]
        for name in dict.fromkeys(name for name, _ in found)
    ]


def with_views(records: list[Record], px: int) -> dict[tuple[str, str, str], float]:
    """Return the median images a CPU second by (contestant, encoding, views)."""
    found: dict[tuple[str, str, str], list[float]] = {}
    for one in _of(records, px=px, measure="batches"):
        key = one["contestant"], one["encoding"], one["views"]
        found.setdefault(key, []).append(one["images_per_cpu_s"])
    return {key: statistics.median(rates) for key, rates in found.items()}


def best_peer(rates: dict[tuple[str, str, str], float]) -> tuple[str, str, str]:
    """Return the fastest (contestant, encoding, views) other than ours that makes views."""
    return max((key for key in rates if key[2] not in ("none", _OURS)), key=lambda key: rates[key])


def loader_lines(records: list[Record], px: int) -> list[list[str]]:
    """Return the table of loaders: for each contestant and encoding, its cells under the header _LOADERS."""
    rates, lines = with_views(records, px), []
    for name, encoding in dict.fromkeys(key[:2] for key in rates):
        label = {"px": px, "contestant": name, "encoding": encoding}
        [first], [memory] = (_of(records, measure=measure, **label) for measure in ("first", "memory"))
        found = {views: rates[name, encoding, views] for views in ("none", *_VIEWS) if (name, encoding, views) in rates}
        best = max(found[views] for views in _VIEWS if views in found)
        lines.append(
            [
                f"{name}, {encoding}",
                *(f"{found[views]:,.0f}" if views in found else "" for views in ("none", *_VIEWS)),
                f"{rates[_OURS, 'raw', _OURS] / best:.2f}",
                f"{first['first_batch_s'] * 1e3:,.0f}",
                *(f"{memory[f'extra_{kind}_bytes'] / 1e6:,.0f}" for kind in ("rss", "anon")),
            ]
        )
    return lines


def show(records: list[Record]) -> None:
    """Print the tables on standard error, because standard output holds JSON lines."""
    console = Console(stderr=True, width=160)  # wide enough for the tables where there is no terminal
    for px in _sizes(records):
        for header, lines in ((_ROWS, row_lines(records, px)), (_LOADERS, loader_lines(records, px))):
            table = Table(title=f"{px} px")
            for number, column in enumerate(header):
                table.add_column(column, justify="right" if number else "left", overflow="fold")
            for line in lines:
                table.add_row(*line)
            console.print(table)


def text(records: list[Record], images: int, repeats: int) -> str:
    """Return the text of the section in performance.md."""
    parts = [
        f"""
`python -m benchmarks.data`: {images:,} real images, batches of {BATCH}, each contestant in a process of its own on one
core and one thread, medians of {repeats} repeats that take turns. JPEG files have quality 90; the raw forms hold the
pixels decoded from them. {page.machine()}

![Two-view batches](data.png)

Random rows: each image is read once an epoch, as uint8 arrays. The first epoch is not measured; the section "Checks"
has the cost of our checks in it. HF datasets is read in its fastest form, a flat list a row in its Arrow format, and
with "shuffled indices" in its NumPy format. `Table.take` copies a whole column at each call, so it slows down with the
number of images. WebDataset has no random access.

Loaders: images a CPU second, which counts all threads and child processes; each loader works in its main process, where
it costs least. "Pixels alone" is without views. The views are SimCLR's two, float32, with the same operations and
probabilities for all: `simclr` above 32 px, `simclr-small` (no blur) at 32 px. torchvision is transforms.v2 on PIL's
images; kornia works on the batch. First batch: the time from opening to {BATCH} shuffled images without views. Memory:
how far the peak exceeds the idle process that has imported all that it needs, for batches of pixels and of views (ours
by ours, the others by torchvision); the anonymous part excludes the page cache of mapped files.
"""
    ]
    for px in _sizes(records):
        rates = with_views(records, px)
        name, encoding, views = best = best_peer(rates)
        parts.append(
            f"""
### {px} px

{page.table(_ROWS, row_lines(records, px))}

{page.table(_LOADERS, loader_lines(records, px))}

The best other loader is {name} ({encoding}) with {views}: {rates[_OURS, "raw", _OURS] / rates[best]:.1f} times slower.
"""
        )
    missing = sorted({f"{one['contestant']} (no module {one['missing']})" for one in records if "missing" in one})
    made = {one["views"] for one in _of(records, measure="batches")}
    missing += [f"views by {name}" for name in ("torchvision", "kornia", "lightly") if name not in made]
    parts.append(f"Not installed in this run: {', '.join(missing) or 'none'}.")
    return "\n".join(part.strip() + "\n" for part in parts)


def draw(records: list[Record], picture: Path) -> None:
    """Draw each loader's images a CPU second with the views that are fastest for it."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    sizes = _sizes(records)
    figure, axes = plt.subplots(1, len(sizes), figsize=(5.5 * len(sizes), 4), layout="constrained", squeeze=False)
    for axis, px in zip(axes[0], sizes, strict=True):
        best: dict[str, float] = {}
        for (name, encoding, views), rate in with_views(records, px).items():
            if views != "none":
                label = f"{name}, {encoding}"
                best[label] = max(rate, best.get(label, 0.0))
        labels = sorted(best, key=lambda label: best[label])
        colours = ["tab:orange" if label.startswith(_OURS) else "tab:blue" for label in labels]
        axis.barh(labels, [best[label] for label in labels], color=colours)
        axis.set(xlabel="two-view images a CPU second, best views", title=f"{px} px")
        axis.grid(alpha=0.3, axis="x")
    figure.savefig(picture, dpi=120)
