"""Image files as a source: in folders, or in tars, each of which may be a WebDataset shard.

An image's class is the first folder that the images do not all share. In a WebDataset shard it is the number in the
``.cls`` file of the same sample. A tar is read twice: once for the names, where the data of an uncompressed tar is
skipped, and once for the images, in the same order. Nothing is extracted, and no name in an archive is used as a path.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path, PurePosixPath

from ssl_dist.errors import SourceError
from ssl_dist.store.building.sources.base import MAX_CLASSES, Member, Source, to_unicode
from ssl_dist.store.building.sources.files import File, fingerprint, local_file, open_source_file
from ssl_dist.store.building.sources.tars import regular_files
from ssl_dist.store.decode import MAX_FILE_BYTES
from ssl_dist.store.image_files import HEAD_BYTES, WEB_PAGE, format_of
from ssl_dist.store.schema import NO_LABEL

FORMATS = "JPEG, PNG, WebP, BMP"
# suffixes of images, also in formats that are not read: ``decode`` goes by the first bytes, and names such a format
_IMAGE_SUFFIX = re.compile(
    r"\.(jpe?g|jpe|jfif|jif|jfi|pjp(eg)?|a?png|webp|bmp|dib|gif|tiff?|avif|hei[cf]|hif|jp2|j2k|jp[cfx]|jxl|psd|ico|svg)",
    re.IGNORECASE,
)
# suffixes of files that are no images; files with neither are opened and their first bytes read, which takes time
_OTHER_SUFFIX = re.compile(
    r"\.(txt|md|rst|log|[ct]sv|jsonl?|xml|ya?ml|toml|ini|cfg|conf|html?|css|js|url|cls|id|py|sh|ipynb|c|cpp|h|np[yz]|pkl"
    r"|pickle|pt|pth|safetensors|mat|h5|hdf5|parquet|arrow|feather|tfrecord|[lm]db|db|sqlite|zip|tar|t?gz|bz2|xz|zst|7z"
    r"|rar|pdf|docx?|xlsx?|pptx?|mp[34]|m4v|mov|avi|mkv|webm|wav|flac|ogg|lnk|exe|dll|so|tmp|part|crdownload|md5|sha256)",
    re.IGNORECASE,
)
_EARLIER_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
_CLASS_SUFFIX = ".cls"  # of the file in a WebDataset sample that contains the number of its class
_MAX_DIGITS = 9  # of that number


def is_image(name: str) -> bool:
    """Return whether a file's name is that of an image, and not hidden."""
    return bool(_IMAGE_SUFFIX.fullmatch(_suffix(name)))


def may_be_image(name: str) -> bool:
    """Return whether only its first bytes tell if a file is an image: its name has no suffix that is known."""
    is_hidden = name.rpartition("/")[2].startswith(".")
    return not (is_hidden or _IMAGE_SUFFIX.fullmatch(_suffix(name)) or _OTHER_SUFFIX.fullmatch(_suffix(name)))


def _suffix(name: str) -> str:
    """Return the suffix of a file's name with its dot; that of a hidden file is empty."""
    name = name.rpartition("/")[2]
    return "" if name.startswith(".") else os.path.splitext(name)[1]


def begins_as_image(start: bytes) -> bool:
    """Return whether a file begins as an image of any format does, also of one that is not read."""
    return format_of(start) not in (None, WEB_PAGE)


def find_images(files: Sequence[File]) -> list[File]:
    """Return the files that are images by their names, or by their first bytes if the name does not tell."""
    return [
        file
        for file in files
        if file.is_regular and (is_image(file.key) or (may_be_image(file.key) and begins_as_image(_read_start(file))))
    ]


def _read_start(file: File) -> bytes:
    """Return the first bytes of a file; those of one that is not there or not readable are none.

    Raises:
        SourceError: the file cannot be read now, but perhaps later.
    """
    try:
        with file.open() as content:
            return content.read(HEAD_BYTES)
    except (FileNotFoundError, PermissionError):
        return b""
    except OSError as error:
        raise SourceError(f"{file.key} cannot be read ({error}): call again") from None


def files_below(folder: Path) -> list[File]:
    """List all files below a folder, sorted; links to folders are followed, but no folder is entered twice.

    Raises:
        SourceError: a folder cannot be read.
    """

    def refuse(error: OSError) -> None:
        raise SourceError(f"{error.filename}: {error.strerror}")

    keys, seen = list[str](), set()
    for root, folders, files in os.walk(folder, onerror=refuse, followlinks=True):
        seen.add(os.path.realpath(root))
        folders[:] = [name for name in folders if os.path.realpath(os.path.join(root, name)) not in seen]
        keys += [(Path(root) / name).relative_to(folder).as_posix() for name in files]
    return [local_file(str(folder / key), key) for key in sorted(keys)]


def list_images(name: str, files: Sequence[File], images: Sequence[File]) -> Source:
    """List the images among files.

    Raises:
        SourceError: there is no image.
    """
    paths = {file.path for file in images}
    non_images = tuple(file.key for file in files if file.path not in paths)
    names, label = _find_classes(name, [file.key for file in images], len(files))

    def members() -> Iterator[Member]:
        return (Member(file.key, label(file.key), file) for file in images)

    return Source(name, len(images), non_images, names, _identity(files, [file.key for file in images]), members)


def list_tars(name: str, tars: Sequence[File]) -> Source:
    """List the regular files in tars, in their order.

    Raises:
        SourceError: no file is an image, a tar is damaged or cut, or a WebDataset sample's class is not a number.
    """
    keys, non_images = list[str](), list[str]()
    labels: dict[str, int] = {}
    for tar in tars:
        for key, content in _read_tar(tar, lambda name: name.endswith(_CLASS_SUFFIX) or may_be_image(name)):
            if is_image(key) or (may_be_image(key) and begins_as_image(content or b"")):
                keys.append(key)
            elif key.endswith(_CLASS_SUFFIX) and content is not None:
                labels[_sample_name(tar, key)] = _parse_class(tar, key, content)
            else:
                non_images.append(key)
    names, folder_label = _find_classes(name, keys, len(keys) + len(non_images))
    if labels:
        names = tuple(map(str, range(max(labels.values()) + 1)))

    def members() -> Iterator[Member]:
        for tar in tars:
            for key, content in _read_tar(tar, lambda name: is_image(name) or may_be_image(name)):
                if content is not None and (is_image(key) or begins_as_image(content)):
                    label = labels.get(_sample_name(tar, key), NO_LABEL) if labels else folder_label(key)
                    yield Member(key, label, content)

    return Source(name, len(keys), () if labels else tuple(non_images), names, _identity(tars, keys), members)


def _identity(files: Sequence[File], keys: Sequence[str]) -> str:
    """Return a fingerprint of the files, and of how many images are in them where earlier versions found fewer."""
    digest = fingerprint(files)
    return digest if all(key.lower().endswith(_EARLIER_SUFFIXES) for key in keys) else f"{digest} {len(keys)}"


def _find_classes(name: str, keys: Sequence[str], num_files: int) -> tuple[tuple[str, ...], Callable[[str], int]]:
    """Return the names of the classes of a source, and a function that returns the class of an image by its key.

    The function returns NO_LABEL for an image above the class folders.
    """
    if not keys:
        raise SourceError(f"{name}: no image file ({FORMATS}) among {num_files} files")
    parents = {PurePosixPath(key).parts[:-1] for key in keys}
    depth = len(os.path.commonprefix(list(parents)))  # noqa: RUF071  (these are tuples: it compares folders)
    folders = sorted({parent[depth] for parent in parents if len(parent) > depth})
    names = tuple(map(to_unicode, folders))
    if len(set(names)) < len(names):
        raise SourceError(f"{name}: names of folders that are not text would become the same class: rename them")
    numbers = {folder: number for number, folder in enumerate(folders)}

    def label(key: str) -> int:
        below = PurePosixPath(key).parts[depth:-1]
        return numbers[below[0]] if below else NO_LABEL

    return names, label


def _sample_name(tar: File, key: str) -> str:
    """Return the WebDataset sample that a file belongs to: its path up to the first dot of its name."""
    folder, _, name = key.rpartition("/")
    return f"{tar.path}\n{folder}/{name.partition('.')[0]}"


def _parse_class(tar: File, key: str, content: bytes) -> int:
    digits = content.strip()
    if not (digits.isdigit() and len(digits) <= _MAX_DIGITS):
        raise SourceError(f"{tar.path}: {key} is not the number of a class")
    if (number := int(digits)) >= MAX_CLASSES:
        raise SourceError(f"{tar.path}: {key} says class {number}: number the classes from 0, below {MAX_CLASSES:,}")
    return number


def _read_tar(tar: File, is_wanted: Callable[[str], bool]) -> Iterator[tuple[str, bytes | None]]:
    """Yield the regular files of a tar in archive order, with the content of those that are wanted by name.

    A file that is larger than an image may be is cut one byte above that size, so that ``decode`` refuses it.
    """
    with open_source_file(tar, "tar file") as packed:
        yield from regular_files(packed, is_wanted, MAX_FILE_BYTES + 1)
