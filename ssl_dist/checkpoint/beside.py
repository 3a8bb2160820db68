"""Facts about a network that files beside its weights tell: our encoder.json, those of transformers and of timm."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, NamedTuple

from ssl_dist.backbones import KNOWN_INPUTS, MeanStd
from ssl_dist.checkpoint.exported import FACTS
from ssl_dist.checkpoint.files import MODEL, NORMALISATION

_WEIGHTS = (MODEL, "pytorch_model.bin")  # names of weights that lie in a folder of their own
_CONFIG, _PREPROCESSOR = "config.json", "preprocessor_config.json"


class Told(NamedTuple):
    """A normalisation of images as ``backbone.normalisation`` has it, and the file that tells it."""

    normalisation: Any
    file: str


def normalisation(weights: Path) -> Told | None:
    """Return the normalisation of the images that weights learned from; None: no file beside them tells it."""
    readers = {FACTS: _of_export, _PREPROCESSOR: _of_transformers, _CONFIG: _of_timm}
    for name, reader in readers.items():
        try:
            if told := reader(_read(weights, name)):
                return Told(told, name)
        except (ValueError, KeyError, TypeError, AttributeError):
            continue  # of another kind
    return None


def num_heads(weights: Path) -> int | None:
    """Return the number of attention heads of transformers' network; None: no file beside the weights tells it."""
    try:
        found = _read(weights, _CONFIG).get("num_attention_heads")
    except (ValueError, AttributeError):
        return None
    return found if isinstance(found, int) else None


def as_setting(mean_std: MeanStd) -> Any:
    """Return a normalisation as its setting has it."""
    named = next((name for name, known in KNOWN_INPUTS.items() if known == mean_std), None)
    return named or {"mean": list(mean_std[0]), "std": list(mean_std[1])}


def _read(weights: Path, name: str) -> Any:
    """Return what a file of JSON in the folder of weights says; an empty mapping where there is none."""
    try:
        if weights.name in _WEIGHTS:
            return json.loads((weights.parent / name).read_text(encoding="utf-8"))
    except OSError:
        pass
    return {}


def _of_export(facts: Any) -> Any:
    return "none" if facts[NORMALISATION] is None else _setting(*facts[NORMALISATION])


def _of_transformers(told: Any) -> Any:
    if not told or not math.isclose(told.get("rescale_factor", 1 / 255), 1 / 255, rel_tol=1e-6):
        return None
    return _setting(told["image_mean"], told["image_std"]) if told.get("do_normalize", True) else "none"


def _of_timm(told: Any) -> Any:
    return _setting(told["pretrained_cfg"]["mean"], told["pretrained_cfg"]["std"])


def _setting(mean: Any, std: Any) -> Any:
    return as_setting((tuple(map(float, mean)), tuple(map(float, std))))
