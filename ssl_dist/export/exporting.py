"""Export an encoder into a folder, which is there only if the format's own loader gives the same features."""

from __future__ import annotations

import contextlib
import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ssl_dist.checkpoint import fetched
from ssl_dist.checkpoint.exported import CARD, sha256, write_facts
from ssl_dist.errors import ConfigError, ExportError, RunError, SslDistError
from ssl_dist.export.facts import facts_of, last_name
from ssl_dist.export.figures import figures_of
from ssl_dist.files import free_folder, new_folder

if TYPE_CHECKING:
    from torch import Tensor

    from ssl_dist.config import ResolvedConfig
    from ssl_dist.encoder import Encoder
    from ssl_dist.export.formats import Format, Part, Source
    from ssl_dist.methods import Method
    from ssl_dist.settings import CheckpointChoice
    from ssl_dist.store import ImageStore

TOLERANCE = 1e-5
"""Largest difference of a feature, as a share of the largest one: float32 sums in another order, many layers deep."""
_COMPARED = 64  # images


class Exported(NamedTuple):
    """What was written.

    Attributes:
        facts: what encoder.json holds.
        difference: largest difference of a feature (or an output of the head), as a share of the largest one.
        num_images: on which they were compared.
        outputs: what the network gives, in one word.
    """

    facts: dict[str, Any]
    difference: float
    num_images: int
    outputs: str


def export(
    run: str | Path,
    out: Path,
    format_: str,
    *,
    part: Part = "backbone",
    checkpoint: CheckpointChoice = "newest",
    images: str | None = None,
    licence: str = "",
) -> Exported:
    """Write a run's encoder into a new folder, load it by the format's own loader, and compare its outputs.

    Args:
        run: the run, as ``ssl_dist.load_encoder`` takes it; not an exported folder.
        out: the folder; its name is not taken, or it is empty.
        format_: one of ``formats.FORMATS``.
        part: the backbone alone, or with its projection head, or with its classifier.
        checkpoint: which one, where the run has several.
        images: store whose images are compared; None: the run's own.
        licence: of the weights, for the model card.

    Raises:
        ConfigError: the format does not exist or cannot hold this network, the run has no such part, or ``out`` is
            there.
        RunError, CheckpointError, StoreError: the run or the images cannot be read, or ``out`` cannot be written.
        ExportError: the features differ, or the files cannot be made or loaded; there is no folder then.
    """
    from ssl_dist.encoder import Encoder
    from ssl_dist.evaluate.features import forward_size, load_method
    from ssl_dist.export.card import card
    from ssl_dist.export.formats import FORMATS, HEADS

    if format_ not in FORMATS:
        raise ConfigError(f"--format {format_}: it is one of {', '.join(FORMATS)}")
    if part != "backbone" and part not in HEADS:
        raise ConfigError(f"--part {part}: it is one of backbone, {', '.join(HEADS)}")
    out = free_folder(out, "OUT", "give a new folder")
    chosen = FORMATS[format_]
    with fetched(run, checkpoint) as found:
        method = load_method(found)
        encoder = Encoder(method.backbone, max(found.config.view_sizes), forward_size(found.config))
        source = _source(method, found.config, encoder.image_size, part)
        chosen.check(source)
        if missing := [name for name in chosen.libraries if importlib.util.find_spec(name) is None]:
            raise ConfigError(f"--format {format_} needs {', '.join(missing)}: pip install 'ssl_dist[{format_}]'")
        opened = _open(images or found.config.data.store)
        inputs = _inputs(encoder, opened)
        facts = {
            **{"format": format_, "part": part, "outputs": source.num_outputs, "classes": list(source.classes)},
            **{"licence": licence, **facts_of(found, encoder, str(run), chosen.libraries)},
        }
    figures = figures_of(run, found.step)
    with _made(out) as aside:
        difference = _written(chosen, source, aside, inputs)
        facts["compared"] = {"store": last_name(opened.name), "images": len(inputs), "largest_difference": difference}
        facts["sha256"] = {path.name: sha256(path) for path in sorted(aside.iterdir())}
        (aside / CARD).write_text(card(facts, chosen, source, figures), encoding="utf-8")
        write_facts(aside, facts)
    return Exported(facts, difference, len(inputs), source.outputs)


def _source(method: Method, config: ResolvedConfig, image_size: int, part: Part) -> Source:
    """Return what is exported.

    Raises:
        ConfigError: the method has no such part.
    """
    from torch import nn

    from ssl_dist.data.images import class_names
    from ssl_dist.export.formats import HEADS, Source

    source = Source(method.backbone, config.backbone, image_size, part)
    if part == "backbone":
        return source
    head = getattr(method, HEADS[part], None)
    if not isinstance(head, nn.Module):
        kind = {"head": "projection head", "classifier": "classifier"}[part]
        there = next((other for other, name in HEADS.items() if hasattr(method, name)), "backbone")
        raise ConfigError(f"--part {part}: a run of {config.method.name} has no {kind}: take --part {there}")
    source = source._replace(head=head.eval())
    return source._replace(classes=class_names(config, source.num_outputs)) if part == "classifier" else source


@contextlib.contextmanager
def _made(out: Path) -> Iterator[Path]:
    """Make the folder as ``files.new_folder`` does.

    Raises:
        RunError: a file or the folder cannot be written; neither is there then.
    """
    try:
        with new_folder(out) as aside:
            yield aside
    except OSError as error:
        raise RunError(f"{out} cannot be written ({error.strerror or error})") from None


def _open(store: str) -> ImageStore:
    from ssl_dist.store import ImageStore

    try:
        return ImageStore(store)
    except SslDistError as error:
        raise type(error)(f"{error}; features are compared on real images: name a store by --images") from None


def _inputs(encoder: Encoder, store: ImageStore) -> Tensor:
    """Return the encoder's inputs of some images that are spread over a store, ``[n, 3, S, S]``."""
    import torch

    ids = np.unique(np.linspace(0, len(store) - 1, _COMPARED).astype(np.int64))
    return torch.stack([encoder.transform(image) for image in store.gather(ids)])


def _written(chosen: Format, source: Source, folder: Path, inputs: Tensor) -> float:
    """Write the files and load them; return the largest difference of a feature, as a share of the largest one.

    Raises:
        ExportError: the format's library cannot write or load them, or the difference is over ``TOLERANCE``.
    """
    import torch

    from ssl_dist.evaluate.features import frozen_features

    try:
        chosen.write(source, folder)
        with torch.no_grad():  # as the loader leaves it: a network in training mode would give other features
            theirs = chosen.load(source, folder)(inputs)
    except OSError:
        raise
    except Exception as error:  # each library has classes of its own
        reason = " ".join(str(error).split()) or repr(error)
        raise ExportError(f"the files cannot be made or loaded ({reason}): no folder was written") from error
    head = torch.nn.Identity() if source.head is None else source.head
    ours = frozen_features(torch.nn.Sequential(source.backbone, head), inputs)
    if ours.shape != theirs.shape:
        raise ExportError(f"{source.outputs} are {list(ours.shape)}, and as they are loaded {list(theirs.shape)}")
    largest = float(ours.abs().max())
    if largest == 0:
        raise ExportError(f"all {source.outputs} of the run are 0, so nothing can be compared: no folder was written")
    difference = float((ours - theirs).abs().max()) / largest
    if not difference <= TOLERANCE:  # also NaN
        raise ExportError(
            f"{source.outputs} differ by {difference:.1e} of the largest, more than {TOLERANCE:.0e}: no folder was"
            " written"
        )
    return difference
