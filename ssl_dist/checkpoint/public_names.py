"""Names of tensors in other libraries' ResNets and ViTs: each becomes the name that torchvision or timm gives it.

ResNets have one set of names in torchvision, in timm and in the authors' code of most methods. ViTs have timm's in the
authors' code, and others in torchvision and in transformers.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterable, Mapping

# torchvision's names of ViTs
TORCHVISION_VIT = (
    (r"^class_token$", "cls_token"),
    (r"^conv_proj\.", "patch_embed.proj."),
    (r"^encoder\.pos_embedding$", "pos_embed"),
    (r"^encoder\.ln\.", "norm."),
    (r"^encoder\.layers\.encoder_layer_(\d+)\.", r"blocks.\1."),
    (r"\.ln_(\d)\.", r".norm\1."),
    (r"\.self_attention\.in_proj_", ".attn.qkv."),
    (r"\.self_attention\.out_proj\.", ".attn.proj."),
    (r"\.mlp\.0\.", ".mlp.fc1."),
    (r"\.mlp\.3\.", ".mlp.fc2."),
)
# the same, with the classifier's
TORCHVISION_VIT_AND_HEAD = ((r"^heads\.head\.", "head."), *TORCHVISION_VIT)
# transformers' names, in its files and (q_proj) in its version 5's networks; source: its modeling_vit.py,
# modeling_dinov2.py and modeling_resnet.py
_TRANSFORMERS_VIT = (
    (r"^embeddings\.cls_token$", "cls_token"),
    (r"^embeddings\.position_embeddings$", "pos_embed"),
    (r"^embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
    (r"^layers\.(\d+)\.(?=attention\.o_proj|attn\.qkv|layernorm_|mlp\.fc)", r"encoder.layer.\1."),
    (r"^encoder\.layer\.(\d+)\.attention\.(output\.dense|o_proj)\.", r"blocks.\1.attn.proj."),
    (r"^encoder\.layer\.(\d+)\.intermediate\.dense\.", r"blocks.\1.mlp.fc1."),
    (r"^encoder\.layer\.(\d+)\.output\.dense\.", r"blocks.\1.mlp.fc2."),
    (r"^encoder\.layer\.(\d+)\.layernorm_before\.", r"blocks.\1.norm1."),
    (r"^encoder\.layer\.(\d+)\.layernorm_after\.", r"blocks.\1.norm2."),
    (r"^encoder\.layer\.(\d+)\.layer_scale(\d)\.lambda1$", r"blocks.\1.ls\2.gamma"),
    (r"^encoder\.layer\.(\d+)\.", r"blocks.\1."),
    (r"^layernorm\.", "norm."),
)
_PARTS = ("query", "key", "value")  # which are one tensor elsewhere, in this order; also by their first letters
_PART = re.compile(r"\.attention\.(?:attention\.(query|key|value)|([qkv])_proj)\.")


def _next(match: re.Match[str]) -> str:
    stage, block, layer = (int(number) for number in match.groups())
    return f"layer{stage + 1}.{block}.conv{layer + 1}."


_RESNETS: tuple[tuple[str, str | Callable[[re.Match[str]], str]], ...] = (
    (r"^embedder\.embedder\.convolution\.", "conv1."),
    (r"^embedder\.embedder\.normalization\.", "bn1."),
    (r"^encoder\.stages\.(\d+)\.layers\.(\d+)\.layer\.(\d+)\.convolution\.", _next),
    (
        r"^encoder\.stages\.(\d+)\.layers\.(\d+)\.layer\.(\d+)\.normalization\.",
        lambda m: _next(m).replace("conv", "bn"),
    ),
    (
        r"^encoder\.stages\.(\d+)\.layers\.(\d+)\.shortcut\.(convolution|normalization)\.",
        lambda m: f"layer{int(m[1]) + 1}.{m[2]}.downsample.{int(m[3] == 'normalization')}.",
    ),
    # Sequential(*resnet.children()), as in github.com/leftthomas/SimCLR, model.py, and sthalles/PyTorch-BYOL
    (r"^0\.", "conv1."),
    (r"^1\.", "bn1."),
    (r"^([4-7])\.", lambda m: f"layer{int(m[1]) - 3}."),
)


def renamed(name: str, rules: Iterable[tuple[str, str | Callable[[re.Match[str]], str]]]) -> str:
    """Return a name to which the rules were applied, each in its turn."""
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    return name


@functools.lru_cache(2**16)  # a file's names are looked up once for each place where a backbone may be
def canonical(name: str) -> str:
    """Return the name that torchvision's ResNets and timm's ViTs give a tensor; other networks' stay what they are."""
    return renamed(_PART.sub(".attn.qkv.", name), (*_TRANSFORMERS_VIT, *TORCHVISION_VIT, *_RESNETS))


def by_canonical_name(names: Iterable[str]) -> Mapping[str, list[str]]:
    """Return the given names by the canonical ones; several names are of parts of one tensor, in their order."""
    found: dict[str, list[str]] = {}
    for name in sorted(names, key=_number_of_part):
        found.setdefault(canonical(name), []).append(name)
    return found


def _number_of_part(name: str) -> int:
    part = _PART.search(name)
    return [one[0] for one in _PARTS].index((part[1] or part[2])[0]) if part else 0
