"""The model card of an exported encoder: where it comes from, what it reached, and how it is used."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ssl_dist.files import write_text

_CARD = """---
license: {licence_tag}
tags: [image-feature-extraction, self-supervised, {method}]
---

# {name}

The encoder of run `{run}` after step {step:,}: **{network}** pretrained with **{method}**, {dim} features of images of
{size} x {size} px.

## Use

```python
{usage}```

Images are float32 `[N, 3, {size}, {size}]` in [0, 1]: the shorter side resized to {size} px (bicubic, antialiased), the
centre cut out. {normalisation}

## Training

| | |
| --- | --- |
{rows}

All settings:

```json
{settings}
```

## Figures

{figures}

## Checks

The files were loaded as above, and gave the features of the run's encoder on {compared} images: the largest difference
is {difference:.1e} of the largest feature.

| file | SHA-256 |
| --- | --- |
{checksums}

Licence of the weights: {licence}.
"""


def write_card(file: Path, facts: dict[str, Any], usage: str, evaluation: dict[str, Any] | None) -> None:
    """Write the card.

    Args:
        facts: what encoder.json says.
        usage: Python code that loads the encoder.
        evaluation: what ``evaluate all`` wrote beside the run; None where it has not measured it.
    """
    network, config = facts["network"], facts["config"]
    described = network["name"] + ("" if network["stem"] == "standard" else f" (stem {network['stem']})")
    if network["width"]:
        described += f" of width {network['width']}"
    about = {
        "data": f"{facts['num_images']:,} images of {facts['store']}",
        "length": f"{facts['step']:,} steps, {facts['epochs']:g} epochs",
        "batch": f"{config['batch']['size']:,} images",
        "optimizer": f"{config['optim']['name']}, learning rate {config['optim']['lr']:g}",
        "seed": config["seed"],
        "versions": ", ".join(f"{name} {number}" for name, number in facts["versions"].items()),
    }
    if facts["probe"] is not None:
        about["online probe"] = f"{facts['probe']:.4g}"
    mean_std = facts["normalisation"]
    inside = "Their colours are not normalised."
    if mean_std is not None:
        inside = f"Their colours are normalised by the mean {mean_std[0]} and the deviation {mean_std[1]}, as above."
    write_text(
        file,
        _CARD.format(
            licence_tag="unknown" if not facts["licence"] else "other",
            licence=facts["licence"] or "not stated",
            name=f"{facts['run']}, step {facts['step']:,}",
            network=described,
            usage=usage,
            normalisation=inside,
            rows="\n".join(f"| {name} | {value} |" for name, value in about.items()),
            settings=json.dumps(config, indent=1),
            figures=_figures(evaluation, facts["step"]),
            compared=facts["compared"]["images"],
            difference=facts["compared"]["largest_difference"],
            checksums="\n".join(f"| {name} | `{digest}` |" for name, digest in facts["sha256"].items()),
            size=facts["image_size"],
            **{key: facts[key] for key in ("run", "step", "method", "dim")},
        ),
    )


def _figures(evaluation: dict[str, Any] | None, step: int) -> str:
    """Return the accuracies that ``evaluate all`` measured of this step, with their protocols."""
    if evaluation is None or evaluation.get("step") != step:
        return "Not measured: `ssl-dist evaluate all` measures them, and a card that is written afterwards has them."
    lines, protocols = ["| measure | encoder | features | top-1, % | 95 % |", "| --- | --- | --- | --- | --- |"], []
    for one in evaluation["accuracies"]:
        protocols.append(f"{one['evaluation']}: {one['protocol']}")
        for row in one["rows"]:
            low, high = row["top1_interval"]
            lines.append(
                f"| {one['evaluation']} | {row['encoder']} | {row['features']} | {100 * row['top1']:.2f} |"
                f" {100 * low:.1f} .. {100 * high:.1f} |"
            )
    return "\n".join(lines) + "\n\n" + "\n\n".join(protocols)
