"""The commands of image stores: build, append, merge and label write them, info and verify look at them."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ssl_dist.commands.console import ImageBar, image_bar, print_json, say, show
from ssl_dist.commands.options import Json
from ssl_dist.commands.table import CLUSTER_WRITERS, load
from ssl_dist.errors import ConfigError, Interrupted, SslDistError
from ssl_dist.uris import is_remote

if TYPE_CHECKING:
    from ssl_dist.store import Manifest
    from ssl_dist.store.building.writer_pool import Writers

_CLASSES = 20  # classes whose images the table of a store shows

app = typer.Typer(no_args_is_help=True, add_completion=False, help="Build, grow, label and check image stores.")

# Help texts that need a line of their own.
_SOURCE = (
    "Folder of class folders or of images (JPEG, PNG, WebP, BMP), tar of either, WebDataset shards, STL-10's *_X.bin,"
    " CIFAR's Python or binary files, Parquet, Arrow; by path, URI (s3://, gs://) or pattern ('a-{000..127}.tar',"
    " 'b/**/*.jpg')."
)
_SIZE = "Resize the shorter side, cut out the centre; needed where sizes differ. Default: the size of all images."
_ENCODING = "raw: pixels. jpeg: smaller, slower to read; JPEGs of the right size are kept as they are."
_ALPHA = "Ground under transparent pixels: white, black, a colour as #rrggbb; drop shows the colours under them."
_LABELS = "CSV file with the columns key (an image's path in the source) and label, in place of class folders."
_HELD_OUT = (
    "Hold about this share (0.1: a tenth) out, by the hash of image paths, in a second store DESTINATION-held-out."
)
_DUPLICATES = "Add also images that the store has already, with the same key and pixels."
_NEW_CLASSES = "Add classes that the store does not have."
_WORKERS = "Writers at once. Default: one for each core; with --cluster, for each CPU of the cluster."
_CLUSTER = "Write on all nodes of the Ray cluster of RAY_ADDRESS. They see source and destination at the same path."

Store = Annotated[str, typer.Argument(help="Folder of the store, or its URI (s3://bucket/store).")]
Workers = Annotated[int | None, typer.Option(help=_WORKERS)]
OnCluster = Annotated[bool, typer.Option("--cluster", help=_CLUSTER)]
Strict = Annotated[bool, typer.Option("--strict", help="Build nothing if a file has to be left out.")]


@app.command()
def build(
    source: Annotated[str, typer.Argument(help=_SOURCE)],
    destination: Annotated[str, typer.Argument(help="Folder of the new store.")],
    size_px: Annotated[int | None, typer.Option(help=_SIZE)] = None,
    split: Annotated[str, typer.Option(help="Name kept in the manifest.")] = "train",
    encoding: Annotated[str, typer.Option(help=_ENCODING)] = "raw",
    alpha: Annotated[str, typer.Option(help=_ALPHA)] = "white",
    labels_csv: Annotated[str | None, typer.Option(metavar="FILE", help=_LABELS)] = None,
    split_by_hash: Annotated[float, typer.Option(metavar="SHARE", help=_HELD_OUT)] = 0.0,
    workers: Workers = None,
    cluster: OnCluster = False,
    strict: Strict = False,
    as_json: Json = False,
) -> None:
    """Build a store; a build that was killed continues.

    Files that are no readable images are left out, and named in DESTINATION-left-out.txt.
    """
    from ssl_dist import store

    if not 0 <= split_by_hash < 1:
        raise ConfigError(f"--split-by-hash {split_by_hash:g}: it is a share, 0 or more and less than 1")
    # the held-out part first: where a small source leaves nothing for it, nothing has been built in vain
    parts = {destination: (split, (split_by_hash, 1.0))}
    results: list[dict[str, Any]] = []
    if split_by_hash:
        held_out = f"{destination.rstrip('/')}-held-out"
        parts = {held_out: ("held-out", (0.0, split_by_hash)), **parts}
    for path, (name, share) in parts.items():
        title = f"building the {name} store" if split_by_hash else "building"
        with _writing(title, workers, cluster) as (writers, bar):
            manifest = store.build(
                source,
                path,
                split=name,
                size_px=size_px,
                encoding=encoding,
                alpha=alpha,
                share=share,
                labels_csv=labels_csv,
                keep=bool(split_by_hash),
                workers=writers,
                strict=strict,
                progress=bar,
            )
        results.append(show_manifest(path, manifest))
    *held, built = results
    print_json({**built, **({"held_out": held[0]} if held else {})}, as_json)


@app.command()
def append(
    source: Annotated[str, typer.Argument(help="The images to add, given as for `store build`.")],
    store: Annotated[str, typer.Argument(help="Folder of the store.")],
    workers: Workers = None,
    cluster: OnCluster = False,
    strict: Strict = False,
    allow_duplicates: Annotated[bool, typer.Option("--allow-duplicates", help=_DUPLICATES)] = False,
    as_json: Json = False,
) -> None:
    """Add images to a store, after those it has. Readers see the old store or the new one."""
    from ssl_dist import store as stores

    with _writing("appending", workers, cluster) as (writers, bar):
        manifest = stores.append(
            source, store, workers=writers, strict=strict, allow_duplicates=allow_duplicates, progress=bar
        )
    print_json(show_manifest(store, manifest), as_json)


@app.command()
def merge(
    stores: Annotated[list[str], typer.Argument(help="Folders of the stores.")],
    destination: Annotated[str, typer.Argument(help="Folder of the new store.")],
    workers: Workers = None,
    cluster: OnCluster = False,
    as_json: Json = False,
) -> None:
    """Build a new store of all images of several, one store after the other."""
    from ssl_dist import store

    with _writing("merging", workers, cluster) as (writers, bar):
        manifest = store.merge(stores, destination, workers=writers, progress=bar)
    print_json(show_manifest(destination, manifest), as_json)


@app.command()
def label(
    store: Annotated[str, typer.Argument(help="Folder of the store.")],
    file: Annotated[str, typer.Argument(help="CSV file with the columns key and label; none is empty or -1.")],
    new_classes: Annotated[bool, typer.Option("--new-classes", help=_NEW_CLASSES)] = False,
    as_json: Json = False,
) -> None:
    """Give images of a store new labels; those that the file does not name keep theirs. No image is written again."""
    from ssl_dist import store as stores

    manifest = stores.label(store, file, new_classes=new_classes)
    print_json(show_manifest(store, manifest), as_json)


@app.command()
def info(store: Store, as_json: Json = False) -> None:
    """Show what is in a store."""
    from ssl_dist.store import manifest_at
    from ssl_dist.uris import without_secrets

    print_json(show_manifest(without_secrets(store), manifest_at(store)), as_json)


@app.command()
def verify(store: Store, as_json: Json = False) -> None:
    """Check every byte against its checksum; exit code 1 where something is damaged."""
    from ssl_dist.store import ImageStore

    opened = ImageStore(store, verify="off")
    with image_bar("verifying", "reading the first shard") as bar:
        damaged = opened.verify(bar)
    for damage in damaged:
        first, stop = damage.rows
        batch = "labels" if damage.batch < 0 else f"record batch {damage.batch}"
        rows = f"{batch}, samples {first}..{stop - 1}"
        say(f"damaged: {damage.shard}, {rows if stop > first else 'header or footer, no sample lost'}")
    say(f"{opened.name}: {len(opened):,} images, {len(damaged)} damaged places")
    places = [damage._asdict() for damage in damaged]
    print_json({"store": opened.name, "rows": len(opened), "damaged": places}, as_json)
    if damaged:
        raise typer.Exit(1)


def show_manifest(store: str, manifest: Manifest) -> dict[str, Any]:
    """Print the table of a store's contents, and return them for JSON.

    The images of each class are counted where the store is a local one.
    """
    from ssl_dist.store import count_labels
    from ssl_dist.store.decode import describe_alpha

    height, width, _ = manifest.image_shape
    result = {"store": store, **manifest.model_dump(exclude={"shards"})}
    counts, problem = None, ""
    if not is_remote(store):
        try:
            counts = count_labels(store, manifest).tolist()
        except SslDistError as error:
            problem = str(error)
    rows = {
        "images": f"{manifest.rows:,} of {width} x {height} px",
        "classes": _describe_classes(manifest.class_names, counts),
        "resize": manifest.resize,
        "size": f"{manifest.bytes / 1e6:,.1f} MB, {manifest.encoding}",
        "left out": f"{manifest.skipped:,} files",
        "transparency": describe_alpha(manifest.alpha),
    }
    if manifest.one_colour:
        rows["of one colour"] = f"{manifest.one_colour:,}"
    if problem:
        rows["not counted"] = problem
    if counts and counts[-1]:
        rows["without a label"] = f"{counts[-1]:,} image{'s' * (counts[-1] != 1)}"
    result |= {"images_per_class": counts and counts[:-1], "without_label": counts and counts[-1]}
    show(f"{store} ({manifest.split})", rows.items(), result, as_json=False)
    return result


def _describe_classes(names: Sequence[str], counts: Sequence[int] | None) -> str:
    """Return the number of classes, and the names of some with their images if these were counted."""
    if not names:
        return "none"
    shown = [f"{name} ({count:,})" for name, count in zip(names, counts, strict=False)] if counts else list(names)
    more = [f"and {len(names) - _CLASSES:,} more"] if len(names) > _CLASSES else []
    return f"{len(names):,}: {', '.join(shown[:_CLASSES] + more)}"


@contextlib.contextmanager
def _writing(title: str, workers: int | None, cluster: bool) -> Iterator[tuple[int | Writers | None, ImageBar]]:
    """Yield the processes that write shards, of this machine or of the whole cluster, and a bar.

    On Ctrl-C, say what to do next.
    """
    logging.getLogger("ssl_dist.store.building").setLevel(logging.INFO)  # it counts what is passed over
    try:
        with image_bar(title, "listing files") as bar:
            yield load(CLUSTER_WRITERS)(workers, bar.add_note) if cluster else workers, bar
    except KeyboardInterrupt:
        raise Interrupted("stopped; the same command goes on where it was") from None
