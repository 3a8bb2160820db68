"""The model card of an exported encoder: where it comes from, what it reached, and how it is used."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

from ssl_dist.export.figures import Figure
from ssl_dist.export.formats import Format, Source

_CARD = """---
license: {licence_tag}
{library}pipeline_tag: {task}
tags: [{method}]
---

# {name}

The encoder of run {run} after step {step:,}: **{network}** trained by **{method}**, {dim} features of images of
{size} x {size} px. {part}

## Use

```python
{usage}```

{images}

## Training

| | |
| --- | --- |
{rows}

Settings of the experiment, without those of the machine:

```json
{settings}
```

## Figures

{figures}

## Checks

The files were loaded as above, and gave the {outputs} of the run on {compared} images of {compared_store}: the largest
difference is {difference:.1e} of the largest one. They were made with {versions}.

| file | SHA-256 |
| --- | --- |
{checksums}

Licence of the weights: {licence}.
"""


_PARTS = {
    "backbone": "It is the network without the parts that only training needs, such as a head or a classifier.",
    "head": "Behind it stands the projection head, which gives {num} embeddings; their length is not 1.",
    "classifier": "Behind it stands a classifier of {num} classes: {classes}.",
}
_CLASSES = 100  # classes that a card names


def card(facts: dict[str, Any], chosen: Format, source: Source, figures: Sequence[Figure]) -> str:
    """Return the text of the card.

    Args:
        facts: what encoder.json says.
        chosen: the format of the files.
        source: what is in them.
        figures: what was measured of it.
    """
    network, config = facts["network"], facts["config"]
    described = network["name"] + ("" if network["stem"] == "standard" else f" (stem {network['stem']})")
    if network["width"]:
        described += f" of width {network['width']}"
    about = {
        "data": f"{facts['num_images']:,} images of {_plain(facts['store'])}",
        "length": f"{facts['step']:,} steps, {facts['epochs']:g} epochs",
        "batch": f"{config['batch']['size']:,} images",
        "optimizer": f"{config['optim']['name']}, learning rate {config['optim']['lr']:g}",
        "seed": config["seed"],
    }
    if facts["probe"] is not None:
        about["online probe"] = f"{facts['probe']:.4g}"
    return _CARD.format(
        licence_tag=_licence_tag(facts["licence"]),
        licence=facts["licence"] or "not stated",
        name=f"{_plain(facts['run'])}, step {facts['step']:,}",
        run=_plain(facts["run"]),
        network=described,
        library=f"library_name: {chosen.library}\n" if chosen.library else "",
        task="image-classification" if source.part == "classifier" else "image-feature-extraction",
        part=_part(facts),
        usage=chosen.usage(source),
        images=_images(source, chosen.prepares),
        outputs=source.outputs,
        rows="\n".join(f"| {name} | {value} |" for name, value in about.items()),
        settings=json.dumps(config, indent=1),
        figures=_figures(figures),
        compared=facts["compared"]["images"],
        compared_store=_plain(facts["compared"]["store"]),
        difference=facts["compared"]["largest_difference"],
        versions=", ".join(f"{name} {number}" for name, number in facts["exported_with"].items()),
        checksums="\n".join(f"| {name} | `{digest}` |" for name, digest in facts["sha256"].items()),
        size=facts["image_size"],
        **{key: facts[key] for key in ("step", "method", "dim")},
    )


def _part(facts: dict[str, Any]) -> str:
    names = [f"{number} {_plain(name)}" for number, name in enumerate(facts["classes"])]
    classes = ", ".join(names) if len(names) <= _CLASSES else "encoder.json names them in their order"
    return _PARTS[facts["part"]].format(num=facts["outputs"], classes=classes)


def _images(source: Source, prepares: str) -> str:
    """Return the paragraph on the images that the card's code takes."""
    size, mean_std = source.image_size, source.backbone.normalisation
    steps = f"the shorter side resized to {size} px (bicubic, antialiased), the centre cut out"
    if prepares == "all":
        colours = "not normalised" if mean_std is None else "normalised as the weights need it"
        return (
            "Images are pictures of any size, which the processor prepares as in training: the centre cut out, resized"
            f" to {size} px (bicubic, antialiased), the colours {colours}. It cuts at whole pixels and resizes with"
            " torchvision, and training does both with Pillow: a pixel may differ by a few 255ths."
        )
    if mean_std is None:
        then = "Their colours are not normalised."
    elif prepares == "colours":
        then = "Do not normalise their colours: the network does."
    else:
        then = f"Their colours are then normalised as above, by the mean {mean_std[0]} and the deviation {mean_std[1]}."
    return f"Images are float32 `[N, 3, {size}, {size}]` in [0, 1]: {steps}. {then}"


def _licence_tag(licence: str) -> str:
    """Return the licence for the card's first lines: an SPDX name in small letters as it is, "other" for other text."""
    if not licence:
        return "unknown"
    return licence.lower() if re.fullmatch(r"[A-Za-z][A-Za-z0-9.-]*", licence) else "other"


def _plain(name: str) -> str:
    """Return a name of the user's without the characters that would end a cell or begin other Markdown."""
    return re.sub(r"([\\`*_{}\[\]<>|#])", r"\\\1", " ".join(name.split()))


def _figures(figures: Sequence[Figure]) -> str:
    """Return the accuracies as a table, with their protocols below it."""
    if not figures:
        return "Not measured: `ssl-dist evaluate all` measures them, and a card that is written afterwards has them."
    lines = ["| measure | encoder | features | top-1, % | 95 % |", "| --- | --- | --- | --- | --- |"]
    for one in figures:
        interval = f"{100 * one.interval[0]:.1f} .. {100 * one.interval[1]:.1f}" if one.interval else ""
        lines.append(f"| {one.measure} | {one.encoder} | {one.features} | {100 * one.top1:.2f} | {interval} |")
    protocols = dict.fromkeys(f"{one.measure}: {one.protocol}" for one in figures)
    return "\n".join(lines) + "\n\n" + "\n\n".join(protocols)
