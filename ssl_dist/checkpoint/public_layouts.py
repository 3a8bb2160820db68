"""Where the backbone is in a file of weights: in whose files its tensors have which names, and what is beside them."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, NamedTuple

from ssl_dist.checkpoint.public_names import by_canonical_name

if TYPE_CHECKING:
    from ssl_dist.checkpoint.torch_files import Tables

OURS = "ssl_dist"
NETWORK = "a network's own weights"
DATA_PARALLEL = "a network under DataParallel"
_OUTSIDE = ("", "state_dict", "model")  # keys of the dictionaries that most projects use
_HEADS = ("projection_head", "projector", "projection", "projetion", "prediction_head", "predictor", "prototypes", "g")
_MOMENTUM = ("backbone_momentum", "projection_head_momentum")
# Beginnings of names, within the backbone's, of what classifies or pools, and of a masked patch
_WITHIN: tuple[str, ...] = ("fc.", "head.", "heads.", "head_dist.", "classifier.", "last_linear.", "pooler.")
_WITHIN += ("aux1.", "aux2.", "AuxLogits.", "mask_token", "embeddings.mask_token")


class Layout(NamedTuple):
    """The place of a backbone in the files of one project.

    Attributes:
        source: whose files they are.
        prefix: begins the names of the backbone's tensors.
        tables: keys of the dictionaries that may hold them; "" is the outermost one.
        beside: beginnings of the names, in the same dictionary, of what is known not to be of the backbone.
        normalisation: of the images that it learned from, as the setting has it; None: not known.
        marks: beginnings of names of which one must be in the dictionary, where other projects have the prefix too.
        num_heads: attention heads of ViTs by their width, where they are not timm's: no tensor shows them.
    """

    source: str
    prefix: str
    tables: tuple[str, ...] = _OUTSIDE
    beside: tuple[str, ...] = ()
    normalisation: str | Mapping[str, Sequence[float]] | None = None
    marks: tuple[str, ...] = ()
    num_heads: Mapping[int, int] = MappingProxyType({})

    def may_be(self, names: Iterable[str]) -> bool:
        """Return whether a dictionary with these names may be of this project."""
        return not self.marks or any(name.startswith(self.marks) for name in names)

    def leaves_out(self, name: str) -> str | None:
        """Return the beginning by which a tensor is known not to be of the backbone; None: it is not known to be."""
        beginnings = [*(f"{self.prefix}{part}" for part in _WITHIN), *self.beside]
        return next((begin for begin in beginnings if name.startswith(begin)), None)


def _of(prefix: str, *parts: str) -> tuple[str, ...]:
    return tuple(f"{prefix}{part}." for part in parts)


# Of two that fit equally well the first is taken. Beside each stand the files, on GitHub, that show its names.
LAYOUTS = (
    Layout(OURS, "backbone.body.", ("",), beside=("",)),
    Layout(NETWORK, "", (*_OUTSIDE, "encoder_state_dict")),  # the last: sthalles/PyTorch-BYOL, trainer.py
    Layout("ssl-dist export --part", "body.", ("",), beside=("head.",)),  # of this project: export/formats/plain.py
    # facebookresearch/moco: main_lincls.py (the query's encoder), moco/builder.py, main_moco.py (images)
    Layout(
        "MoCo v1 or v2",
        "module.encoder_q.",
        ("state_dict",),
        beside=("module.encoder_k.", "module.queue"),
        normalisation="imagenet",
    ),
    # facebookresearch/moco-v3: main_lincls.py, moco/builder.py; vits.py gives ViT-S 12 heads
    Layout(
        "MoCo v3",
        "module.base_encoder.",
        ("state_dict",),
        beside=_of("module.", "momentum_encoder", "predictor"),
        normalisation="imagenet",
        num_heads={384: 12},
    ),
    # facebookresearch/dino: main_dino.py, utils.py (load_pretrained_weights); facebookresearch/dinov2 has more heads
    *(
        Layout(
            f"DINO's {table}",
            f"{outer}backbone.",
            (table,),
            beside=_of(outer, "head", "dino_head", "ibot_head"),
            normalisation="imagenet",
        )
        for table in ("teacher", "student")
        for outer in ("", "module.")
    ),
    # facebookresearch/barlowtwins, main.py; facebookresearch/vicreg, main_vicreg.py
    Layout(
        "Barlow Twins or VICReg",
        "module.backbone.",
        ("model",),
        beside=_of("module.", "projector", "bn"),
        normalisation="imagenet",
        marks=("module.projector.",),
    ),
    # facebookresearch/swav: main_swav.py, src/resnet50.py, eval_linear.py, src/multicropdataset.py (red by 0.228)
    Layout(
        "SwAV",
        "module.",
        ("", "state_dict"),
        beside=("module.projection_head.", "module.prototypes"),
        normalisation={"mean": [0.485, 0.456, 0.406], "std": [0.228, 0.224, 0.225]},
        marks=("module.projection_head.", "module.prototypes"),
    ),
    Layout(DATA_PARALLEL, "module."),  # pytorch/examples, imagenet/main.py
    # AndrewAtanov/simclr-pytorch: models/encoder.py, models/ssl.py, whose images are not normalised
    Layout("SimCLR of simclr-pytorch", "convnet.", beside=("projection.",), normalisation="none"),
    # sthalles/SimCLR, models/resnet_simclr.py; lightly-ai/lightly, examples/pytorch/simclr.py
    *(
        Layout("a backbone and its head", f"{outer}backbone.", beside=_of(outer, *_HEADS, *_MOMENTUM))
        for outer in ("", "module.", "model.")
    ),
    # Spijkervet/SimCLR, simclr/simclr.py; sthalles/PyTorch-BYOL, models/resnet_base_network.py
    Layout("an encoder and its projector", "encoder.", (*_OUTSIDE, "online_network_state_dict"), _of("", *_HEADS)),
    Layout("SimCLR of leftthomas", "f.", beside=("g.",)),  # leftthomas/SimCLR, model.py
    # lucidrains/byol-pytorch, byol_pytorch/byol_pytorch.py; "net" is the same network again
    Layout(
        "BYOL of byol-pytorch",
        "online_encoder.net.",
        beside=_of("", "net", "online_encoder.projector", "target_encoder", "online_predictor"),
    ),
    # huggingface/transformers: base_model_prefix of modeling_resnet.py, modeling_vit.py, modeling_dinov2.py
    *(Layout("transformers", f"{prefix}.", ("",), beside=("classifier.",)) for prefix in ("resnet", "vit", "dinov2")),
)


class Place(NamedTuple):
    """A layout that a file has, and the key of the dictionary with the backbone; "" is the outermost one."""

    layout: Layout
    table: str


def find(tables: Tables, wanted: Collection[str]) -> Place | None:
    """Return the place where most of a network's tensors are; None: none of them is anywhere.

    Args:
        wanted: the tensors' canonical names.
    """
    best, most = None, 0
    for layout in LAYOUTS:
        for key in (one for one in layout.tables if one in tables and layout.may_be(tables[one])):
            inside = (name.removeprefix(layout.prefix) for name in tables[key] if name.startswith(layout.prefix))
            fitting = len(by_canonical_name(inside).keys() & wanted)
            if fitting > most:
                best, most = Place(layout, key), fitting
    return best
