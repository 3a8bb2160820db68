"""What a source of images is: listed once, then read in a fixed order, as often as one likes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import xxhash

from ssl_dist.store.building.sources.files import File
from ssl_dist.store.schema import NO_LABEL

Share = tuple[float, float]  # [low, high) of [0, 1)
MOST_CLASSES = 1_000_000  # where classes are numbers: a name is made for each up to the largest


def text(name: str) -> str:
    """The name of a file or class, which may hold bytes that are no text, as text."""
    return name.encode(errors="replace").decode(errors="replace")


class Member(NamedTuple):
    """One image of a source.

    Attributes:
        key: its path inside the source.
        label: index into the source's class_names; NO_LABEL where it has none.
        content: the bytes of an image file, the file to read them from, or pixels, uint8 ``[H, W, 3]``.
    """

    key: str
    label: int
    content: bytes | File | np.ndarray

    @property
    def held_bytes(self) -> int:
        """What it takes in memory."""
        if isinstance(self.content, File):
            return 0
        return len(self.content) if isinstance(self.content, bytes) else self.content.nbytes


@dataclass(frozen=True)
class Source:
    """A listed source.

    Attributes:
        name: as the user called it.
        total: how many images ``members`` gives.
        foreign: paths of files in it that are none.
        class_names: what labels are indices into; empty where nothing has one.
        fingerprint: another one where anything in it has changed.
        members: call it for all images, in the same order each time.
    """

    name: str
    total: int
    foreign: tuple[str, ...]
    class_names: tuple[str, ...]
    fingerprint: str
    members: Callable[[], Iterator[Member]]

    def part(self, share: Share) -> Source:
        """The images whose key, hashed to a number in [0, 1), lies in a share: others' coming or going changes nothing
        for an image. ``total`` is then about right."""
        low, high = share
        if low <= 0 and high >= 1:
            return self

        def members() -> Iterator[Member]:
            for member in self.members():
                if low <= xxhash.xxh3_64_intdigest(member.key.encode(errors="surrogateescape")) / 2**64 < high:
                    yield member

        total = round(self.total * (high - low))
        return replace(self, total=total, fingerprint=f"{self.fingerprint} {share}", members=members)

    def renamed(self, names: tuple[str, ...]) -> Source:
        """With labels that are indices into ``names``, which has all of ``class_names``."""
        if names[: len(self.class_names)] == self.class_names:
            return replace(self, class_names=names)
        numbers = [names.index(name) for name in self.class_names]

        def members() -> Iterator[Member]:
            for member in self.members():
                yield member._replace(label=member.label if member.label == NO_LABEL else numbers[member.label])

        return replace(self, class_names=names, members=members)
