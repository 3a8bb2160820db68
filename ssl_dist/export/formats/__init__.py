"""The formats of an exported encoder by name; a module each, or one for those that are alike."""

from ssl_dist.export.formats.base import HEADS, Format, Part, Source
from ssl_dist.export.formats.hf import HF
from ssl_dist.export.formats.named import TIMM, TORCHVISION
from ssl_dist.export.formats.onnx import ONNX
from ssl_dist.export.formats.plain import SAFETENSORS
from ssl_dist.export.formats.torchscript import TORCHSCRIPT

__all__ = ["FORMATS", "HEADS", "Format", "Part", "Source"]

FORMATS = {
    "safetensors": SAFETENSORS,
    "torchvision": TORCHVISION,
    "timm": TIMM,
    "hf": HF,
    "onnx": ONNX,
    "torchscript": TORCHSCRIPT,
}
