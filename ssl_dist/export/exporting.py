"""Export an encoder into a folder, which is there only if the format's own loader gives the same features."""

from __future__ import annotations

import importlib.util
import json
import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ssl_dist import __version__
from ssl_dist.checkpoint import Checkpoint, fetched, run_directory
from ssl_dist.checkpoint.exported import CARD, FACTS, sha256
from ssl_dist.errors import ConfigError, ExportError, RunError, SslDistError
from ssl_dist.files import expect_folder, replacing, to_json
from ssl_dist.uris import is_remote

if TYPE_CHECKING:
    from torch import Tensor, nn

    from ssl_dist.encoder import Encoder
    from ssl_dist.export.formats import Format, Source
    from ssl_dist.settings import CheckpointChoice

TOLERANCE = 1e-5
"""Largest difference of a feature, as a share of the largest one: float32 sums in another order, many layers deep."""
_COMPARED = 64  # images
_NETWORK = {"name", "stem", "width", "dropout", "normalisation"}
_NOT_SHOWN = {"data", "facts", "checkpoint", "monitor", "cluster"}  # places and machines, not the experiment
_LIBRARIES = ("torch", "torchvision", "safetensors", "numpy")


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
        run: as for ``ssl_dist.load_encoder``, of a run.
        format_: one of ``formats.FORMATS``.
        checkpoint: which one, where the run has several.
        images: store whose images are compared; None: the run's own.
        licence: of the weights, for the model card.

    Raises:
        ConfigError: the format does not exist or cannot hold this network, or ``out`` is there.
        RunError, CheckpointError, StoreError: the run or the images cannot be read.
        ExportError: the features differ, or the loader refuses the file; nothing was written.
    """
    from ssl_dist.encoder import Encoder
    from ssl_dist.evaluate.features import forward_size, load_method
    from ssl_dist.export.card import write_card
    from ssl_dist.export.formats import FORMATS, Source

    if format_ not in FORMATS:
        raise ConfigError(f"--format {format_}: it is one of {', '.join(FORMATS)}")
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise ConfigError(f"{out} is there: give a folder that is not")
    expect_folder(out)
    chosen = FORMATS[format_]
    if missing := [name for name in chosen.libraries if importlib.util.find_spec(name) is None]:
        raise ConfigError(f"--format {format_} needs {', '.join(missing)}: pip install 'ssl_dist[{format_}]'")
    with fetched(run, checkpoint) as found:
        encoder = Encoder(load_method(found).backbone, max(found.config.view_sizes), forward_size(found.config))
        source = Source(encoder.backbone, found.config.backbone, encoder.image_size)
        chosen.check(source)
        inputs = _inputs(encoder, images or found.config.data.store)
        facts = {"format": format_, "licence": licence, **_facts(found, source, str(run), chosen.libraries)}
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with replacing(out) as aside:
            aside.mkdir()
            chosen.write(source, aside)
            difference = _difference(source, _loaded(chosen, source, aside), inputs)
            facts["compared"] = {"images": len(inputs), "largest_difference": difference}
            facts["sha256"] = {path.name: sha256(path) for path in sorted(aside.iterdir()) if path.is_file()}
            write_card(aside / CARD, facts, chosen.usage(source), _figures(run))
            (aside / FACTS).write_text(json.dumps(json.loads(to_json(facts)), indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        raise RunError(f"{out} cannot be written ({error.strerror})") from None
    return Exported(facts, difference, len(inputs))


def _inputs(encoder: Encoder, store: str) -> Tensor:
    """Return the encoder's inputs of some images that are spread over a store, ``[n, 3, S, S]``."""
    import torch

    from ssl_dist.store import ImageStore

    try:
        opened = ImageStore(store)
    except SslDistError as error:
        raise type(error)(f"{error}; features are compared on real images: name a store by --images") from None
    ids = np.unique(np.linspace(0, len(opened) - 1, _COMPARED).astype(np.int64))
    return torch.stack([encoder.transform(image) for image in opened.gather(ids)])


def _loaded(chosen: Format, source: Source, folder: Path) -> nn.Module:
    """Load the files by the format's own loader.

    Raises:
        ExportError: it refuses them.
    """
    try:
        return chosen.load(source, folder)
    except (RuntimeError, ValueError, KeyError) as error:
        raise ExportError(f"the files cannot be loaded ({error}): nothing was written") from None


def _difference(source: Source, loaded: nn.Module, inputs: Tensor) -> float:
    """Return the largest difference of a feature, as a share of the largest one.

    Raises:
        ExportError: it is over ``TOLERANCE``.
    """
    from ssl_dist.evaluate.features import frozen_features

    ours, theirs = frozen_features(source.backbone, inputs), frozen_features(loaded, inputs)
    if ours.shape != theirs.shape:
        raise ExportError(f"features are {list(ours.shape)}, and as they are loaded {list(theirs.shape)}")
    difference = float((ours - theirs).abs().max() / ours.abs().max())
    if not difference <= TOLERANCE:  # also NaN
        raise ExportError(
            f"features differ by {difference:.1e} of the largest, more than {TOLERANCE:.0e}: nothing was written"
        )
    return difference


def _facts(found: Checkpoint, source: Source, run: str, libraries: Sequence[str]) -> dict[str, Any]:
    config = found.config
    return {
        "network": config.backbone.model_dump(mode="json", include=_NETWORK),
        "dim": source.backbone.dim,
        "image_size": source.image_size,
        "together": min(config.batch.micro, 256),
        "normalisation": source.backbone.normalisation,
        "run": Path(run).name,
        "step": found.step,
        "epochs": round(found.step / config.plan().steps_per_epoch, 3),
        "probe": found.score,
        "method": config.method.name,
        "store": Path(config.data.store).name,
        "num_images": config.facts.num_images,
        "store_digest": config.facts.store_digest,
        "config": config.model_dump(mode="json", exclude=_NOT_SHOWN, exclude_none=True),
        "versions": {"ssl_dist": __version__, "python": platform.python_version(), **_versions(libraries)},
    }


def _versions(more: Sequence[str]) -> Mapping[str, str]:
    return {name: version(name) for name in (*_LIBRARIES, *more)}


def _figures(run: str | Path) -> dict[str, Any] | None:
    """Return what ``evaluate all`` wrote beside the run; None where it has not measured it."""
    if is_remote(run):
        return None
    from ssl_dist.report.evaluation import FILE

    file = run_directory(Path(run)) / FILE
    try:
        content: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content
