"""What ``benchmarks.data`` found, as tables and as a picture."""

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
    """A line of _ROWS for each contestant."""
    found = {(one["contestant"], one["batch"]): one["rows_per_s"] for one in _of(records, px=px, measure="rows")}
    return [
        [name, *(cell for n in ROWS for cell in (f"{found[name, n]:,.0f}", f"{found[_OURS, n] / found[name, n]:.2f}"))]
        for name in dict.fromkeys(name for name, _ in found)
    ]


def with_views(records: list[Record], px: int) -> dict[tuple[str, str, str], float]:
    """Images a CPU second, (contestant, encoding, views) -> the median of what there is."""
    found: dict[tuple[str, str, str], list[float]] = {}
    for one in _of(records, px=px, measure="batches"):
        key = one["contestant"], one["encoding"], one["views"]
        found.setdefault(key, []).append(one["images_per_cpu_s"])
    return {key: statistics.median(rates) for key, rates in found.items()}


def best_peer(rates: dict[tuple[str, str, str], float]) -> tuple[str, str, str]:
    """The fastest that makes views and is not ours."""
    return max((key for key in rates if key[2] not in ("none", _OURS)), key=lambda key: rates[key])


def loader_lines(records: list[Record], px: int) -> list[list[str]]:
    """A line of _LOADERS for each contestant and encoding."""
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
    """The tables, on standard error: standard output is JSON lines."""
    console = Console(stderr=True, width=160)  # of what a page holds, also where there is no terminal
    for px in _sizes(records):
        for header, lines in ((_ROWS, row_lines(records, px)), (_LOADERS, loader_lines(records, px))):
            table = Table(title=f"{px} px")
            for number, column in enumerate(header):
                table.add_column(column, justify="right" if number else "left", overflow="fold")
            for line in lines:
                table.add_row(*line)
            console.print(table)


def text(records: list[Record], images: int, repeats: int) -> str:
    """The section of performance.md."""
    parts = [
        f"""
`python -m benchmarks.data`: {images:,} real images, batches of {BATCH}, each contestant in a process of its own on one
core and one thread, medians of {repeats} repeats that take turns. JPEG files are of quality 90; the raw forms hold the
pixels decoded from them. {page.machine()}

![Two-view batches](data.png)

Random rows: each image once an epoch, as uint8 arrays, after an epoch that is not measured: what the checks in ours
cost has a section of its own. HF datasets has its fastest form, a flat list a row in its Arrow format; with "shuffled
indices" it is its NumPy format. `Table.take` copies all of a column at each call, so it slows down with the number of
images. WebDataset has no random access.

Loaders: images a CPU second of all processes and threads, in the loader's own process, where it costs least; "pixels
alone" is without views. Views are SimCLR's two with the same operations and probabilities, of float32: with blur above
32 px, `simclr-small` at 32 px. torchvision is transforms.v2 on PIL's images, kornia works on the batch. First batch:
from opening to {BATCH} shuffled images without views. Memory: peak over the idle process that has imported all that it
needs, of batches of pixels and of views, by ours for ours and by torchvision for the others; anonymous is what is not
the page cache of a mapped file.
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
    """Images a CPU second by loader, at its best views."""
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
