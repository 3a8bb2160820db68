"""What an exported encoder says of itself: the run that it comes from, and its settings."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ssl_dist import __version__, machine
from ssl_dist.backbones.catalogue import TIMM
from ssl_dist.checkpoint import Checkpoint, run_directory
from ssl_dist.uris import is_remote, split_uri, without_secrets

if TYPE_CHECKING:
    from ssl_dist.config import ResolvedConfig
    from ssl_dist.encoder import Encoder

_NETWORK = {"name", "stem", "width", "dropout", "options", "normalisation"}
_OF_THE_MACHINE: Any = {"data": {"store", "cache"}, "facts": True, "checkpoint": True, "monitor": True, "cluster": True}
_PATHS = (("backbone", "weights"), ("probe", "label_file"), ("data", "label_file"))
_LIBRARIES = ("torch", "torchvision", "safetensors", "numpy")


def facts_of(found: Checkpoint, encoder: Encoder, run: str, libraries: Sequence[str]) -> dict[str, Any]:
    """Return what encoder.json says of an encoder; no path and no key of the machine that exports it is in it.

    Args:
        run: as it was given by the user.
        libraries: whose versions are told beside those of our own requirements.
    """
    config = found.config
    of_network = ("timm",) if config.backbone.name.startswith(TIMM) else ()
    return {
        "network": config.backbone.model_dump(mode="json", include=_NETWORK),
        "dim": encoder.dim,
        "image_size": encoder.image_size,
        "together": encoder.together,
        "normalisation": encoder.backbone.normalisation,
        "run": _run_name(run),
        "step": found.step,
        "epochs": round(found.step / config.plan().steps_per_epoch, 3),
        "probe": found.score,
        "method": config.method.name,
        "store": last_name(config.data.store),
        "num_images": config.facts.num_images,
        "store_digest": config.facts.store_digest,
        "weights_digest": config.facts.weights_digest,
        "config": _settings(config),
        "exported_with": {
            "ssl_dist": __version__,
            "python": machine.python_version(),
            **{name: machine.version_of(name) for name in (*_LIBRARIES, *of_network, *libraries)},
        },
    }


def _settings(config: ResolvedConfig) -> dict[str, Any]:
    """Return the settings of the experiment, with names in place of paths."""
    tree = config.model_dump(mode="json", exclude=_OF_THE_MACHINE, exclude_none=True)
    for section, key in _PATHS:
        if place := tree.get(section, {}).get(key):
            tree[section][key] = last_name(place)
    return tree


def _run_name(run: str) -> str:
    """Return the name of a run, of which one checkpoint may be given."""
    if not is_remote(run):
        return run_directory(Path(run)).absolute().name
    place, last = split_uri(run)
    return last_name(place if last.startswith("step-") else run)


def last_name(place: str) -> str:
    """Return the last name of a path or a URI, without the user's key and the URI's options."""
    return Path(without_secrets(place)).name
