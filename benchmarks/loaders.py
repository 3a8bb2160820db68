"""Well-known image loaders behind one interface: each writes images in its own format and reads them in random order.

A sample is one image in the form that the views need: the result of ``per_image`` on a PIL image, or the image's pixels
where there is no ``per_image`` (the views are made of whole batches). Formats with random access are read a batch at a
time, as their guides say.
"""

from __future__ import annotations

import io
from abc import ABC
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from PIL import Image
from torch.utils.data import BatchSampler, DataLoader, Dataset, RandomSampler, default_collate
from torchvision.datasets import ImageFolder
from torchvision.io import ImageReadMode, decode_image

BATCH = 256
ROWS = (BATCH, 1024)  # rows in a call for random rows
SHARD_IMAGES = 1024
PerImage = Callable[[Any], Any] | None  # a PIL image -> a sample
Rows = Callable[[np.ndarray], np.ndarray]

CLASSES = 10  # folders of JPEG files


def jpeg_path(folder: Path, number: int) -> Path:
    """Return the path of image ``number`` in the class folders of JPEG files."""
    return folder / "jpeg" / f"class{number % CLASSES}" / f"{number:06d}.jpg"


def sample_of(content: np.ndarray | bytes, per_image: PerImage) -> Any:
    """Make a sample of ``content``: uint8 pixels [H, W, 3], or the bytes of a JPEG file.

    Without ``per_image``, the sample is uint8 pixels: [H, W, 3] as given, or [3, H, W] as decoded from JPEG.
    """
    if isinstance(content, bytes):
        if per_image:
            return per_image(Image.open(io.BytesIO(content)).convert("RGB"))
        return decode_image(torch.frombuffer(bytearray(content), dtype=torch.uint8), ImageReadMode.RGB)
    return per_image(Image.fromarray(content)) if per_image else content


class Loader(ABC):
    """A library that keeps images in a format and reads them back.

    Attributes:
        module: name of the module to import.
        encodings: forms in which the format holds images: decoded ("raw") or as JPEG files ("jpeg").
        measures: what can be measured: "rows" (random access) and "batches".
        views: libraries that can make the views of its batches.
    """

    module: ClassVar[str]
    encodings: ClassVar[tuple[str, ...]] = ("raw", "jpeg")
    measures: ClassVar[tuple[str, ...]] = ("rows", "batches")
    views: ClassVar[tuple[str, ...]] = ("torchvision", "kornia")

    def __init__(self, folder: Path, encoding: str) -> None:
        """Take the images from ``folder``: ``pixels.npy``, uint8 [n, H, W, 3], and ``jpeg/`` (see ``jpeg_path``)."""
        self.folder, self.encoding = folder, encoding
        self.place = folder / f"{self.module}-{encoding}"
        self.pixels = np.load(folder / "pixels.npy", mmap_mode="r")
        self.image_shape: tuple[int, ...] = self.pixels.shape[1:]

    def write(self) -> None:  # noqa: B027  # loaders that read files written by others have nothing to do
        """Write the images in this format, unless ``folder`` has them in it."""

    def rows(self) -> Rows:
        """Open the images for random access: return a function from ids to uint8 ``[N, H, W, 3]``."""
        raise NotImplementedError

    def samples(self, per_image: PerImage) -> Iterator[Any]:
        """Open the images; return one epoch of batches of collated samples, in random order."""
        raise NotImplementedError

    def images(self) -> list[Any]:
        """Return all images: uint8 arrays [H, W, 3], or the bytes of JPEG files."""
        if self.encoding == "raw":
            return list(self.pixels)
        return [jpeg_path(self.folder, number).read_bytes() for number in range(len(self.pixels))]


class _ByBatch(Dataset[Any]):
    """Dataset whose items are whole batches, for formats that read many rows at once."""

    def __init__(self, size: int, read: Callable[[list[int]], Any], per_image: PerImage) -> None:
        self._size, self._read, self._per_image = size, read, per_image

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, ids: list[int]) -> Any:
        images = self._read(ids)
        if isinstance(images, np.ndarray) and not self._per_image:
            return torch.from_numpy(images)
        return default_collate([sample_of(image, self._per_image) for image in images])

    def batches(self) -> Iterator[Any]:
        sampler = BatchSampler(RandomSampler(self), BATCH, drop_last=True)
        return iter(DataLoader(self, sampler=sampler, batch_size=None))


class TorchImageFolder(Loader):
    """torch's DataLoader over torchvision's ImageFolder."""

    module, encodings, measures = "torchvision", ("jpeg",), ("batches",)
    views = ("torchvision", "kornia", "lightly")

    def samples(self, per_image: PerImage) -> Iterator[Any]:
        own = {} if per_image else {"loader": decode_image}
        data = ImageFolder(str(self.folder / "jpeg"), transform=per_image, **own)
        return (batch for batch, _ in DataLoader(data, BATCH, shuffle=True, drop_last=True))


class WebDatasetTars(Loader):
    """WebDataset's tar shards: shards are shuffled, and images in a buffer of 1,000, as its guide recommends."""

    module, measures = "webdataset", ("batches",)
    buffer: ClassVar[int] = 1000

    def write(self) -> None:
        import webdataset

        self.place.mkdir()
        suffix = "npy" if self.encoding == "raw" else "jpg"  # npy: webdataset packs the array
        with webdataset.ShardWriter(str(self.place / "%05d.tar"), maxcount=SHARD_IMAGES, verbose=0) as shards:
            for number, image in enumerate(self.images()):
                shards.write({"__key__": f"{number:06d}", suffix: image})

    def samples(self, per_image: PerImage) -> Iterator[Any]:
        import webdataset

        tars = sorted(str(path) for path in self.place.glob("*.tar"))
        data = webdataset.WebDataset(tars, shardshuffle=len(tars)).shuffle(self.buffer)
        if self.encoding == "raw":
            data = data.decode()
        images = data.to_tuple("npy" if self.encoding == "raw" else "jpg").map(lambda one: sample_of(one[0], per_image))
        made: Iterator[Any] = iter(webdataset.WebLoader(images.batched(BATCH, default_collate, partial=False), None))
        return made


class MosaicStreaming(Loader):
    """MosaicML Streaming's MDS shards, shuffled by its default algorithm (py1e)."""

    module = "streaming"

    def write(self) -> None:
        from streaming import MDSWriter

        shape = ",".join(map(str, self.image_shape))
        kind = f"ndarray:uint8:{shape}" if self.encoding == "raw" else "bytes"
        with MDSWriter(out=str(self.place), columns={"image": kind}) as shards:
            for image in self.images():
                shards.write({"image": image})

    def _open(self, per_image: PerImage, shuffle: bool) -> Any:
        from streaming import StreamingDataset
        from streaming.base.util import clean_stale_shared_memory

        clean_stale_shared_memory()

        class Samples(StreamingDataset):  # type: ignore[misc]
            def __getitem__(self, at: int) -> Any:
                return sample_of(super().__getitem__(at)["image"], per_image)

        return Samples(local=str(self.place), shuffle=shuffle, batch_size=BATCH)

    def samples(self, per_image: PerImage) -> Iterator[Any]:
        return iter(DataLoader(self._open(per_image, shuffle=True), BATCH, drop_last=True))

    def rows(self) -> Rows:
        data = self._open(None, shuffle=False)
        return lambda ids: np.stack([data[number] for number in ids.tolist()])


class HuggingFace(Loader):
    """HF datasets: memory-mapped Arrow with a flat list of bytes an image, read in its Arrow format (its fastest)."""

    module = "datasets"

    def write(self) -> None:
        import datasets
        import pyarrow as pa

        datasets.disable_progress_bars()
        datasets.Dataset(pa.table({"image": arrow_column(self.images())})).save_to_disk(self.place)

    def samples(self, per_image: PerImage) -> Iterator[Any]:
        import datasets

        data = datasets.load_from_disk(self.place).with_format("arrow")
        return _ByBatch(len(data), lambda ids: self._pixels(data[ids]), per_image).batches()

    def _pixels(self, table: Any) -> Any:
        return from_arrow(table["image"], self.image_shape)

    def rows(self) -> Rows:
        import datasets

        data = datasets.load_from_disk(self.place).with_format("arrow")
        return lambda ids: self._pixels(data[ids.tolist()])


class HuggingFaceShuffled(HuggingFace):
    """HF datasets by ``shuffle`` and the NumPy format, as in the first steps of its guide.

    It reads the next rows of its own order, so the values of ``ids`` are ignored; only their number counts.
    """

    encodings, measures = ("raw",), ("rows",)

    def rows(self) -> Rows:
        import datasets

        data = datasets.load_from_disk(self.place).shuffle(seed=0).with_format("numpy")
        at = 0

        def read(ids: np.ndarray) -> np.ndarray:
            nonlocal at
            first = at if at + len(ids) <= len(data) else 0
            at = first + len(ids)
            found: np.ndarray = data[first:at]["image"]
            return found.reshape(-1, *self.image_shape)

        return read


class Lance(Loader):
    """Lance's dataset format, rows by ``take``."""

    module = "lance"

    def write(self) -> None:
        import lance
        import pyarrow as pa

        lance.write_dataset(pa.table({"image": arrow_column(self.images())}), str(self.place))

    def samples(self, per_image: PerImage) -> Iterator[Any]:
        import lance

        data = lance.dataset(str(self.place))
        return _ByBatch(data.count_rows(), lambda ids: self._pixels(data.take(ids)), per_image).batches()

    def rows(self) -> Rows:
        import lance

        data = lance.dataset(str(self.place))
        return lambda ids: self._pixels(data.take(ids.tolist()))

    def _pixels(self, table: Any) -> Any:
        return from_arrow(table["image"], self.image_shape)


def arrow_column(images: Sequence[Any]) -> Any:
    """Return an Arrow column of the images: fixed-size lists of bytes, or JPEG files as binary values."""
    import pyarrow as pa

    if isinstance(images[0], bytes):
        return pa.array(images, pa.binary())
    flat = np.stack(images).reshape(-1)
    return pa.FixedSizeListArray.from_arrays(pa.array(flat), images[0].size)


def from_arrow(column: Any, shape: tuple[int, ...]) -> Any:
    """Return the images of a chunked column: uint8 [N, H, W, 3] of lists, or the bytes of each JPEG file."""
    import pyarrow as pa

    if pa.types.is_binary(column.type):
        return [one.as_py() for one in column]
    return column.combine_chunks().flatten().to_numpy().reshape(-1, *shape)
