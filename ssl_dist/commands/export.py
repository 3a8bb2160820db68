"""The command that writes a run's encoder as files for other code."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Annotated, Any

import typer

from ssl_dist.commands.console import console, errors, print_json, say, waiting
from ssl_dist.commands.options import Json, WhichCheckpoint
from ssl_dist.errors import ConfigError

_RUN = "Run directory, one of its checkpoints, or the URI of either in the run's mirror."
_FORMAT = (
    "safetensors: weights and a model.py that needs none of this package; torchvision, timm: weights for that library's"
    " network; hf: a folder for transformers' AutoModel; onnx, torchscript: one file for ONNX Runtime, for"
    " torch.jit.load."
)
_PART = "The network that gives features, or with its projection head, or with the classifier of a supervised run."
_PUSH = "Push the folder to this repository of the Hugging Face Hub, with the token of `hf auth login` or HF_TOKEN."
_PUBLIC = "Let everyone see a repository that --push-to-hub makes. Default: it is private."
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
    push_to_hub: Annotated[str | None, typer.Option(metavar="USER/NAME", help=_PUSH)] = None,
    public: Annotated[bool, typer.Option("--public", help=_PUBLIC)] = False,
    as_json: Json = False,
) -> None:
    """Write a run's encoder as files for other code.

    The files are loaded by their own library's loader, and their features are compared with the run's on real images:
    where these differ by more than 1e-5 of the largest, no folder is written.
    """
    if public and push_to_hub is None:
        raise ConfigError("--public is for the repository of --push-to-hub: name one")
    from ssl_dist.export import export as export_encoder
    from ssl_dist.export.hub import expect_hub, push

    if push_to_hub is not None:
        expect_hub(push_to_hub)
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
    if push_to_hub is not None:
        # a terminal shows huggingface_hub's own bars
        with contextlib.nullcontext() if errors.is_terminal else waiting(f"pushing to {push_to_hub}", errors):
            result["pushed_to"] = push(out, push_to_hub, public)
        say(f"pushed to {result['pushed_to']}")
    print_json(result, as_json)
