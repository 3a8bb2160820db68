"""The command that writes a run's encoder as files for other code."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ssl_dist.commands.console import console, errors, print_json, say, waiting
from ssl_dist.commands.options import Json, WhichCheckpoint

_RUN = "Run directory, one of its checkpoints, or the URI of either in the run's mirror."
_FORMAT = (
    "safetensors: weights and a model.py that needs none of this package; torchvision, timm: weights for that library's"
    " network; hf: a folder for transformers' AutoModel; onnx, torchscript: one file for ONNX Runtime, for"
    " torch.jit.load."
)
_PART = "The network that gives features, or with its projection head, or with the classifier of a supervised run."
_IMAGES = "Store on whose images the features are compared. Default: the run's own."
_LICENCE = "Licence of the weights, for the model card."


def export(
    run: Annotated[str, typer.Argument(metavar="RUN", help=_RUN)],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="New folder.")],
    format_: Annotated[
        str, typer.Option("--format", metavar="safetensors|torchvision|timm|hf|onnx|torchscript", help=_FORMAT)
    ] = "safetensors",
    part: Annotated[Any, typer.Option(metavar="backbone|head|classifier", help=_PART)] = "backbone",
    checkpoint: WhichCheckpoint = "newest",
    images: Annotated[str | None, typer.Option(help=_IMAGES)] = None,
    licence: Annotated[str, typer.Option(help=_LICENCE)] = "",
    as_json: Json = False,
) -> None:
    """Write a run's encoder as files for other code.

    The files are loaded by their own library's loader, and their features are compared with the run's on real images:
    where these differ by more than 1e-5 of the largest, no folder is written.
    """
    from ssl_dist.export import export as export_encoder

    with waiting("exporting", errors):
        done = export_encoder(run, out, format_, part=part, checkpoint=checkpoint, images=images, licence=licence)
    facts, outputs = done.facts, done.outputs
    console.print(
        f"{out}: {facts['network']['name']}, {facts['outputs']} {outputs}, step {facts['step']:,};"
        f" {', '.join(facts['sha256'])}, README.md, encoder.json",
        markup=False,
        highlight=False,
        soft_wrap=True,
    )
    say(f"{outputs} of {done.num_images} images differ by {done.difference:.1e} of the largest at most")
    result = {"out": str(out), "difference": done.difference, "images": done.num_images, **facts}
    print_json(result, as_json)
