"""The command that writes a recipe for a store and this machine."""

from __future__ import annotations

import os
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
import yaml

from ssl_dist.commands.console import errors, print_json, say, waiting
from ssl_dist.commands.options import Json
from ssl_dist.errors import ConfigError

if TYPE_CHECKING:
    from ssl_dist.store import ImageStore

_OUT = "File to write. Default: the store's name with .yaml, in this folder."
_FIRST_LOOK = "--set epochs=10 --set optim.warmup_epochs=1"
_SECONDS = "Seconds for which one worker is measured."


def init(
    store: Annotated[str, typer.Argument(help="Folder of the store, or its URI.")],
    out: Annotated[Path | None, typer.Option(help=_OUT)] = None,
    seconds: Annotated[float, typer.Option(min=0.0, help=_SECONDS)] = 3.0,
    as_json: Json = False,
) -> None:
    """Write a recipe for a store and this machine: network, batch, workers, length, and an estimate of its time."""
    from ssl_dist.files import write_text
    from ssl_dist.store import ImageStore

    opened = ImageStore(store)
    file = out or Path(f"{os.path.basename(os.path.abspath(opened.name))}.yaml")
    _expect_free(file)
    with waiting(f"measuring {seconds:g} s of training", errors):
        tree, header, result = _proposal(opened, file, seconds)
    body = yaml.safe_dump(tree, sort_keys=False, default_flow_style=None, width=118)
    write_text(file, "\n".join(f"# {line}" for line in header) + f"\n{body}")
    if not as_json:
        say("\n".join(header))
        say(f"written: {file}")
    print_json(result, as_json)


def _expect_free(file: Path) -> None:
    """Refuse a file that is there or cannot be written, before anything is measured."""
    try:
        file.open("x").close()
        file.unlink()
    except FileExistsError:
        raise ConfigError(f"{file} is there: choose another --out, or delete it") from None
    except OSError as error:
        raise ConfigError(f"{file} cannot be written: {error.strerror}; choose another --out") from None


def _proposal(store: ImageStore, file: Path, seconds: float) -> tuple[dict[str, Any], list[str], dict[str, Any]]:
    """Return the recipe's sections, the lines of its header, and the command's JSON object."""
    from cluster.doctor.tables import duration
    from cluster.guards import num_gpus
    from cluster.prepare import resolve_settings
    from ssl_dist.config import RunConfig
    from ssl_dist.config.proposal import propose
    from ssl_dist.evaluate import fastest_device
    from ssl_dist.machine import has_bf16, num_cores
    from ssl_dist.training.speed import images_per_second

    cores, gpus = num_cores(), num_gpus()
    facts = {"num_images": len(store), "size_px": max(store.image_shape), "num_classes": len(store.class_names)}
    tree = propose(store.location, **facts, cores=cores, gpus=gpus, bf16=has_bf16())
    config = resolve_settings(RunConfig.from_tree(tree, str(file)))
    rate = images_per_second(config, store, fastest_device(), seconds)
    workers, steps = config.cluster.workers.max, config.plan().total_steps
    run_s = steps * config.batch.size / (rate * workers)
    together = f"; so {rate * workers:,.0f} with {workers}" if workers > 1 else ""
    command = f"ssl-dist pretrain {shlex.quote(str(file))}"
    header = [
        f"SimCLR on {store.name}: {len(store):,} images of {store.image_shape[1]} x {store.image_shape[0]} px",
        f"Command:  {command}",
        f"Hardware: CPU cores: {cores}; GPUs: {gpus}; workers: {workers}",
        f"Time:     about {duration(run_s)}, without probes and checkpoints",
        f"Measured: {rate:,.0f} images/s with one worker, for {seconds:g} s{together}",
        f"Result:   not measured yet; for a first look add {_FIRST_LOOK}",
    ]
    result = {"recipe": str(file), "command": command, "images_per_s": rate * workers, "seconds": run_s, "steps": steps}
    return tree, header, result
