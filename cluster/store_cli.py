"""The commands that make stores, on this machine or with shards written on all nodes of a Ray cluster."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

import typer

from ssl_dist.commands.cli import app, store_app, store_info_table
from ssl_dist.commands.console import ImageBar, Json, image_progress
from ssl_dist.errors import ConfigError, Interrupted

if TYPE_CHECKING:
    from ssl_dist.store.building.writer_pool import Writers

__all__ = ["app"]

Workers = Annotated[
    int | None, typer.Option(help="Writers at once. Default: one a core; with --cluster one a CPU of the cluster.")
]
OnCluster = Annotated[
    bool,
    typer.Option(
        "--cluster",
        help="Write on all nodes of the Ray cluster of RAY_ADDRESS. They see source and destination at the same path.",
    ),
]
Strict = Annotated[bool, typer.Option("--strict", help="Stop at the first file that is not a readable image.")]


@store_app.command("build")
def store_build(
    source: Annotated[
        str,
        typer.Argument(
            help="Folder of class folders, flat folder, tar of either, WebDataset shards, STL-10's *_X.bin, CIFAR's"
            " Python files, Parquet, Arrow; by path, URI (s3://, gs://) or pattern ('a-{000..127}.tar', 'b/**/*.jpg')."
        ),
    ],
    destination: Annotated[str, typer.Argument(help="Folder of the new store.")],
    size_px: Annotated[
        int | None, typer.Option(help="Resize the shorter side, cut out the centre. Default: keep the one size.")
    ] = None,
    split: Annotated[str, typer.Option(help="Name kept in the manifest.")] = "train",
    encoding: Annotated[
        str,
        typer.Option(help="raw: pixels. jpeg: smaller, slower to read; JPEGs of the right size are kept as they are."),
    ] = "raw",
    split_by_hash: Annotated[
        float,
        typer.Option(
            metavar="SHARE",
            help="Hold this share out, by the hash of an image's path, in a second store DESTINATION-held-out.",
        ),
    ] = 0.0,
    workers: Workers = None,
    cluster: OnCluster = False,
    strict: Strict = False,
    as_json: Json = False,
) -> None:
    """Build a store; a build that was killed goes on. Files that are not readable images are named and left out."""
    from ssl_dist.store import build

    if not 0 <= split_by_hash < 1:
        raise ConfigError(f"--split-by-hash {split_by_hash:g}: it is a share, 0 or more and less than 1")
    # the held-out part first: where a small source leaves nothing for it, nothing has been built in vain
    parts = {destination: (split, (split_by_hash, 1.0))}
    if split_by_hash:
        held_out = f"{destination.rstrip('/')}-held-out"
        parts = {held_out: ("held-out", (0.0, split_by_hash)), **parts}
    for path, (name, share) in parts.items():
        with _making("building") as progress:
            manifest = build(
                source,
                path,
                split=name,
                size_px=size_px,
                encoding=encoding,
                share=share,
                keep=bool(split_by_hash),
                workers=_writers(workers, cluster, progress),
                strict=strict,
                progress=progress,
            )
        store_info_table(path, manifest.model_dump(exclude={"shards"}), as_json)


@store_app.command("append")
def store_append(
    source: Annotated[str, typer.Argument(help="As of `store build`.")],
    store: Annotated[str, typer.Argument(help="Folder of the store.")],
    workers: Workers = None,
    cluster: OnCluster = False,
    strict: Strict = False,
    as_json: Json = False,
) -> None:
    """Add images to a store, after those it has. Who reads it sees the old store or the new one."""
    from ssl_dist.store import append

    with _making("appending") as progress:
        writers = _writers(workers, cluster, progress)
        manifest = append(source, store, workers=writers, strict=strict, progress=progress)
    store_info_table(store, manifest.model_dump(exclude={"shards"}), as_json)


@store_app.command("merge")
def store_merge(
    stores: Annotated[list[str], typer.Argument(help="Folders of the stores.")],
    destination: Annotated[str, typer.Argument(help="Folder of the new store.")],
    workers: Workers = None,
    cluster: OnCluster = False,
    as_json: Json = False,
) -> None:
    """A new store of all images of several, one after the other."""
    from ssl_dist.store import merge

    with _making("merging") as progress:
        manifest = merge(stores, destination, workers=_writers(workers, cluster, progress), progress=progress)
    store_info_table(destination, manifest.model_dump(exclude={"shards"}), as_json)


def _writers(workers: int | None, cluster: bool, progress: ImageBar) -> int | Writers | None:
    """Who writes the shards."""
    if not cluster:
        return workers
    from cluster.build import tasks

    return tasks(workers, progress.say)


@contextlib.contextmanager
def _making(what: str) -> Iterator[ImageBar]:
    """The bar; on Ctrl-C, what to do next."""
    try:
        with image_progress(what) as progress:
            yield progress
    except KeyboardInterrupt:
        raise Interrupted("stopped; the same command goes on where it was") from None
