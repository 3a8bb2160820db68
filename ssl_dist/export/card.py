"""The model card of an exported encoder: where it comes from, what it reached, and how it is used."""

from __future__ import annotations

import json
import re
from typing import Any

from ssl_dist.export.facts import Figures

_CARD = """---
license: {licence_tag}
tags: [image-feature-extraction, {method}]
---

# {name}

The encoder of run {run} after step {step:,}: **{network}** trained by **{method}**, {dim} features of images of
{size} x {size} px. It is the network without the parts that only training needs, such as a head or a classifier.

## Use

```python
{usage}```

Images are float32 `[N, 3, {size}, {size}]` in [0, 1]: the shorter side resized to {size} px (bicubic, antialiased), the
centre cut out. {normalisation}

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

The files were loaded as above, and gave the features of the run's encoder on {compared} images of {compared_store}: the
largest difference is {difference:.1e} of the largest feature. They were made with {versions}.

| file | SHA-256 |
| --- | --- |
{checksums}

Licence of the weights: {licence}.
"""


def card(facts: dict[str, Any], usage: str, normalises: bool, figures: Figures | None) -> str:
    """Return the text of the card.

    Args:
        facts: what encoder.json says.
        usage: Python code that loads the encoder.
        normalises: whether the files normalise the colours themselves, if it is to be done.
        figures: what ``evaluate all`` measured.
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
        usage=usage,
        normalisation=_normalisation(facts["normalisation"], normalises),
        rows="\n".join(f"| {name} | {value} |" for name, value in about.items()),
        settings=json.dumps(config, indent=1),
        figures=_figures(figures, facts["step"]),
        compared=facts["compared"]["images"],
        compared_store=_plain(facts["compared"]["store"]),
        difference=facts["compared"]["largest_difference"],
        versions=", ".join(f"{name} {number}" for name, number in facts["exported_with"].items()),
        checksums="\n".join(f"| {name} | `{digest}` |" for name, digest in facts["sha256"].items()),
        size=facts["image_size"],
        **{key: facts[key] for key in ("step", "method", "dim")},
    )


def _normalisation(mean_std: Any, normalises: bool) -> str:
    if mean_std is None:
        return "Their colours are not normalised."
    if normalises:
        return "Do not normalise their colours: the network does."
    return f"Their colours are then normalised as above, by the mean {mean_std[0]} and the deviation {mean_std[1]}."


def _licence_tag(licence: str) -> str:
    """Return the licence for the card's first lines: an SPDX name in small letters as it is, "other" for other text."""
    if not licence:
        return "unknown"
    return licence.lower() if re.fullmatch(r"[A-Za-z][A-Za-z0-9.-]*", licence) else "other"


def _plain(name: str) -> str:
    """Return a name of the user's without the characters that would end a cell or begin other Markdown."""
    return re.sub(r"([\\`*_{}\[\]<>|#])", r"\\\1", " ".join(name.split()))


def _figures(figures: Figures | None, step: int) -> str:
    """Return the accuracies that ``evaluate all`` measured of this step, with their protocols."""
    if figures is None or figures.step != step:
        return "Not measured: `ssl-dist evaluate all` measures them, and a card that is written afterwards has them."
    lines = ["| measure | encoder | features | top-1, % | 95 % |", "| --- | --- | --- | --- | --- |"]
    for measure, encoder, features, top1, low, high in figures.rows:
        lines.append(f"| {measure} | {encoder} | {features} | {100 * top1:.2f} | {100 * low:.1f} .. {100 * high:.1f} |")
    return "\n".join(lines) + "\n\n" + "\n\n".join(figures.protocols)
