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
from ssl_dist.export.facts import facts_of, figures_of, last_name
from ssl_dist.files import free_folder, new_folder

if TYPE_CHECKING:
    from torch import Tensor

    from ssl_dist.encoder import Encoder
    from ssl_dist.export.formats import Format, Source
    from ssl_dist.settings import CheckpointChoice
    from ssl_dist.store import ImageStore

TOLERANCE = 1e-5
"""Largest difference of a feature, as a share of the largest one: float32 sums in another order, many layers deep."""
_COMPARED = 64  # images


class Exported(NamedTuple):
    """What was written.

    Attributes:
        facts: what encoder.json holds.
        difference: largest difference of a feature, as a share of the largest feature.
        num_images: on which the features were compared.
    """

    facts: dict[str, Any]
    difference: float
    num_images: int


def export(
    run: str | Path,
    out: Path,
    format_: str,
    *,
    checkpoint: CheckpointChoice = "newest",
    images: str | None = None,
    licence: str = "",
) -> Exported:
    """Write a run's backbone into a new folder, load it by the format's own loader, and compare features.

    Args:
        run: the run, as ``ssl_dist.load_encoder`` takes it; not an exported folder.
        out: the folder; its name is not taken, or it is empty.
        format_: one of ``formats.FORMATS``.
        checkpoint: which one, where the run has several.
        images: store whose images are compared; None: the run's own.
        licence: of the weights, for the model card.

    Raises:
        ConfigError: the format does not exist or cannot hold this network, or ``out`` is there.
        RunError, CheckpointError, StoreError: the run or the images cannot be read, or ``out`` cannot be written.
        ExportError: the features differ, or the files cannot be made or loaded; there is no folder then.
    """
    from ssl_dist.encoder import Encoder
    from ssl_dist.evaluate.features import forward_size, load_method
    from ssl_dist.export.card import card
    from ssl_dist.export.formats import FORMATS, Source

    if format_ not in FORMATS:
        raise ConfigError(f"--format {format_}: it is one of {', '.join(FORMATS)}")
    out = free_folder(out, "OUT", "give a new folder")
    chosen = FORMATS[format_]
    figures = figures_of(run)
    with fetched(run, checkpoint) as found:
        encoder = Encoder(load_method(found).backbone, max(found.config.view_sizes), forward_size(found.config))
        source = Source(encoder.backbone, found.config.backbone, encoder.image_size)
        chosen.check(source)
        if missing := [name for name in chosen.libraries if importlib.util.find_spec(name) is None]:
            raise ConfigError(f"--format {format_} needs {', '.join(missing)}: pip install 'ssl_dist[{format_}]'")
        opened = _open(images or found.config.data.store)
        inputs = _inputs(encoder, opened)
        facts = {"format": format_, "licence": licence, **facts_of(found, encoder, str(run), chosen.libraries)}
    with _made(out) as aside:
        difference = _written(chosen, source, aside, inputs)
        facts["compared"] = {"store": last_name(opened.name), "images": len(inputs), "largest_difference": difference}
        facts["sha256"] = {path.name: sha256(path) for path in sorted(aside.iterdir())}
        (aside / CARD).write_text(card(facts, chosen.usage(source), chosen.normalises, figures), encoding="utf-8")
        write_facts(aside, facts)
    return Exported(facts, difference, len(inputs))


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
    ours = frozen_features(source.backbone, inputs)
    if ours.shape != theirs.shape:
        raise ExportError(f"features are {list(ours.shape)}, and as they are loaded {list(theirs.shape)}")
    largest = float(ours.abs().max())
    if largest == 0:
        raise ExportError("all features of the run's encoder are 0, so nothing can be compared: no folder was written")
    difference = float((ours - theirs).abs().max()) / largest
    if not difference <= TOLERANCE:  # also NaN
        raise ExportError(
            f"features differ by {difference:.1e} of the largest, more than {TOLERANCE:.0e}: no folder was written"
        )
    return difference
