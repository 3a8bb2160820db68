"""The listing of a source of images: made once, then read in a fixed order as often as needed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import xxhash

from ssl_dist.errors import SourceError
from ssl_dist.store.building.sources.files import File
from ssl_dist.store.schema import NO_LABEL

HashRange = tuple[float, float]  # keys whose hash, a number in [0, 1), lies in [low, high)
MAX_CLASSES = 1_000_000  # for labels that are numbers: each number up to the largest label gets a class name


def count_images(file: File, num_bytes: int, image_bytes: int, dataset: str) -> int:
    """Return how many images a file of this length has; raise SourceError if it has none, or a part of one."""
    if num_bytes == 0 or num_bytes % image_bytes:
        raise SourceError(f"{file.path} has {num_bytes} bytes: {dataset}'s images take {image_bytes} each")
    return num_bytes // image_bytes


def to_unicode(name: str) -> str:
    """Return a file's or class's name with "?" in place of bytes that are not text."""
    return name.encode(errors="replace").decode(errors="replace")


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
        non_images: paths of files in it that are not images.
        class_names: the names that labels are indices into; empty if no image has a label.
        fingerprint: a text that changes when anything in the source changes.
        members: a function that yields all images, in the same order at each call.
        treatment: what was done to the pixels, where the images are those of stores; else None.
    """

    name: str
    num_images: int
    non_images: tuple[str, ...]
    class_names: tuple[str, ...]
    fingerprint: str
    members: Callable[[], Iterator[Member]]
    treatment: Treatment | None = None

    def select(self, hash_range: HashRange) -> Source:
        """Select the images whose key, hashed to a number in [0, 1), lies in a range; ``num_images`` is then estimated.

        Whether an image is selected does not depend on the other images.
        """
        low, high = hash_range
        if low <= 0 and high >= 1:
            return self

        def members() -> Iterator[Member]:
            for member in self.members():
                if low <= xxhash.xxh3_64_intdigest(member.key.encode(errors="surrogateescape")) / 2**64 < high:
                    yield member

        estimate = round(self.num_images * (high - low))
        return replace(self, num_images=estimate, fingerprint=f"{self.fingerprint} {hash_range}", members=members)

    def with_class_names(self, names: tuple[str, ...]) -> Source:
        """Renumber the labels as indices into ``names``, which must contain all of ``class_names``."""
        numbers = [names.index(name) for name in self.class_names]

        def members() -> Iterator[Member]:
            for member in self.members():
                yield member._replace(label=member.label if member.label == NO_LABEL else numbers[member.label])

        return replace(self, class_names=names, members=members)
