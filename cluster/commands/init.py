"""The command that writes a recipe for a store and this machine."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer
import yaml

from ssl_dist.commands.console import print_json, say
from ssl_dist.commands.options import Json
from ssl_dist.errors import ConfigError

_OUT = "File to write. Default: the store's name with .yaml, in this folder."
_SECONDS = "Seconds for which one worker is measured."


def init(
    store: Annotated[str, typer.Argument(help="Folder of the store, or its URI.")],
    out: Annotated[Path | None, typer.Option(help=_OUT)] = None,
    seconds: Annotated[float, typer.Option(min=0.0, help=_SECONDS)] = 3.0,
    as_json: Json = False,
) -> None:
    """Write a recipe for a store and this machine: network, batch, workers, length, and an estimate of its time."""
    from cluster.doctor.tables import duration
    from cluster.guards import num_cores, num_gpus
    from cluster.prepare import resolve_settings
    from ssl_dist.config import RunConfig
    from ssl_dist.config.proposal import propose
    from ssl_dist.evaluate import fastest_device
    from ssl_dist.files import write_text
    from ssl_dist.store import ImageStore
    from ssl_dist.training.speed import images_per_second

    opened = ImageStore(store)
    file = out or Path(f"{Path(opened.name).name}.yaml")
    if file.exists():
        raise ConfigError(f"{file} is there: choose another --out, or delete it")
    cores, gpus = num_cores(), num_gpus()
    facts = {"num_images": len(opened), "size_px": max(opened.image_shape), "num_classes": len(opened.class_names)}
    tree = propose(opened.location, **facts, cores=cores, gpus=gpus)
    config = resolve_settings(RunConfig.from_tree(tree, str(file)))
    rate = images_per_second(config, opened, fastest_device(), seconds)
    workers, steps = config.cluster.workers.max, config.plan().total_steps
    run_s = steps * config.batch.size / (rate * workers)
    command = f"ssl-dist pretrain {shlex.quote(str(file))}"
    header = [
        f"# SimCLR on {opened.name}: {len(opened):,} images of {opened.image_shape[1]} x {opened.image_shape[0]} px",
        f"# Command:  {command}",
        f"# Hardware: {cores} cores, {gpus or 'no'} GPU; {workers} worker(s)",
        f"# Time:     about {duration(run_s)}, without probes and checkpoints",
        f"# Measured: {rate:,.0f} images/s of one worker in {seconds:g} s; {workers} count as {workers} times as fast",
        "# Result:   not measured yet; for a first look add --set epochs=1",
    ]
    body = yaml.safe_dump(tree, sort_keys=False, default_flow_style=None, width=118)
    write_text(file, "\n".join(header) + f"\n{body}")
    if not as_json:
        say("\n".join(line.removeprefix("# ") for line in header))
        say(f"written: {file}")
    result = {"recipe": str(file), "command": command, "images_per_s": rate * workers, "seconds": run_s, "steps": steps}
    print_json(result, as_json)
