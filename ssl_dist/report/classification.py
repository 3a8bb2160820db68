"""A report on a classifier's answers, as files: a table of classes, confusions and mistakes as pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from ssl_dist.errors import RunError
from ssl_dist.evaluate.compare import Comparison
from ssl_dist.evaluate.mistakes import Mistakes
from ssl_dist.files import expect_folder, to_json, write_text
from ssl_dist.report.pictures import literal, save, shortened

_SHOWN = 40  # mistakes in the picture
_NAMED = 40  # classes whose names and counts fit into the picture


FILES = ("classification.txt", "classification.json", "confusion.png", "mistakes.png")


def expect_writable(folder: Path) -> None:
    """Refuse a folder for ``FILES`` that cannot be made or written, before anything is computed.

    Raises:
        RunError: it cannot.
    """
    expect_folder(folder)
    if taken := [name for name in FILES if (folder / name).is_dir()]:
        raise RunError(f"{folder / taken[0]} is a folder, where a file is to be written: rename it")


def write(result: Comparison, folder: Path) -> dict[str, Any]:
    """Write ``FILES`` into a folder.

    Returns:
        What the JSON file holds.

    Raises:
        RunError: the folder cannot be written.
    """
    found = Mistakes.of(result)
    content = {
        "protocol": result.protocol,
        "classes": found.per_class,
        "confusion": found.confusion.tolist(),
        "class_names": list(found.names),
        "centre_ranks": found.centres and found.centres._asdict(),
        "summary": found.summary,
        "mistakes": _mistakes(result, found),
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_text(folder / "classification.txt", f"{found.text}\n{content['summary']}\n\n{result.protocol}\n")
        write_text(folder / "classification.json", to_json(content))
        _draw_confusion(found, folder / "confusion.png")
        _draw_mistakes(result, found, folder / "mistakes.png")
    except OSError as error:
        raise RunError(f"{folder} cannot be written ({error.strerror})") from None
    return content


def _mistakes(result: Comparison, found: Mistakes) -> list[dict[str, Any]]:
    """Return the most confident mistakes: sample id, key, true and given class, confidence."""
    answers, test = result.rows[0].answers, result.test
    shown = found.wrong[:_SHOWN]
    keys = test.store.keys_at(test.ids[shown])
    return [
        {
            "id": int(test.ids[row]),
            "key": key,
            "true": found.names[test.labels[row]],
            "given": found.names[answers.classes[row, 0]],
            "confidence": round(float(answers.confidence[row]), 4),
        }
        for row, key in zip(shown.tolist(), keys, strict=True)
    ]


def _draw_confusion(found: Mistakes, path: Path) -> None:
    from matplotlib.figure import Figure

    shares = found.confusion / found.confusion.sum(1, keepdims=True).clip(min=1)
    number, named = len(found.names), len(found.names) <= _NAMED
    side = 3 + (0.45 * number if named else 6)
    figure = Figure(figsize=(side, side), layout="constrained")
    axes = figure.subplots()
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    axes.set(xlabel="given class", ylabel="true class", title="Answers by true class, in percent")
    if named:
        names = [literal(shortened(name)) for name in found.names]
        axes.set_xticks(range(number), names, rotation=90)
        axes.set_yticks(range(number), names)
        for (row, column), share in np.ndenumerate(shares):
            if share >= 0.005:
                colour = "white" if share > 0.5 else "black"
                axes.text(column, row, f"{100 * share:.0f}", ha="center", va="center", color=colour, fontsize=8)
    save(figure, path)


def _draw_mistakes(result: Comparison, found: Mistakes, path: Path) -> None:
    from matplotlib.figure import Figure

    shown = _mistakes(result, found)
    columns = 8
    lines = max(1, -(-len(shown) // columns))
    figure = Figure(figsize=(1.5 * columns, 1.9 * lines), layout="constrained")
    for axes in figure.subplots(lines, columns, squeeze=False).flat:
        axes.set_axis_off()
    if shown:
        pixels = result.test.store.gather(np.array([one["id"] for one in shown]))
        for axes, image, one in zip(figure.axes, pixels, shown, strict=False):
            axes.imshow(image)
            given, true = (literal(shortened(one[name])) for name in ("given", "true"))
            title = f"{given} {one['confidence']:.0%}\nis {true}, {one['id']}"
            axes.set_title(title, fontsize=7)
    save(figure, path)
