"""Files of weights as other projects write them, made of a network's random tensors."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import save_file
from torch import Tensor

State = dict[str, Tensor]


class Form(NamedTuple):
    """How a project writes its files.

    Attributes:
        content: makes what the file holds of a network's tensors by torchvision's names, without its classifier.
        left_out: what the log names as not used.
        normalisation: what the file tells of its images; None: nothing.
        legacy: whether the file has the format of torch before 1.6.
        safetensors: whether it is a file of safetensors.
    """

    content: Callable[[State], Any]
    left_out: tuple[str, ...] = ()
    normalisation: Any = None
    legacy: bool = False
    safetensors: bool = False


def under(prefix: str, state: State) -> State:
    return {f"{prefix}{name}": tensor for name, tensor in state.items()}


def head(name: str) -> State:
    """Return the tensors of a head of two linear layers."""
    return under(f"{name}.", {"0.weight": torch.rand(8, 8), "0.bias": torch.rand(8), "2.weight": torch.rand(4, 8)})


def classified(state: State, classes: int = 1000) -> State:
    return {**state, "fc.weight": torch.rand(classes, 4), "fc.bias": torch.rand(classes)}


def trained(table: State, key: str = "state_dict") -> dict[str, Any]:
    """Return a training checkpoint, with an optimizer's state and the program's arguments."""
    optimizer = {"state": {0: {"step": torch.tensor(1.0), "exp_avg": torch.rand(3)}}, "param_groups": [{"lr": 0.1}]}
    return {"epoch": 3, "arch": "resnet50", key: table, "optimizer": optimizer, "args": argparse.Namespace(lr=0.1)}


def _moco(state: State) -> Any:
    encoders = {
        **under("module.encoder_q.", {**state, **head("fc")}),
        **under("module.encoder_k.", {**state, **head("fc")}),
    }
    return trained(
        {**encoders, "module.queue": torch.rand(8, 16), "module.queue_ptr": torch.zeros(1, dtype=torch.long)}
    )


def _moco_v3(state: State) -> Any:
    base, momentum = (under(f"module.{which}_encoder.", {**state, **head("fc")}) for which in ("base", "momentum"))
    return trained({**base, **momentum, **head("module.predictor")})


def _dino(state: State) -> Any:
    student = under("module.backbone.", {name: tensor + 1 for name, tensor in state.items()})
    teacher = {**under("backbone.", state), **head("head.mlp"), "head.last_layer.weight_g": torch.rand(4, 1)}
    loss = {"center": torch.rand(1, 4)}
    return {**trained({**student, **head("module.head.mlp")}, "student"), "teacher": teacher, "dino_loss": loss}


def _siamese(state: State) -> Any:
    return trained({**under("module.backbone.", state), **head("module.projector")}, "model")


def _barlow_twins(state: State) -> Any:
    content = _siamese(state)
    content["model"] |= {"module.bn.running_mean": torch.rand(4), "module.bn.num_batches_tracked": torch.tensor(3)}
    return content


_RED_BY_0_228 = {"mean": [0.485, 0.456, 0.406], "std": [0.228, 0.224, 0.225]}


def _swav(state: State) -> Any:
    return under("module.", {**state, **head("projection_head"), "prototypes.weight": torch.rand(8, 4)})


def _byol(state: State) -> Any:
    online = {**under("net.", classified(state)), **head("projector.net")}
    encoders = {**under("online_encoder.", online), **under("target_encoder.", online)}
    return {**under("net.", classified(state)), **encoders, **head("online_predictor.net")}


def _byol_of_sthalles(state: State) -> Any:
    networks = {
        f"{which}_network_state_dict": {**under("encoder.", state), **head("projetion.net")}
        for which in ("online", "target")
    }
    return {**networks, "encoder_state_dict": state, "optimizer_state_dict": {"state": {}}}


FORMS = {
    "torchvision": Form(classified, ("fc.",), "imagenet"),
    "torchvision, safetensors": Form(classified, ("fc.",), "imagenet", safetensors=True),
    "pytorch's example": Form(lambda state: trained(under("module.", classified(state))), ("module.fc.",), "imagenet"),
    "DataParallel without classifier": Form(lambda state: under("module.", state)),
    "lightly under DataParallel": Form(
        lambda state: trained({**under("module.backbone.", state), **head("module.projection_head")}, "model"),
        ("module.projection_head.",),
    ),
    "MoCo": Form(_moco, ("module.encoder_q.fc.", "module.encoder_k.", "module.queue"), "imagenet", legacy=True),
    "MoCo v3": Form(_moco_v3, ("module.base_encoder.fc.", "module.momentum_encoder.", "module.predictor."), "imagenet"),
    "DINO": Form(_dino, ("head.", "all under student", "all under dino_loss"), "imagenet"),
    "Barlow Twins": Form(_barlow_twins, ("module.projector.", "module.bn."), "imagenet", legacy=True),
    "Barlow Twins, resnet50.pth": Form(lambda state: state),
    "VICReg": Form(_siamese, ("module.projector.",), "imagenet"),
    "SwAV": Form(_swav, ("module.projection_head.", "module.prototypes"), _RED_BY_0_228, legacy=True),
    "SimCLR, simclr-pytorch": Form(
        lambda state: {
            "state_dict": {**under("convnet.", state), **head("projection")},
            "hparams": argparse.Namespace(),
        },
        ("projection.",),
        "none",
    ),
    "SimCLR, sthalles": Form(lambda state: trained(under("backbone.", {**state, **head("fc")})), ("backbone.fc.",)),
    "SimCLR, lightly": Form(
        lambda state: {**under("backbone.", state), **head("projection_head.layers")}, ("projection_head.",)
    ),
    "SimCLR, Spijkervet": Form(lambda state: {**under("encoder.", state), **head("projector")}, ("projector.",)),
    "SimCLR, leftthomas": Form(lambda state: {**under("f.", state), **head("g")}, ("g.",)),
    "SimCLR, converted": Form(lambda state: {"state_dict": classified(state)}, ("fc.",)),
    "BYOL, byol-pytorch": Form(_byol, ("net.", "online_encoder.projector.", "target_encoder.", "online_predictor.")),
    "BYOL, sthalles": Form(
        _byol_of_sthalles, ("all under online_network_state_dict", "all under target_network_state_dict")
    ),
}


def write(form: Form, state: State, folder: Path) -> Path:
    """Write a file of this form; return it."""
    content = form.content(state)
    file = folder / ("weights.safetensors" if form.safetensors else "weights.pth.tar")
    if form.safetensors:
        save_file(content, file)
    else:
        torch.save(content, file, _use_new_zipfile_serialization=not form.legacy)
    return file


def transformers_resnet(state: State) -> State:
    """Give a ResNet of torchvision the names of transformers' ResNetForImageClassification."""

    def renamed(name: str) -> str:
        name = re.sub(r"^conv1\.", "embedder.embedder.convolution.", name)
        name = re.sub(r"^bn1\.", "embedder.embedder.normalization.", name)
        stage = re.match(r"layer(\d)\.(\d+)\.(conv|bn|downsample\.)(\d)\.(\w+)$", name)
        if stage:
            at = f"encoder.stages.{int(stage[1]) - 1}.layers.{stage[2]}"
            if stage[3] == "downsample.":
                return f"{at}.shortcut.{('convolution', 'normalization')[int(stage[4])]}.{stage[5]}"
            kind = {"conv": "convolution", "bn": "normalization"}[stage[3]]
            return f"{at}.layer.{int(stage[4]) - 1}.{kind}.{stage[5]}"
        return name

    renamed_state = {f"resnet.{renamed(name)}": tensor for name, tensor in state.items() if not name.startswith("fc.")}
    return {**renamed_state, "classifier.1.weight": torch.rand(10, 4), "classifier.1.bias": torch.rand(10)}


def transformers_vit(state: State) -> State:
    """Give a ViT of torchvision the names of transformers' ViTForImageClassification."""
    found: State = {"classifier.weight": torch.rand(10, 4)}
    plain = {
        "class_token": "embeddings.cls_token",
        "encoder.pos_embedding": "embeddings.position_embeddings",
        "conv_proj.weight": "embeddings.patch_embeddings.projection.weight",
        "conv_proj.bias": "embeddings.patch_embeddings.projection.bias",
        "encoder.ln.weight": "layernorm.weight",
        "encoder.ln.bias": "layernorm.bias",
    }
    inner = {
        "ln_1": "layernorm_before",
        "ln_2": "layernorm_after",
        "self_attention.out_proj": "attention.output.dense",
        "mlp.0": "intermediate.dense",
        "mlp.3": "output.dense",
    }
    for name, tensor in state.items():
        if name in plain:
            found[f"vit.{plain[name]}"] = tensor
        elif block := re.match(r"encoder\.layers\.encoder_layer_(\d+)\.(.*)[._](weight|bias)$", name):
            at = f"vit.encoder.layer.{block[1]}"
            if block[2] == "self_attention.in_proj":
                for part, piece in zip(("query", "key", "value"), tensor.chunk(3), strict=True):
                    found[f"{at}.attention.attention.{part}.{block[3]}"] = piece.clone()
            else:
                found[f"{at}.{inner[block[2]]}.{block[3]}"] = tensor
    return found
