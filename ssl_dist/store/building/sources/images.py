"""Image files as a source: in folders, or in tars, each of which may be a WebDataset shard.

An image's class is the first folder that the images do not all share, or the number in the ``.cls`` file of its sample
(see ``samples``). A tar is read twice: once for the names, where the data of an uncompressed tar is skipped, and once
for the images, in the same order. Nothing is extracted, and no name in an archive is used as a path. A link in a tar is
an image like the file that it leads to, and follows it in the store.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import PurePosixPath
from posixpath import normpath
from typing import NamedTuple

import xxhash

from ssl_dist.errors import SourceError
from ssl_dist.store.building.sources.base import LeftOut, Member, Source, class_name, to_unicode
from ssl_dist.store.building.sources.files import File, fingerprint, hidden_part, open_source_file
from ssl_dist.store.building.sources.image_names import FORMATS, begins_as_image, is_image, may_be_image, was_image
from ssl_dist.store.building.sources.samples import CLASS_SUFFIX, MAX_CLASS_BYTES, Samples, accompanies
from ssl_dist.store.building.sources.tars import TarMember, read_members
from ssl_dist.store.decode import MAX_FILE_BYTES
from ssl_dist.store.image_files import HEAD_BYTES
from ssl_dist.store.schema import NO_LABEL

log = logging.getLogger(__name__)

_MAX_LINKS = 16  # links that lead from one to the next


def list_images(name: str, files: Sequence[File], found: Sequence[File], known: Collection[str] = ()) -> Source:
    """List the images ``found`` among files; ``known`` are the classes of the store that they are added to.

    Raises:
        SourceError: there is no image, or the class of a sample is not a number.
    """
    found_keys = [file.key for file in found]
    are_images = frozenset(found_keys)
    others = [file for file in files if file.key not in are_images]
    classes = {file.key: _read_class(file) for file in others if file.is_regular and _is_class(file.key)}
    samples = Samples(name, found_keys, classes)
    chosen, keys = frozenset(samples.images), samples.images
    images = [file for file in found if file.key in chosen]
    names, folder_label, above = _find_classes(name, keys, len(files), map(_folder_of, images), known)
    if samples.labels:
        _warn_of_unlabelled(name, len(keys) - len(samples.labels), names)
        names = samples.class_names
    foreign, passed_over = accompanies(found_keys, [file.key for file in others if file.key not in classes])

    def members() -> Iterator[Member]:
        for file in images:
            label = samples.label(file.key) if samples.labels else folder_label(file.key)
            yield Member(above + file.key, label, file)

    found_before = [file.key for file in files if file.is_regular and was_image(file.key)]
    identity = _identity(files, [samples], keys == found_before) + (f" {above}" if above else "")
    keys = [above + key for key in keys]
    left_out = (*foreign, *samples.left_out)
    return Source(name, len(keys), names, identity, members, left_out, tuple(passed_over), keys)


class _ListedTar(NamedTuple):
    """A tar's images and classes. ``keys_of`` gives the keys of the images that a member of it becomes."""

    samples: Samples
    keys_of: dict[int, list[str]]
    found_before: list[str]
    left_out: list[LeftOut]
    passed_over: list[LeftOut]
    num_files: int


def list_tars(name: str, tars: Sequence[File], known: Collection[str] = ()) -> Source:
    """List the files in tars, in their order; ``known`` are the classes of the store that they are added to.

    Raises:
        SourceError: no file is an image, a tar is damaged or cut, or the class of a WebDataset sample is not a number.
    """
    listed = [_list_tar(tar) for tar in tars]
    keys = [key for one in listed for at in one.keys_of.values() for key in at]
    folders, num_files = (key.rpartition("/")[0] for key in keys), sum(one.num_files for one in listed)
    names, folder_label, _ = _find_classes(name, keys, num_files, folders, known)
    is_labelled = any(one.samples.labels for one in listed)
    if is_labelled:
        _warn_of_unlabelled(name, len(keys) - sum(len(one.samples.labels) for one in listed), names)
        names = max((one.samples.class_names for one in listed), key=len)

    def members() -> Iterator[Member]:
        # a file that is larger than an image may be is cut one byte above that size, so that ``decode`` refuses it
        for tar, one in zip(tars, listed, strict=True):
            label = one.samples.label if is_labelled else folder_label
            for number, member in enumerate(_read_tar(tar, partial(_is_in, one.keys_of), MAX_FILE_BYTES + 1)):
                for key in one.keys_of.get(number, ()):
                    yield Member(key, label(key), member.content or b"")

    left_out = tuple(file for one in listed for file in one.left_out)
    passed_over = tuple(file for one in listed for file in one.passed_over)
    found_before = [key for one in listed for key in one.found_before]
    identity = _identity(tars, [one.samples for one in listed], keys == found_before)
    return Source(name, len(keys), names, identity, members, left_out, passed_over, keys)


def _warn_of_unlabelled(name: str, number: int, folders: Sequence[str]) -> None:
    """Warn where images have no ``.cls`` file, but lie in folders that would be classes if no image had one."""
    if number and folders:
        log.warning(
            "%s: %d images have no .cls file as others have, so they get no label, nor their folder's", name, number
        )


def _identity(files: Sequence[File], samples: Sequence[Samples], are_as_before: bool) -> str:
    """Return a fingerprint of the files, and of their images and classes where earlier versions had other rules."""
    digest = fingerprint(files)
    if are_as_before and not any(one.labels for one in samples):
        return digest
    found = repr([(one.images, one.labels) for one in samples])
    return f"{digest} {xxhash.xxh3_64_hexdigest(found.encode())}"


@dataclass
class _Contents:
    """The members of a tar, by their kinds.

    Attributes:
        files: the number and the key of each regular file that is not hidden, by its path.
        targets: the same of those that are hidden, to which links may lead, as git-annex's do.
        links: each link, by its path.
        classes: the beginnings of ``.cls`` files, by their keys.
        pictures: the numbers of files that are images by their names or first bytes.
        found_before: the keys of the images that earlier versions found.
    """

    files: dict[str, tuple[int, str]] = field(default_factory=dict)
    targets: dict[str, tuple[int, str]] = field(default_factory=dict)
    links: dict[str, TarMember] = field(default_factory=dict)
    classes: dict[str, bytes] = field(default_factory=dict)
    pictures: set[int] = field(default_factory=set)
    found_before: list[str] = field(default_factory=list)
    left_out: list[LeftOut] = field(default_factory=list)
    hidden: dict[str, LeftOut] = field(default_factory=dict)
    count: int = 0

    def forget(self, path: str) -> None:
        """Leave out the file or link that has this path so far, because a later one replaces it."""
        file, link = self.files.pop(path, None), self.links.pop(path, None)
        if replaced := file[1] if file else link and link.name:
            self.left_out.append(LeftOut(replaced, "replaced: a later file in the tar has the same name"))

    def is_image(self, number: int, key: str) -> bool:
        """Return whether a file is an image, by the name that it has or that a link gives it, or by its first bytes."""
        return is_image(key) or (may_be_image(key) and number in self.pictures)


def _read_contents(tar: File) -> _Contents:
    """Read a tar once. Of several files of one name the last counts, as when the tar is extracted."""
    found = _Contents()
    for number, member in enumerate(_read_tar(tar, _tells_by_content, HEAD_BYTES)):
        key, path, start, found.count = member.name, normpath(member.name), member.content or b"", number + 1
        if member.is_regular and was_image(key):
            found.found_before.append(key)
        if part := hidden_part(key):
            found.hidden[part] = LeftOut(part, "hidden")
            found.targets |= {path: (number, key)} if member.is_regular else {}
        elif member.target is not None:
            if member.target != path or path not in found.files:  # GNU tar links a file that it packs twice to itself
                found.forget(path)
                found.links[path] = member
        elif not member.is_regular:
            found.left_out += [LeftOut(key, "not a regular file")] if is_image(key) else []
        elif _is_class(key):
            content = start[: MAX_CLASS_BYTES + 1]
            if found.classes.setdefault(key, content).strip() != content.strip():
                raise SourceError(f"{tar.path}: there are two files {key}, with different classes: keep one")
        else:
            found.forget(path)
            found.files[path] = (number, key)
            found.pictures |= {number} if is_image(key) or begins_as_image(start) else set()
    return found


def _list_tar(tar: File) -> _ListedTar:
    found = _read_contents(tar)
    linked, lost = _follow_links(found.links, found.targets | found.files, found.classes)
    pairs, others = list[tuple[int, str]](), list[str]()
    for number, key in (*found.files.values(), *linked):
        if found.is_image(number, key):
            pairs.append((number, key))
        else:
            others.append(key)
    samples = Samples(tar.path, [key for _, key in pairs], found.classes, in_tar=True)
    chosen, keys_of = frozenset(samples.images), dict[int, list[str]]()
    for number, key in sorted(pairs, key=lambda pair: pair[0]):
        if key in chosen:
            keys_of.setdefault(number, []).append(key)
    foreign, beside = accompanies([key for _, key in pairs], others)
    left_out, passed_over = [*found.left_out, *lost, *foreign, *samples.left_out], [*beside, *found.hidden.values()]
    return _ListedTar(samples, keys_of, found.found_before, left_out, passed_over, found.count)


def _follow_links(
    links: dict[str, TarMember], files: dict[str, tuple[int, str]], classes: dict[str, bytes]
) -> tuple[list[tuple[int, str]], list[LeftOut]]:
    """Return the number of the file that each link leads to, with the link's own key, and the links that lead nowhere.

    A link to a file of a class is added to ``classes``.
    """
    linked, lost = list[tuple[int, str]](), list[LeftOut]()
    of_class = {normpath(key): content for key, content in classes.items()}
    for member in links.values():
        target = normpath(member.target or "")
        for _ in range(_MAX_LINKS):
            if target not in links:
                break
            target = normpath(links[target].target or "")
        if target in files:
            linked.append((files[target][0], member.name))
        elif target in of_class and _is_class(member.name):
            classes[member.name] = of_class[target]
        else:
            lost.append(LeftOut(member.name, f"a link to no file of the tar: {to_unicode(member.target or '')}"))
    return linked, lost


def _is_in(numbers: Collection[int], number: int, _: str) -> bool:
    return number in numbers


def _tells_by_content(_: int, name: str) -> bool:
    return _is_class(name) or may_be_image(name)


def _is_class(name: str) -> bool:
    return PurePosixPath(name).suffix.lower() == CLASS_SUFFIX and hidden_part(name) is None


def _read_class(file: File) -> bytes:
    with open_source_file(file, "file of a class") as content:
        return content.read(MAX_CLASS_BYTES + 1)


def _folder_of(file: File) -> str:
    path = os.path.abspath(file.path) if file.filesystem is None else file.path
    return PurePosixPath(path).parent.as_posix()


def _folders_in(key: str) -> tuple[str, ...]:
    """Return the folders in an image's path below its source; ``..`` leads no further up."""
    return PurePosixPath(normpath(f"/{key}")).parts[1:-1]


class _Classes(NamedTuple):
    """The classes of a source.

    Attributes:
        label: returns the class of an image by its key; NO_LABEL for one above the class folders.
        above: what the keys of images in an added folder of a class lack of those that they have in the folder above.
    """

    names: tuple[str, ...]
    label: Callable[[str], int]
    above: str = ""


def _find_classes(
    name: str, keys: Sequence[str], num_files: int, folders_of_all: Iterable[str], known: Collection[str]
) -> _Classes:
    """Return the classes of a source: its folders, or the ``known`` class whose folder has all its images."""
    if not keys:
        raise SourceError(f"{name}: no image file ({FORMATS}) among {num_files} files")
    parents = set(map(_folders_in, keys))
    shared = os.path.commonprefix(list(parents))  # noqa: RUF071  (these are tuples: it compares folders)
    folders = sorted({parent[len(shared)] for parent in parents if len(parent) > len(shared)})
    if len(set(map(to_unicode, folders))) < len(folders):
        raise SourceError(f"{name}: names of folders that are not text would become the same class: rename them")
    known_names = set(map(class_name, known))
    if known_names and known_names.isdisjoint(map(class_name, folders)):
        common = os.path.commonprefix([tuple(folder.split("/")) for folder in set(folders_of_all)])  # noqa: RUF071
        around = common[-len(shared) - 1 :]  # the source's own folder, unless it is a tar, and those below it
        for number, folder in reversed(list(enumerate(around))):
            if (found := class_name(folder)) in known_names:
                is_own = number == 0 and len(around) > len(shared)
                return _Classes((found,), lambda key: 0, f"{folder}/" if is_own else "")
    names = tuple(dict.fromkeys(map(class_name, folders)))
    by_name = {name: number for number, name in enumerate(names)}
    numbers = {folder: by_name[class_name(folder)] for folder in folders}

    def label(key: str) -> int:
        below = _folders_in(key)[len(shared) :]
        return numbers[below[0]] if below else NO_LABEL

    return _Classes(names, label)


def _read_tar(tar: File, is_wanted: Callable[[int, str], bool], max_bytes: int) -> Iterator[TarMember]:
    """Yield the members of a tar in archive order, with up to ``max_bytes`` of those that are wanted."""
    with open_source_file(tar, "tar file") as packed:
        yield from read_members(packed, is_wanted, max_bytes)
