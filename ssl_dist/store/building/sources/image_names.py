"""Which files are images: by their names, or by their first bytes where the name does not tell."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence

from ssl_dist.errors import SourceError
from ssl_dist.store.building.sources.files import File
from ssl_dist.store.image_files import HEAD_BYTES, WEB_PAGE, format_of

FORMATS = "JPEG, PNG, WebP, BMP"
# Files with none of these suffixes are opened and their first bytes read, which takes time. Images in formats that are
# not read count as images: ``decode`` goes by the first bytes, and names such a format.
_SUFFIX = re.compile(
    r"\.(?:(?P<jpeg>jpe?g|jpe|jfif|jif|jfi|pjp(?:eg)?)|(?P<read>a?png|webp|bmp|dib)"
    r"|(?P<unread>gif|tiff?|avif|hei[cf]|hif|jp2|j2k|jp[cfx]|jxl|psd|ico|svg|p[bgpn]m|tga|exr|hdr|dds|pcx|xcf|eps|[ew]mf"
    r"|dng|cr[23]|nef|nrw|arw|sr[2fw]|orf|rw2|raf|pef|x3f|3fr|iiq|erf|kdc)"  # the second line: cameras' raw data
    r"|(?P<other>txt|md|rst|log|[ct]sv|jsonl?|xml|ya?ml|toml|ini|cfg|conf|html?|css|js|url|cls|id|py|sh|ipynb|c|cpp|h"
    r"|np[yz]|pkl|pickle|pt|pth|safetensors|mat|h5|hdf5|parquet|arrow|feather|tfrecord|[lm]db|db|sqlite|zip|tar|t?gz"
    r"|bz2|xz|zst|7z|rar|pdf|docx?|xlsx?|pptx?|mp[34]|m4v|mov|avi|mkv|webm|wav|flac|ogg|lnk|exe|dll|so|tmp|part"
    r"|crdownload|md5|sha256))",
    re.IGNORECASE,
)
_PREFERRED = ("jpeg", "read", "unknown", "unread", "other")
_EARLIER_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")


def _kind_of(name: str) -> str:
    found = _SUFFIX.fullmatch(os.path.splitext(name)[1])
    return "unknown" if found is None else str(found.lastgroup)


def is_image(name: str) -> bool:
    """Return whether a file's name is that of an image."""
    return _kind_of(name) in ("jpeg", "read", "unread")


def may_be_image(name: str) -> bool:
    """Return whether only its first bytes tell if a file is an image: its name has no suffix that is known."""
    return _kind_of(name) == "unknown"


def preference(name: str) -> int:
    """Return what images of one name are ordered by: a JPEG file comes first, formats that are not read come last."""
    return _PREFERRED.index(_kind_of(name))


def was_image(name: str) -> bool:
    """Return whether earlier versions took a file for an image, which went by its name alone."""
    return name.lower().endswith(_EARLIER_SUFFIXES) and not name.rpartition("/")[2].startswith(".")


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
