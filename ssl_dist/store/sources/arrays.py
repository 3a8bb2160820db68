"""Pixels as their authors packed them: STL-10's binary files, CIFAR's Python files.

Sources: https://cs.stanford.edu/~acoates/stl10/ (colour planes one after the other, each column by column);
https://www.cs.toronto.edu/~kriz/cifar.html (colour planes one after the other, each row by row).
"""

from __future__ import annotations

import pickle
from collections.abc import Iterator, Sequence
from pathlib import PurePosixPath
from typing import Any, ClassVar, NamedTuple

import numpy as np

from ssl_dist.errors import SourceError
from ssl_dist.store.schema import NO_LABEL
from ssl_dist.store.sources.base import Member, Source
from ssl_dist.store.sources.files import File, fingerprint, reading

_STL_PX, _CIFAR_PX = 96, 32
_STL_BYTES, _CIFAR_BYTES = 3 * _STL_PX**2, 3 * _CIFAR_PX**2
STL_SUFFIX = "_X.bin"
_STL_CLASSES = ("airplane", "bird", "car", "cat", "deer", "dog", "horse", "monkey", "ship", "truck")
_AT_ONCE = 256  # images read


def of_stl10(name: str, files: Sequence[File]) -> Source:
    """``train_X.bin``, ``test_X.bin``, ``unlabeled_X.bin``; labels are those of the ``_y.bin`` beside it, if any.

    Raises:
        SourceError: a file of another length than its images have, or labels of another number.
    """
    parts = [_Stl10(file, _length(file), _stl_labels(file)) for file in files]
    for file, count, labels in parts:
        if labels is not None and len(labels) != count:
            raise SourceError(f"{file.path} has {count} images, and the file of labels beside it {len(labels)}")

    def members() -> Iterator[Member]:
        for file, count, labels in parts:
            with reading(file, "file of STL-10's") as content:
                for first in range(0, count, _AT_ONCE):
                    rows = min(_AT_ONCE, count - first)
                    packed = np.frombuffer(content.read(rows * _STL_BYTES), dtype=np.uint8)
                    images = packed.reshape(rows, 3, _STL_PX, _STL_PX).transpose(0, 3, 2, 1)
                    for number, image in enumerate(images, first):
                        label = NO_LABEL if labels is None else int(labels[number])
                        yield Member(f"{file.key}/{number}", label, np.ascontiguousarray(image))

    known = any(labels is not None for _, _, labels in parts)
    total = sum(count for _, count, _ in parts)
    return Source(name, total, (), _STL_CLASSES if known else (), fingerprint(files), members)


class _Stl10(NamedTuple):
    file: File
    num_images: int
    labels: np.ndarray | None


def _length(file: File) -> int:
    with reading(file, "file of STL-10's") as content:
        size = content.seek(0, 2)
    if size == 0 or size % _STL_BYTES:
        raise SourceError(f"{file.path} has {size} bytes: STL-10's images take {_STL_BYTES} each")
    return size // _STL_BYTES


def _stl_labels(file: File) -> np.ndarray | None:
    """[n], from 0."""
    beside = file._replace(path=file.path.removesuffix(STL_SUFFIX) + "_y.bin")
    try:
        labels = np.frombuffer(beside.read(), dtype=np.uint8).astype(np.int64) - 1
    except FileNotFoundError:
        return None
    if len(labels) and not (labels.min() >= 0 and labels.max() < len(_STL_CLASSES)):
        raise SourceError(f"{beside.path} has labels that are not 1 to {len(_STL_CLASSES)}")
    return labels


def of_cifar(name: str, files: Sequence[File]) -> Source:
    """``data_batch_1`` to ``_5`` and ``test_batch`` of CIFAR-10, ``train`` and ``test`` of CIFAR-100 (its fine labels).

    Raises:
        SourceError: not such a file.
    """
    found = [_cifar(file) for file in files]
    of_hundred = {kind for _, _, kind in found}
    if len(of_hundred) > 1:
        raise SourceError(f"{name}: files of CIFAR-10 and of CIFAR-100: build a store of each")
    [kind] = of_hundred
    names = _cifar_names(files[0], kind)

    def members() -> Iterator[Member]:
        for file in files:
            images, labels, _ = _cifar(file)
            for number, (image, label) in enumerate(zip(images, labels, strict=True)):
                yield Member(f"{file.key}/{number}", label, np.ascontiguousarray(image))

    if (largest := max(max(labels) for _, labels, _ in found)) >= len(names):
        raise SourceError(f"{name} has a label {largest}, and there are {len(names)} classes")
    return Source(name, sum(len(images) for images, _, _ in found), (), names, fingerprint(files), members)


class _CifarPart(NamedTuple):
    images: np.ndarray  # uint8 [n, 32, 32, 3]
    labels: list[int]
    kind: str  # the key of its labels


def _cifar(file: File) -> _CifarPart:
    content = _restricted(file)
    kind = "labels" if "labels" in content else "fine_labels"
    packed, labels = content.get("data"), content.get(kind)
    data = packed.pixels() if isinstance(packed, _Array) else None
    if data is None:
        raise SourceError(f"{file.path} has no uint8 [n, 3072] of images under 'data': it is not a file of CIFAR's")
    whole = isinstance(labels, list) and all(type(label) is int and label >= 0 for label in labels)
    if labels is None or not whole or not len(labels) == len(data) > 0:
        raise SourceError(f"{file.path} has no whole number for each of its {len(data)} images under {kind!r}")
    return _CifarPart(data.reshape(-1, 3, _CIFAR_PX, _CIFAR_PX).transpose(0, 2, 3, 1), labels, kind)


def _cifar_names(file: File, kind: str) -> tuple[str, ...]:
    """The class names of the file beside it; numbers, where there is none."""
    meta, key, count = ("batches.meta", "label_names", 10) if kind == "labels" else ("meta", "fine_label_names", 100)
    try:
        names = _restricted(file._replace(path=str(PurePosixPath(file.path).with_name(meta)))).get(key)
    except FileNotFoundError:
        names = None
    if isinstance(names, list) and len(names) == count and all(isinstance(name, str) for name in names):
        return tuple(names)
    return tuple(str(number) for number in range(count))


class _Array:
    """Stands in for what NumPy would make of a pickled array, and runs none of its code: shape, kind and bytes."""

    def __init__(self, *_: object) -> None:
        self.shape: Any = None
        self.kind: Any = None
        self.content: Any = None

    def __setstate__(self, state: Any) -> None:
        _, self.shape, self.kind, _, self.content = state

    def pixels(self) -> np.ndarray | None:
        """uint8 ``[n, 3072]``, None: it is something else."""
        content = self.content.encode("latin1") if isinstance(self.content, str) else self.content
        kind = self.kind.code if isinstance(self.kind, _Kind) else None
        if kind != "u1" or not isinstance(content, bytes) or len(content) % _CIFAR_BYTES:
            return None
        rows = np.frombuffer(content, dtype=np.uint8).reshape(-1, _CIFAR_BYTES)
        return rows if self.shape == rows.shape else None


class _Kind:
    """Stands in for a pickled numpy.dtype."""

    def __init__(self, code: Any = None, *_: object) -> None:
        self.code = code

    def __setstate__(self, state: Any) -> None:
        pass


class _OnlyArrays(pickle.Unpickler):
    """Makes dictionaries, lists, numbers, text and stand-ins of arrays; refuses to look up anything else."""

    _STAND_INS: ClassVar = {
        "numpy.ndarray": _Array,
        "numpy.dtype": _Kind,
        "numpy.core.multiarray._reconstruct": _Array,
        "numpy._core.multiarray._reconstruct": _Array,
        "_codecs.encode": lambda text, _: text.encode("latin1"),  # Python 3's way to put bytes into such a file
    }

    def find_class(self, module: str, name: str) -> Any:
        if stand_in := self._STAND_INS.get(f"{module}.{name}"):
            return stand_in
        raise pickle.UnpicklingError(f"it asks for {module}.{name}")


def _restricted(file: File) -> dict[str, Any]:
    """A dictionary from a Python 2 pickle, its keys and texts as str; nothing that the file names is called."""
    try:
        with file.open() as stream:
            content = _OnlyArrays(stream, encoding="latin1").load()
    except FileNotFoundError:
        raise
    except Exception as error:  # rubbish raises whatever it trips over
        raise SourceError(f"{file.path} is not a file of CIFAR's ({error})") from None
    if not isinstance(content, dict):
        raise SourceError(f"{file.path} is not a file of CIFAR's: it has no dictionary")
    return content
