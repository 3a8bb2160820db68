"""A trained encoder for one's own code: it takes images of any kind and size, and gives their features."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from ssl_dist.backbones import Backbone
from ssl_dist.checkpoint import fetched
from ssl_dist.checkpoint.exported import is_exported, read_exported
from ssl_dist.errors import CheckpointError, ConfigError, RunError, Unreadable
from ssl_dist.evaluate.features import fastest_device, forward_size, frozen_features, load_method, store_features
from ssl_dist.machine import num_cores
from ssl_dist.settings import CheckpointChoice
from ssl_dist.store import ImageStore
from ssl_dist.store.decode import decode, from_picture, resize
from ssl_dist.uris import is_remote

_OF_PATHS = "give a store, or a list of images and of paths to image files"

Images = ImageStore | str | os.PathLike[str] | Iterable[Any]


def load_encoder(
    run: str | os.PathLike[str],
    checkpoint: CheckpointChoice = "newest",
    device: str | torch.device | None = None,
) -> Encoder:
    """Load the trained encoder of a run, in evaluation mode; neither Ray nor DeepSpeed is imported.

    Args:
        run: a run's directory; one of its checkpoints; the URI of either in the run's mirror
            (``s3://bucket/runs/RUN``), which is copied to a temporary folder; or a folder that ``ssl-dist export``
            wrote in the format safetensors or torchvision.
        checkpoint: "newest", "best" by the online probe, or a step.
        device: where the encoder computes. Default: the GPU, if there is one.

    Raises:
        RunError: there is no such run or checkpoint.
        CheckpointError: it is damaged.
    """
    if not is_remote(run) and is_exported(Path(run)):
        if checkpoint != "newest":
            raise RunError(f"{run} is one exported encoder, and {checkpoint} chooses among a run's checkpoints")
        return _exported(Path(run)).to(device or fastest_device())
    with fetched(run, checkpoint) as found:
        backbone, config = load_method(found).backbone, found.config
    return Encoder(backbone, max(config.view_sizes), forward_size(config), found.step).to(device or fastest_device())


def _exported(folder: Path) -> Encoder:
    found = read_exported(folder)
    backbone, tensors = found.backbone.build(image_size=found.image_size), found.tensors
    if found.part == "classifier":
        tensors = {name: one for name, one in tensors.items() if not name.startswith(f"body.{backbone.classifier}.")}
    try:
        backbone.load_state_dict(tensors)
    except RuntimeError as error:
        raise CheckpointError(f"{folder} has other tensors than its network: {error}") from None
    return Encoder(backbone, found.image_size, found.together, found.step)


class Encoder(nn.Module):
    """Network that turns images ``[N, 3, image_size, image_size]`` in [0, 1] into features ``[N, dim]``.

    It is an ordinary module: it can be moved to a device, trained further, and be a part of other modules.

    Attributes:
        backbone: the trained network.
        dim: number of features.
        image_size: pixels a side of the images that it was trained on.
        together: images of a forward pass of ``embed``.
        step: steps that it was trained for; None: unknown.
    """

    def __init__(self, backbone: Backbone, image_size: int, together: int, step: int | None = None) -> None:
        super().__init__()
        self.backbone, self.dim, self.image_size = backbone, backbone.dim, image_size
        self.together, self.step = together, step
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        """Return features ``[N, dim]`` of images that ``transform`` made, ``[N, 3, image_size, image_size]``."""
        features: Tensor = self.backbone(images)
        return features

    def transform(self, image: Image.Image | np.ndarray | Tensor | str | os.PathLike[str]) -> Tensor:
        """Turn an image into the encoder's input, as the building of a store and evaluation do.

        Its shorter side is resized to ``image_size`` (bicubic, antialiased), and its centre is cut out.

        Args:
            image: a picture of PIL (turned upright by its EXIF orientation, transparency composited onto white); the
                path of a JPEG, PNG, WebP or BMP file; an array ``[H, W]``, ``[H, W, 1]`` or ``[H, W, 3]``; or a tensor
                ``[H, W]``, ``[1, H, W]`` or ``[3, H, W]``. Numbers are uint8, or floating-point in [0, 1].

        Returns:
            float32 ``[3, image_size, image_size]`` in [0, 1], on the CPU.

        Raises:
            ConfigError: it is none of these.
            Unreadable: the file is no such image, or the picture has more than 8 bits a channel.
        """
        if isinstance(image, (str, os.PathLike)):
            return _as_input(_read(Path(image), self.image_size))
        if isinstance(image, Image.Image):
            return _as_input(from_picture(image, self.image_size))
        pixels = _pixels(image)
        if pixels.dtype == np.uint8:
            return _as_input(resize(pixels, self.image_size))
        channels = [resize(pixels[..., number], self.image_size) for number in range(3)]
        return torch.from_numpy(np.stack(channels)).clamp(0, 1)  # bicubic weights overshoot at edges

    def embed(self, images: Images, count: Callable[[int], None] | None = None) -> Tensor:
        """Compute the features of many images, a part at a time, in evaluation mode and without a gradient.

        Args:
            images: an image store or its path or URI; or a list, or any iterable, of what ``transform`` takes. Files
                are read when their part begins, by several threads.
            count: called with the number of images of each part that is done.

        Returns:
            float32 ``[n, dim]`` on the CPU, in the order of the images.

        Raises:
            StoreError: the path is no store.
            ConfigError, Unreadable: see ``transform``.
        """
        if isinstance(images, (str, os.PathLike)):
            if not is_remote(images) and Path(images).is_file():
                raise ConfigError(f"{images} is one file: {_OF_PATHS}")
            images = ImageStore(images)
        device = next(self.parameters()).device
        if isinstance(images, ImageStore):
            found = store_features(
                self.backbone, images, np.arange(len(images)), device, self.image_size, self.together, count
            )
            return found.cpu()
        if isinstance(images, Image.Image):
            raise ConfigError(f"one picture was given: {_OF_PATHS}")
        if isinstance(images, (np.ndarray, Tensor)) and images.ndim != 4:
            raise ConfigError(
                f"an array {list(images.shape)} may be one image or several: several are [N, H, W, 3] or [N, 3, H, W];"
                " of one image, or of grey ones, give a list"
            )
        parts = [frozen_features(self.backbone, part.to(device)).cpu() for part in self._inputs(images, count)]
        return torch.cat(parts) if parts else torch.empty(0, self.dim)

    def _inputs(self, images: Iterable[Any], count: Callable[[int], None] | None) -> Iterator[Tensor]:
        """Yield the inputs of the images, ``[n, 3, image_size, image_size]`` each, and count those that were used."""
        rest = iter(images)
        with ThreadPoolExecutor(num_cores()) as threads:
            while part := list(itertools.islice(rest, self.together)):
                yield torch.stack(list(threads.map(self.transform, part)))
                if count:
                    count(len(part))


def _as_input(pixels: np.ndarray) -> Tensor:
    """Return uint8 ``[S, S, 3]`` as float32 ``[3, S, S]`` in [0, 1]."""
    return torch.from_numpy(pixels.copy()).permute(2, 0, 1).float() / 255


def _read(file: Path, size_px: int) -> np.ndarray:
    try:
        return decode(file.read_bytes(), size_px)
    except OSError as error:
        raise Unreadable(f"{file} cannot be read: {error.strerror}") from None
    except Unreadable as error:
        raise Unreadable(f"{file} is {error}") from None


def _pixels(image: Any) -> np.ndarray:
    """Return an array or a tensor as ``[H, W, 3]``, uint8 or float32 in [0, 1].

    Raises:
        ConfigError: it is neither, or has another shape, type or range.
    """
    is_tensor = isinstance(image, Tensor)
    if not is_tensor and not isinstance(image, np.ndarray):
        raise ConfigError(f"a {type(image).__name__} is no image: give a PIL picture, a path, an array or a tensor")
    shape = list(image.shape)
    if isinstance(image, Tensor):
        image = image.detach().cpu()
        image = image.float() if image.is_floating_point() else image  # numpy has no bfloat16
    pixels = np.asarray(image)
    if is_tensor and pixels.ndim == 3:
        pixels = pixels.transpose(1, 2, 0)
    if pixels.ndim == 2:
        pixels = pixels[..., None]
    if pixels.ndim != 3 or pixels.shape[2] not in (1, 3) or 0 in pixels.shape:
        forms = "[H, W], [1, H, W] or [3, H, W]" if is_tensor else "[H, W], [H, W, 1] or [H, W, 3]"
        raise ConfigError(f"an image {shape}: {'a tensor' if is_tensor else 'an array'} is {forms}")
    if pixels.dtype != np.uint8:
        if pixels.dtype.kind != "f":
            raise ConfigError(f"an image of {pixels.dtype}: it is uint8, or floating-point in [0, 1]")
        pixels = pixels.astype(np.float32)
        if not (pixels.min() >= 0 and pixels.max() <= 1):
            raise ConfigError(
                f"an image of floating-point numbers from {pixels.min():g} to {pixels.max():g}: they are in [0, 1], and"
                " the encoder normalises them itself"
            )
    return np.ascontiguousarray(np.broadcast_to(pixels, (*pixels.shape[:2], 3)))
