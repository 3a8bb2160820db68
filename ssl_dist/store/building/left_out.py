"""The files of a source that do not become images: summed up in the log, and all named in a file beside the store."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path, PurePosixPath

from ssl_dist.errors import printable
from ssl_dist.files import write_text
from ssl_dist.store.building.sources import LeftOut

_EXAMPLES = 3
_MAX_LINES = 12  # of reasons in the log

log = logging.getLogger(__name__)


def left_out_file(store: Path) -> Path:
    """Return the path of the file, beside a store, that names what its build and appends left out."""
    return store.with_name(f"{store.absolute().name}-left-out.txt")


def tell_left_out(
    store: Path, left_out: Sequence[LeftOut], passed_over: Sequence[LeftOut], *, growing: bool = False
) -> str:
    """Log what was left out of a store, by reason and ending, and write all of it into ``left_out_file``.

    Files that were passed over are counted in a line of their own. An older file is replaced, or removed if nothing was
    left out; where a store is ``growing``, the lines of the older file stay.

    Returns:
        Where all of it is named, in words.
    """
    file = left_out_file(store)
    if beside := _sum_up(passed_over, lambda file: file.reason):
        log.info("passed over: %s", "; ".join(f"{len(keys):,} {why} ({_some(keys)})" for why, keys in beside))
    groups = _sum_up(left_out, lambda file: f"{_ending(file.key)}: {file.reason.partition(': ')[0]}")
    for what, keys in groups[:_MAX_LINES]:
        log.warning("left out %s %s (%s)", f"{len(keys):,}", printable(what), _some(keys))
    if rest := groups[_MAX_LINES:]:
        log.warning("left out %s more, for %s other reasons", f"{sum(len(keys) for _, keys in rest):,}", len(rest))
    lines = [f"{printable(key)}: {printable(reason)}\n" for key, reason in left_out]
    try:
        before = file.read_text("utf-8").splitlines(keepends=True) if growing and file.exists() else []
        if lines:
            write_text(file, "".join(dict.fromkeys([*before, *lines])))
            log.warning("all that was left out is named in %s", file)
        elif not growing:
            file.unlink(missing_ok=True)
    except OSError as error:  # the folder around a store may be one that only others may change
        log.warning("%s cannot be written (%s)", file, error.strerror)
        return "not named, since no file can be written beside the store"
    return f"named in {file}"


def _sum_up(files: Iterable[LeftOut], group_of: Callable[[LeftOut], str]) -> list[tuple[str, list[str]]]:
    """Return the keys in each group, the largest group first."""
    groups = dict[str, list[str]]()
    for file in files:
        groups.setdefault(group_of(file), []).append(file.key)
    return sorted(groups.items(), key=lambda group: -len(group[1]))


def _ending(key: str) -> str:
    return PurePosixPath(key).suffix.lower() or "without an ending"


def _some(keys: Sequence[str]) -> str:
    return ", ".join(map(printable, keys[:_EXAMPLES])) + (", ..." if len(keys) > _EXAMPLES else "")
