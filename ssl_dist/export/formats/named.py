"""Weights by the names that another library's network of the same architecture has: torchvision's, timm's.

A plain ViT of timm is one of torchvision's, too: it has the same layers under other names.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor, nn

from ssl_dist.backbones import WithoutValues, catalogue
from ssl_dist.checkpoint.exported import WEIGHTS
from ssl_dist.checkpoint.files import save_tensors
from ssl_dist.checkpoint.public_names import TORCHVISION_VIT_AND_HEAD, renamed
from ssl_dist.errors import ConfigError
from ssl_dist.export.formats.base import Format, Normalised, Source, expect_head_of
from ssl_dist.export.standalone import timm_arguments

# timm's names of torchvision's transformers; its ResNets have torchvision's names, of networks and of tensors.
_TIMM_VITS = {
    "vit_b_16": "vit_base_patch16_224",
    "vit_b_32": "vit_base_patch32_224",
    "vit_l_16": "vit_large_patch16_224",
    "vit_l_32": "vit_large_patch32_224",
    "vit_h_14": "vit_huge_patch14_224",
}
_TIMM_RESNETS = ("resnet", "resnext", "wide_resnet")

# Those of torchvision whose classifier is a convolution before the pooling, or a linear layer without a bias.
_OTHER_CLASSIFIERS = ("squeezenet", "maxvit")

Code = Callable[[Source, Path], str]
"""Returns Python code that makes ``network`` and loads a file of weights into it, all of them."""


def _check_torchvision(source: Source) -> None:
    name = source.settings.name
    _expect_network_of("torchvision", source, is_vit(source) or not name.startswith(catalogue.TIMM))
    if name.startswith("mnasnet"):
        raise ConfigError("torchvision's MNASNet refuses tensors of a file: export it with --format safetensors")
    if source.head is not None and name.startswith(_OTHER_CLASSIFIERS):
        raise ConfigError(f"torchvision's {name} has another kind of classifier: export it with --format safetensors")


def _check_timm(source: Source) -> None:
    name = source.settings.name
    _expect_network_of("timm", source, name in _TIMM_VITS or name.startswith((catalogue.TIMM, *_TIMM_RESNETS)))


def _expect_network_of(library: str, source: Source, known: bool) -> None:
    """Refuse a network that a library does not have.

    Raises:
        ConfigError: it has not.
    """
    name, stem = source.settings.name, source.settings.stem
    if not known or name in catalogue.BUILT_IN:
        raise ConfigError(f"{library} has no network {name}: export it with --format safetensors")
    if stem != "standard":
        raise ConfigError(
            f"{library}'s {name} has no stem {stem}, only the standard one: export it with --format safetensors"
        )
    expect_head_of(library, source)


def is_vit(source: Source) -> bool:
    """Return whether the name says so; a ViT of timm that is no plain one is refused when it has been written."""
    return network_name(source).startswith("vit_")


def network_name(source: Source) -> str:
    """Return the name of a network of torchvision, or of timm without the name of the library and a tag."""
    return source.settings.name.removeprefix(catalogue.TIMM).partition(".")[0]


class VitShape(NamedTuple):
    """The numbers that make a plain ViT, by torchvision's names."""

    patch_size: int
    num_layers: int
    num_heads: int
    hidden_dim: int
    mlp_dim: int

    @classmethod
    def of(cls, source: Source) -> VitShape:
        """Read them from the network."""
        body = source.backbone.body
        tensors = {timm_tensor(name): tensor for name, tensor in body.state_dict().items()}
        num_heads: Any = next(module.num_heads for module in body.modules() if hasattr(module, "num_heads"))
        return cls(
            patch_size=tensors["patch_embed.proj.weight"].shape[-1],
            num_layers=len({name.split(".")[1] for name in tensors if name.startswith("blocks.")}),
            num_heads=num_heads,
            hidden_dim=tensors["norm.weight"].numel(),
            mlp_dim=len(tensors["blocks.0.mlp.fc1.weight"]),
        )


def _write_torchvision(source: Source, folder: Path) -> None:
    tensors, names = tensors_of(source), dict[str, str]()
    if _is_timms(source):
        import torchvision

        with WithoutValues():
            network = torchvision.models.VisionTransformer(source.image_size, **VitShape.of(source)._asdict())
        names = {timm_tensor(name): name for name in network.state_dict()}
    save_tensors({names.get(name, name): tensor for name, tensor in tensors.items()}, folder / WEIGHTS)


def _is_timms(source: Source) -> bool:
    return source.settings.name.startswith(catalogue.TIMM)


def _write_timm(source: Source, folder: Path) -> None:
    tensors = tensors_of(source).items()
    save_tensors(
        {name if _is_timms(source) else timm_tensor(name): tensor for name, tensor in tensors}, folder / WEIGHTS
    )


def tensors_of(source: Source) -> dict[str, Tensor]:
    """Return the tensors by torchvision's names, with those of the classifier if it is exported."""
    head = source.head.state_dict() if source.head else {}
    return {
        **source.backbone.body.state_dict(),
        **{f"{source.backbone.classifier}.{name}": tensor for name, tensor in head.items()},
    }


def timm_tensor(name: str) -> str:
    """Return timm's name of a tensor of a ResNet or a ViT, of which torchvision's name is given."""
    return renamed(name, TORCHVISION_VIT_AND_HEAD)


def _torchvision_code(source: Source, file: Path) -> str:
    from ssl_dist.backbones.torchvision_models import options_of

    if is_timms := _is_timms(source):
        options: dict[str, Any] = {"image_size": source.image_size, **VitShape.of(source)._asdict()}
    else:
        options = options_of(source.settings.name, source.backbone.image_size)
    removed, classifier = "", "heads.head" if is_timms else source.backbone.classifier
    if source.head is None:
        removed = f'network.set_submodule("{classifier}", torch.nn.Identity())\n'
    else:
        options["num_classes"] = len(source.classes)
    given = ", ".join(f"{name}={value!r}" for name, value in options.items())
    if is_timms:
        made = f"VisionTransformer({given})"
    else:
        made = f'get_model("{source.settings.name}", weights=None{", " * bool(given)}{given})'
    return (
        f"import {'' if source.head else 'torch, '}torchvision\n"
        "from safetensors.torch import load_file\n\n"
        f"network = torchvision.models.{made}\n"
        f"{removed}"
        f"network.load_state_dict(load_file({str(file)!r}))\n"
        "network.eval()\n"
    )


def _timm_code(source: Source, file: Path) -> str:
    return (
        "import timm\n"
        "from safetensors.torch import load_file\n\n"
        f"network = timm.create_model({_timm_arguments(source)})\n"
        f"network.load_state_dict(load_file({str(file)!r}))\n"
        "network.eval()\n"
    )


def _timm_arguments(source: Source) -> str:
    name, size = source.settings.name, source.backbone.image_size
    if _is_timms(source):
        return timm_arguments(source.settings, source.image_size, len(source.classes))
    given = "" if size is None else f", img_size={size}"
    return f'"{_TIMM_VITS.get(name, name)}", num_classes={len(source.classes)}{given}'


def _loader(code: Code) -> Callable[[Source, Path], nn.Module]:
    def load(source: Source, folder: Path) -> nn.Module:
        here: dict[str, Any] = {}
        exec(code(source, folder / WEIGHTS), here)  # what the model card says: so it is known to work
        return Normalised(here["network"], source.backbone)

    return load


def _usage(code: Code) -> Callable[[Source], str]:
    def usage(source: Source) -> str:
        size, images, imported = source.image_size, "images", ""
        if source.backbone.normalisation:
            mean, std = source.backbone.normalisation
            imported = "from torchvision.transforms.functional import normalize\n"
            images = f"normalize(images, {mean}, {std})"
        return (
            f"{imported}{code(source, Path(WEIGHTS))}"
            f"{source.outputs} = network({images})  # images: float32 [N, 3, {size}, {size}] in [0, 1]\n"
        )

    return usage


TORCHVISION = Format(
    *(_check_torchvision, _write_torchvision, _loader(_torchvision_code), _usage(_torchvision_code)),
    prepares="nothing",
    library="torchvision",
)
TIMM = Format(
    *(_check_timm, _write_timm, _loader(_timm_code), _usage(_timm_code)),
    libraries=["timm"],
    prepares="nothing",
    library="timm",
)
