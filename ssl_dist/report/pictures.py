"""Pictures and pages as files: where they may be written, and writing them whole or not at all."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ssl_dist.errors import RunError
from ssl_dist.files import replacing

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_LONGEST_NAME = 24  # characters


def expect_writable(path: Path, suffixes: Sequence[str], what: str = "--out") -> None:
    """Refuse a file that cannot be written, or whose name does not end in one of ``suffixes``, before work begins.

    Args:
        what: word of the command line that named it, for the message.

    Raises:
        RunError: as above.
    """
    if path.suffix.lower() not in suffixes:
        raise RunError(f"{what} {path}: its name must end in {' or '.join(suffixes)}")
    if path.is_dir() or not path.parent.is_dir():
        raise RunError(f"{what} {path}: {'it is a folder' if path.is_dir() else f'there is no folder {path.parent}'}")
    if not os.access(path.parent, os.W_OK):
        raise RunError(f"{what} {path}: the folder {path.parent} is not writable")


def literal(text: str) -> str:
    """Return text that a picture shows as it stands, also between dollars, which would else be a formula."""
    return text.replace("$", r"\$")


def shortened(name: str) -> str:
    """Return a name that fits into a picture."""
    return name if len(name) <= _LONGEST_NAME else f"{name[: _LONGEST_NAME - 1]}…"


def save(figure: Figure, picture: Path) -> None:
    """Write a picture at 110 dots an inch, as PNG or in the format of the name's ending.

    Raises:
        RunError: it cannot be written.
    """
    try:
        with replacing(picture) as aside, warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # the font lacks a letter of a name, and shows a box
            figure.savefig(aside, dpi=110, format=picture.suffix[1:].lower() or "png")
    except (OSError, ValueError) as error:
        raise RunError(f"picture {picture} cannot be written ({error})") from None
