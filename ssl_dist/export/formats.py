"""The formats of an exported encoder: which files each has, and how its own loader reads them."""

from __future__ import annotations

import contextlib
import importlib.util
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ssl_dist.backbones import Backbone, catalogue
from ssl_dist.checkpoint.exported import WEIGHTS
from ssl_dist.checkpoint.files import save_tensors
from ssl_dist.errors import ConfigError
from ssl_dist.export.standalone import model_source
from ssl_dist.settings import BackboneConfig

_SOURCE, _SCRIPT = "model.py", "model.pt"
_TRACED = 2  # images of the batch that TorchScript traces


class Source(NamedTuple):
    """A trained backbone on the CPU, in evaluation mode, the settings that it was built by, and its image size."""

    backbone: Backbone
    settings: BackboneConfig
    image_size: int


class Format(NamedTuple):
    """One way to write an encoder.

    Attributes:
        help: what it is for, in one line.
        check: refuses an encoder that the format cannot hold.
        write: writes the files into a folder.
        load: reads them by the format's own loader, which refuses a tensor that is missing or left over; the module
            takes images ``[N, 3, S, S]`` in [0, 1].
        usage: returns Python code for the model card.
    """

    help: str
    check: Callable[[Source], None]
    write: Callable[[Source, Path], None]
    load: Callable[[Source, Path], nn.Module]
    usage: Callable[[Source], str]


class Normalised(nn.Module):
    """A network behind the normalisation of its images, if it has one."""

    mean: Tensor
    std: Tensor

    def __init__(self, body: nn.Module, backbone: Backbone) -> None:
        super().__init__()
        self.body = body
        mean, std = backbone.normalisation or ((0.0,) * 3, (1.0,) * 3)
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        features: Tensor = self.body((images - self.mean) / self.std)
        return features


def _write_weights(source: Source, folder: Path) -> None:
    save_tensors(source.backbone.body.state_dict(), folder / WEIGHTS)


def _write_standalone(source: Source, folder: Path) -> None:
    backbone, settings, image_size = source
    _write_weights(source, folder)
    text = model_source(settings, backbone.dim, image_size, backbone.normalisation)
    (folder / _SOURCE).write_text(text, encoding="utf-8")


def _load_standalone(source: Source, folder: Path) -> nn.Module:
    spec = importlib.util.spec_from_file_location("_exported_model", folder / _SOURCE)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    network: nn.Module = module.load(folder)
    return network


def _check_torchvision(source: Source) -> None:
    name, stem = source.settings.name, source.settings.stem
    if name in catalogue.BUILT_IN:
        raise ConfigError(f"torchvision has no network {name}: export it with --format safetensors")
    if stem != "standard":
        raise ConfigError(
            f"torchvision's {name} has no stem {stem}, only the standard one: export it with --format safetensors"
        )


def _load_torchvision(source: Source, folder: Path) -> nn.Module:
    here: dict[str, Any] = {}
    exec(_torchvision_code(source, folder / WEIGHTS), here)  # what the model card says: so it is known to work
    return Normalised(here["network"], source.backbone)


def _torchvision_code(source: Source, file: Path) -> str:
    from ssl_dist.backbones.torchvision_models import options_of

    options = options_of(source.settings.name, source.backbone.image_size)
    given = "".join(f", {name}={value!r}" for name, value in options.items())
    return (
        "import torch, torchvision\n"
        "from safetensors.torch import load_file\n\n"
        f'network = torchvision.models.get_model("{source.settings.name}", weights=None{given})\n'
        f'network.set_submodule("{source.backbone.classifier}", torch.nn.Identity())\n'
        f"network.load_state_dict(load_file({str(file)!r}))\n"
        "network.eval()\n"
    )


def _torchvision_usage(source: Source) -> str:
    size, images = source.image_size, "images"
    if source.backbone.normalisation:
        mean, std = source.backbone.normalisation
        images = f"torchvision.transforms.functional.normalize(images, {mean}, {std})"
    return (
        f"{_torchvision_code(source, Path(WEIGHTS))}"
        f"features = network({images})  # images: float32 [N, 3, {size}, {size}] in [0, 1]\n"
    )


def _write_script(source: Source, folder: Path) -> None:
    network, size = Normalised(source.backbone.body, source.backbone).eval(), source.image_size
    with torch.no_grad(), _without_warnings():
        traced: Any = torch.jit.trace(network, torch.rand(_TRACED, 3, size, size), check_trace=False)
        traced.save(str(folder / _SCRIPT))


def _load_script(source: Source, folder: Path) -> nn.Module:
    with _without_warnings():
        loaded: nn.Module = torch.jit.load(str(folder / _SCRIPT))
    return loaded


@contextlib.contextmanager
def _without_warnings() -> Iterator[None]:
    """Leave out that torch wants torch.export to be used, and what tracing might get wrong: features are compared."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _any(source: Source) -> None:
    """Refuse nothing."""


def _usage(load: str) -> Callable[[Source], str]:
    def usage(source: Source) -> str:
        size = source.image_size
        return f"{load}\nfeatures = network(images)  # images: float32 [N, 3, {size}, {size}] in [0, 1]\n"

    return usage


FORMATS = {
    "safetensors": Format(
        "weights, and a model.py that needs torch alone",
        *(_any, _write_standalone, _load_standalone),
        _usage("from model import load  # model.py of this folder\n\nnetwork = load()"),
    ),
    "torchvision": Format(
        "weights by torchvision's names, for its own network",
        *(_check_torchvision, _write_weights, _load_torchvision, _torchvision_usage),
    ),
    "torchscript": Format(
        "one file that torch.jit.load reads, also in C++",
        *(_any, _write_script, _load_script),
        _usage('import torch\n\nnetwork = torch.jit.load("model.pt")'),
    ),
}
