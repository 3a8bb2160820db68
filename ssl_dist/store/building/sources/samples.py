"""Samples: files of one name that belong together, such as an image, its class and its mask, by WebDataset's habits.

A file ``NAME.cls`` holds the number of a class. It is the class of the images ``NAME.*`` whose name no other ``.cls``
file shares more of: that of ``0.png`` and ``0.seg.png`` is ``0.cls``, that of ``img.v2.png`` is ``img.v2.cls`` rather
than ``img.cls``. A ``.cls`` file that is of no image in this way, such as ``0.label.cls``, is the class of the images
without one that have the same name up to the first dot.

A sample is one image. Several belong to one sample if they share a ``.cls`` file, or in a tar if a name goes on where
another ends (``0.png``, ``0.seg.png``, ``0.jpg``). The one with the fewest letters before its last dot is taken, of
several a JPEG file, or at least one of a format that is read, and the others are left out. So is a mask by its name
(``0_mask.png`` beside ``0.jpg``), also in a folder. A name without a suffix that is known, such as ``scan.001``, is a
sample of its own.

Source: https://github.com/webdataset/webdataset, whose samples end at the first dot of a file's name.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence

from ssl_dist.errors import SourceError
from ssl_dist.store.building.sources.base import MAX_CLASSES, LeftOut
from ssl_dist.store.building.sources.image_names import may_be_image, preference
from ssl_dist.store.schema import NO_LABEL

CLASS_SUFFIX = ".cls"
MAX_CLASS_BYTES = 64  # of a file with the number of a class; a listing keeps one more, to know longer ones
_MAX_DIGITS = 9
# names, up to the first dot, of files about all images
_MASK = re.compile(r"[._-](?:masks?|seg|segmentation|gt|groundtruth|labels?|annotations?|trimap|matte)$", re.IGNORECASE)
_ABOUT_ALL = frozenset({"readme", "license", "licence", "labels", "metadata"})


class Samples:
    """The samples in a folder or a tar.

    Args:
        name: the name of the folder or tar, for messages.
        keys: the paths of its images.
        classes: the content of its ``.cls`` files, by their paths.
        in_tar: whether an image belongs to the sample of another whose name it begins with.

    Attributes:
        images: the images that are taken, in the order of ``keys``.
        labels: the number of the class of each that has one.
        left_out: images beside another of their sample, and classes of no image.

    Raises:
        SourceError: a class is not a number, or an image has several.
    """

    def __init__(self, name: str, keys: Sequence[str], classes: Mapping[str, bytes], *, in_tar: bool = False) -> None:
        class_of, sample_of = _group(name, keys, classes, in_tar)
        chosen = dict[str, str]()
        for key in sorted(keys, key=_rank):
            chosen.setdefault(sample_of[key], key)
        self.images = [key for key in keys if chosen[sample_of[key]] == key]
        numbers = {key: _parse_class(name, key, classes[key]) for key in set(class_of.values())}
        self.labels = {key: numbers[class_of[key]] for key in self.images if key in class_of}
        taken = ((key, chosen[sample_of[key]]) for key in keys)
        self.left_out = [LeftOut(key, f"beside the image of its sample: {of}") for key, of in taken if key != of]
        unused = sorted(classes.keys() - set(class_of.values()))
        self.left_out += [LeftOut(key, "the class of no image") for key in unused]

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes: the numbers up to the largest."""
        return tuple(map(str, range(max(self.labels.values(), default=-1) + 1)))

    def label(self, key: str) -> int:
        """Return the class of an image, or NO_LABEL."""
        return self.labels.get(key, NO_LABEL)


def _group(
    name: str, keys: Sequence[str], classes: Mapping[str, bytes], in_tar: bool
) -> tuple[dict[str, str], dict[str, str]]:
    """Return the ``.cls`` file of each image that has one, and the name of each image's sample."""
    by_stem = {key[: -len(CLASS_SUFFIX)]: key for key in classes}
    image_of = {_stem(key): key for key in keys}
    class_of, sample_of = dict[str, str](), dict[str, str]()
    for key in keys:
        beginnings = _beginnings(key)
        shorter = reversed(beginnings) if in_tar and not may_be_image(key) else ()
        sample_of[key] = next((one for one in shorter if one in image_of), key)
        if found := next((one for one in (key, *beginnings) if one in by_stem), None):
            class_of[key], sample_of[key] = by_stem[found], found
    orphans = dict[str, list[str]]()
    for key in sorted(classes.keys() - set(class_of.values())):
        orphans.setdefault(_sample_name(key), []).append(key)
    for key in keys if orphans else ():
        if key not in class_of and (found_here := orphans.get(_sample_name(key))):
            if len(found_here) > 1:
                raise SourceError(f"{name}: {key} has several classes ({', '.join(found_here)}): keep one")
            class_of[key], sample_of[key] = found_here[0], _sample_name(key)
    for stem, key in image_of.items():
        if (masked := _MASK.sub("", stem)) != stem and masked in image_of:
            sample_of[key] = sample_of[image_of[masked]]
    return class_of, sample_of


def _rank(key: str) -> tuple[int, int, str]:
    """Return what the images of a sample are ordered by: the first is taken."""
    return len(_stem(key)), preference(key), key


def accompanies(images: Collection[str], others: Sequence[str]) -> tuple[list[LeftOut], list[LeftOut]]:
    """Return which other files are foreign, and which accompany images.

    A file accompanies an image in the same folder that has the same name up to the first dot (``0.json``, ``0.jpg.txt``
    beside ``0.jpg``), or all of them (``README``, ``labels.csv``).
    """
    samples = set(map(_sample_name, images))
    foreign, beside = list[LeftOut](), list[LeftOut]()
    for key in others:
        sample = _sample_name(key)
        if sample in samples or sample.rpartition("/")[2].lower() in _ABOUT_ALL:
            beside.append(LeftOut(key, "beside images"))
        else:
            foreign.append(LeftOut(key, "not an image file"))
    return foreign, beside


def _sample_name(key: str) -> str:
    """Return a path up to the first dot of the file's name."""
    folder, slash, name = key.rpartition("/")
    return folder + slash + name.partition(".")[0]


def _beginnings(key: str) -> list[str]:
    """Return a path up to each dot of the file's name, the longest first; the path itself if there is no dot."""
    folder, slash, name = key.rpartition("/")
    parts = name.split(".")
    return [folder + slash + ".".join(parts[:count]) for count in range(len(parts) - 1, 0, -1)] or [key]


def _stem(key: str) -> str:
    """Return a path up to its last dot; the whole path if what follows is no suffix, as in ``scan.001``."""
    return key if may_be_image(key) else _beginnings(key)[0]


def _parse_class(name: str, key: str, content: bytes) -> int:
    digits = content.strip()
    if digits == b"-1":
        return NO_LABEL
    if not (digits.isdigit() and len(digits) <= _MAX_DIGITS and len(content) <= MAX_CLASS_BYTES):
        said = ascii(digits[: 2 * _MAX_DIGITS].decode(errors="replace"))
        raise SourceError(f"{name}: {key} says {said}, which is not the number of a class")
    if (number := int(digits)) >= MAX_CLASSES:
        raise SourceError(f"{name}: {key} says class {number}: number the classes from 0, below {MAX_CLASSES:,}")
    return number
