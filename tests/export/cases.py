"""Runs that the tests export, and their cards' scripts, which are run in a process that cannot import us."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import ssl_dist
from ssl_dist.checkpoint import State, locate
from ssl_dist.evaluate.features import load_method
from ssl_dist.export import export
from ssl_dist.export.formats import HEADS, Part
from ssl_dist.store import ImageStore
from tests.helpers import resolved_config, save
from tests.test_backbones import TORCHVISION

BUILT_IN: dict[str, dict[str, Any]] = {
    "resnet8": {"name": "resnet8", "stem": "half", "width": 8},
    "resnet20": {"name": "resnet20", "stem": "standard", "normalisation": "imagenet"},
    "wrn45-2": {"name": "wrn45-2", "stem": "small"},
    "convnet": {"name": "convnet", "dropout": 0.3},
    "autoencoder": {"name": "autoencoder"},
}
OF_TORCHVISION: dict[str, dict[str, Any]] = {
    "resnet18": {"name": "resnet18", "normalisation": {"mean": [0.4, 0.5, 0.6], "std": [0.2, 0.3, 0.4]}},
    "mobilenet_v3_small": {"name": "mobilenet_v3_small", "normalisation": "inception"},
}
STEMS = {"resnet18, stem small": {"name": "resnet18", "stem": "small"}}
NETWORKS = {**BUILT_IN, **OF_TORCHVISION, **STEMS}
CLASSIFIERS: dict[str, dict[str, Any]] = {  # with the size of a hidden layer
    "resnet8 classifies": {"hidden": None, **BUILT_IN["resnet8"]},
    "resnet20 classifies": {"hidden": 6, **BUILT_IN["resnet20"]},
    "mobilenet_v3_small classifies": {"hidden": None, **OF_TORCHVISION["mobilenet_v3_small"]},
}
Case = tuple[str, Part, str]
"""A run, and the part and the format of an export."""


def write_run(run: Path, store: Path, seed: int, **network: Any) -> Path:
    """Write a run whose tensors are all different, so that one in the place of another would be noticed.

    Args:
        network: settings of the backbone; with ``hidden`` the run is supervised, and this is its classifier's setting.
    """
    size_px = {**TORCHVISION, "resnet8": 16, "vit_b_32": 64}.get(network["name"], 32)
    method = {"method": {"name": "supervised", "hidden": network.pop("hidden")}} if "hidden" in network else {}
    config = resolved_config(store, backbone=network, probe=None, seed=seed, augment__size_px=size_px, **method)
    made, generator = config.initial_method().train(), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in made.parameters():
            if parameter.min() == parameter.max():  # of norms, biases and class tokens
                parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.02)
        features = made.backbone(torch.rand(8, 3, size_px, size_px, generator=generator))
        made.get_submodule("classifier" if method else "projection_head")(features)
    save(State(made.state_dict(), {}), run, 3, config)
    return run


# The scripts of the cards, each in its folder, in one process that cannot import us.
ALONE = """
import contextlib, json, os, sys
import numpy, torch
from PIL import Image

sys.modules["ssl_dist"] = None
sys.path.insert(0, "")
for folder, code in json.load(sys.stdin):
    os.chdir(folder)
    sys.modules.pop("model", None)
    images = numpy.load("images.npy")
    here = {"images": torch.from_numpy(images)}
    if "AutoImageProcessor" in code:
        pixels = numpy.rint(255 * images).astype("uint8").transpose(0, 2, 3, 1)
        here = {"images": [Image.fromarray(one) for one in pixels]}
    with torch.no_grad():
        exec(code, here)
    [found] = [here[name] for name in ("features", "embeddings", "logits") if name in here]
    numpy.save("found.npy", numpy.asarray(found))
"""


def inputs_of(encoder: ssl_dist.Encoder, store: Path, count: int = 5) -> Tensor:
    pixels = ImageStore(store).gather(np.arange(count))
    return torch.stack([encoder.transform(image) for image in pixels])


def export_all(cases: Sequence[Case], runs: Mapping[str, Path], store: Path, folder: Path) -> dict[Case, Path]:
    """Export every case, and run its card's script; return the folders, each with images.npy and found.npy."""
    folders, scripts = {}, []
    for number, (name, part, format_) in enumerate(cases):
        out = folders[name, part, format_] = folder / str(number)
        done = export(runs[name], out, format_, part=part)
        assert done.difference <= 1e-5
        assert done.num_images == 51
        np.save(out / "images.npy", inputs_of(ssl_dist.load_encoder(runs[name]), store).numpy())
        [usage] = re.findall(r"```python\n(.*?)```", (out / "README.md").read_text(), re.DOTALL)
        scripts.append((str(out), usage))
    subprocess.run([sys.executable, "-c", ALONE], input=json.dumps(scripts), text=True, check=True)
    return folders


@torch.no_grad()
def expect_the_outputs(folder: Path, run: Path, part: Part) -> None:
    """Expect what the card's script computed to be what the run's network gives, of this part."""
    images = torch.from_numpy(np.load(folder / "images.npy"))
    method = load_method(locate(run)).eval()
    expected = method.backbone(images)
    if part != "backbone":
        expected = method.get_submodule(HEADS[part])(expected)
    found = np.load(folder / "found.npy")
    assert np.abs(found - expected.numpy()).max() <= 1e-5 * np.abs(expected.numpy()).max()
    assert np.abs(found).max() > 0
