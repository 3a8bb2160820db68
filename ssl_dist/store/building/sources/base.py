"""The listing of a source of images: made once, then read in a fixed order as often as needed."""

from __future__ import annotations

import posixpath
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import xxhash

from ssl_dist.errors import SourceError
from ssl_dist.store.building.sources.files import File
from ssl_dist.store.schema import NO_LABEL

HashRange = tuple[float, float]  # keys whose hash, a number in [0, 1), lies in [low, high)
SPLITS = frozenset({"train", "training", "val", "valid", "validation", "test", "testing"})  # names of data sets' parts
MAX_CLASSES = 1_000_000  # for labels that are numbers: each number up to the largest label gets a class name


def count_images(file: File, num_bytes: int, image_bytes: int, dataset: str) -> int:
    """Return how many images a file of this length has; raise SourceError if it has none, or a part of one."""
    if num_bytes == 0 or num_bytes % image_bytes:
        raise SourceError(f"{file.path} has {num_bytes} bytes: {dataset}'s images take {image_bytes} each")
    return num_bytes // image_bytes


def to_unicode(name: str) -> str:
    """Return a file's or class's name with "?" in place of bytes that are not text."""
    return name.encode(errors="replace").decode(errors="replace")


def class_name(name: str) -> str:
    """Return a class's name as stores keep it: in Unicode's composed form, without blanks around it.

    So one name stays one class, whichever way a file system or an editor writes it.
    """
    return unicodedata.normalize("NFC", to_unicode(name)).strip() or to_unicode(name)


def key_form(key: str) -> str:
    """Return an image's key in the form in which two spellings of it are compared."""
    return posixpath.normpath(unicodedata.normalize("NFC", to_unicode(key)))


class LeftOut(NamedTuple):
    """A file that does not become an image of the store, and the reason: a few words, perhaps with more behind ": "."""

    key: str
    reason: str


class Member(NamedTuple):
    """One image of a source.

    Attributes:
        key: the image's path inside the source.
        label: index into the source's class_names; NO_LABEL if the image has none.
        content: the bytes of an image file, the file to read them from, or pixels, uint8 ``[H, W, 3]``.
    """

    key: str
    label: int
    content: bytes | File | np.ndarray

    @property
    def memory_bytes(self) -> int:
        """Memory that the content takes."""
        if isinstance(self.content, File):
            return 0
        return len(self.content) if isinstance(self.content, bytes) else self.content.nbytes


def array_members(file: File, images: np.ndarray, labels: Sequence[int], first: int = 0) -> Iterator[Member]:
    """Yield images ``[N, H, W, 3]`` of a file as members, numbered from ``first``."""
    for number, (image, label) in enumerate(zip(images, labels, strict=True), first):
        yield Member(f"{file.key}/{number}", label, np.ascontiguousarray(image))


class Treatment(NamedTuple):
    """What was done to the pixels of a store's images: ``resize`` and ``alpha`` of its manifest."""

    resize: str
    alpha: str | None


@dataclass(frozen=True)
class Source:
    """A listed source.

    Attributes:
        name: the name that the user gave.
        num_images: how many images ``members`` yields.
        left_out: files in it that do not become images, though a person may think so.
        passed_over: files in it that are hidden, or that accompany images: nobody misses them as images.
        class_names: the names that labels are indices into; empty if no image has a label.
        fingerprint: a text that changes when anything in the source changes.
        members: a function that yields all images, in the same order at each call.
        keys: their keys, where these are known without reading the images.
        treatment: what was done to the pixels, where the images are those of stores; else None.
    """

    name: str
    num_images: int
    class_names: tuple[str, ...]
    fingerprint: str
    members: Callable[[], Iterator[Member]]
    left_out: tuple[LeftOut, ...] = ()
    passed_over: tuple[LeftOut, ...] = ()
    keys: Sequence[str] | None = None
    treatment: Treatment | None = None

    def select(self, hash_range: HashRange) -> Source:
        """Select the images whose key, hashed to a number in [0, 1), lies in a range; ``num_images`` is then estimated.

        Whether an image is selected depends neither on the other images nor on how its path is written (``./a.png``).
        Files that are no images are selected alike, so that each is told of once.
        """
        low, high = hash_range
        if low <= 0 and high >= 1:
            return self

        def is_selected(file: Member | LeftOut) -> bool:
            return low <= xxhash.xxh3_64_intdigest(key_form(file.key).encode()) / 2**64 < high

        return replace(
            self,
            num_images=round(self.num_images * (high - low)),
            fingerprint=f"{self.fingerprint} {hash_range}",
            members=lambda: filter(is_selected, self.members()),
            left_out=tuple(filter(is_selected, self.left_out)),
            passed_over=tuple(filter(is_selected, self.passed_over)),
        )

    def with_class_names(self, names: tuple[str, ...]) -> Source:
        """Renumber the labels as indices into ``names``, which must contain all of ``class_names``, in any form."""
        known = {class_name(name): number for number, name in reversed(list(enumerate(names)))}
        numbers = [known[class_name(name)] for name in self.class_names]

        def members() -> Iterator[Member]:
            for member in self.members():
                yield member._replace(label=member.label if member.label == NO_LABEL else numbers[member.label])

        return replace(self, class_names=names, members=members)

    def with_labels(self, labels: Mapping[str, str], names: tuple[str, ...]) -> Source:
        """Replace the classes: ``labels`` maps the ``key_form`` of a key to one of ``names``; others get no label."""
        numbers = {name: number for number, name in enumerate(names)}

        def members() -> Iterator[Member]:
            for member in self.members():
                name = labels.get(key_form(member.key))
                yield member._replace(label=NO_LABEL if name is None else numbers[name])

        digest = xxhash.xxh3_64_hexdigest(repr(sorted(labels.items())).encode(errors="replace"))
        return replace(self, class_names=names, fingerprint=f"{self.fingerprint} {digest}", members=members)
