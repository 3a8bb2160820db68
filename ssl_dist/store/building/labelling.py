"""Labels from a CSV file, for a store that is being built or for one that is there, and counts of labels."""

from __future__ import annotations

import collections
import csv
import logging
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ssl_dist.errors import ConfigError, StoreDamaged
from ssl_dist.store.building.columns import read_column
from ssl_dist.store.building.lock import local_folder, lock_store
from ssl_dist.store.building.sources import Source
from ssl_dist.store.building.sources.base import class_name, key_form
from ssl_dist.store.image_store import ImageStore
from ssl_dist.store.labels import parse_labels, read_labels, write_labels
from ssl_dist.store.schema import NO_LABEL, Manifest

_NAMED = 5  # wrong keys or classes that a message names
_NONE = ("", "-1", "-1.0")  # labels of images without one
_LIKE_NONE = frozenset({"nan", "none", "na", "n/a", "<na>", "null", "nat"})  # what programs write for a missing value
_NEGATIVE, _WHOLE = re.compile(r"-[0-9]+(\.0)?"), re.compile(r"([0-9]+)\.0")

log = logging.getLogger(__name__)


class Labels(NamedTuple):
    """The labels in a CSV file.

    Attributes:
        file: its path, for messages.
        by_key: the name of the class by the ``key_form`` of a key; None: no label.
        takes_away: whether a line says by -1, and not by an empty field, that its image has no label.
    """

    file: str
    by_key: dict[str, str | None]
    takes_away: bool = False

    @property
    def class_names(self) -> tuple[str, ...]:
        """The names that occur, sorted; by their numbers if all of them are numbers."""
        names = {name for name in self.by_key.values() if name is not None}
        return tuple(sorted(names, key=(lambda name: (int(name), name)) if all(map(str.isdecimal, names)) else None))

    def expect_known(self, keys: Iterable[str], where: str) -> None:
        """Expect all keys of the file among ``keys``, those of a source or store that messages call ``where``.

        Raises:
            ConfigError: some are not, or are those of several images.
        """
        counts = collections.Counter(map(key_form, keys))
        if several := sorted(key for key in self.by_key if counts[key] > 1):
            raise ConfigError(
                f"{self.file} has keys that several images of {where} have ({_named(several)}), which may be of several"
                " classes: leave these lines out"
            )
        if wrong := list(self.by_key.keys() - counts.keys()):
            raise ConfigError(
                f"{self.file} has keys that {where} does not have ({_named(sorted(wrong))}): a key is the path of an"
                " image within its source"
            )


def read_labels_csv(file: str | os.PathLike[str]) -> Labels:
    """Read a CSV file with the columns ``key`` and ``label``, which its first line names; others are not read.

    An empty label, or -1, means none. Where all labels are numbers such as 3.0, as programs write numbers of which some
    are missing, they are those numbers. A warning names labels that look like missing values.

    Raises:
        ConfigError: the file cannot be read, lacks a column, has two labels for one key, or a negative number.
    """
    name, by_key, lines, takes_away = os.fspath(file), dict[str, str | None](), dict[str, int](), False
    try:
        with open(file, encoding="utf-8-sig", newline="") as content:
            reader = csv.reader(content, strict=True)
            header = [column.strip().lower() for column in next(reader, [])]
            if header.count("key") != 1 or header.count("label") != 1:
                raise ConfigError(
                    f"{name} begins with {','.join(header)!r:.60}: its first line must be key,label, with a comma"
                )
            key_at, label_at = header.index("key"), header.index("label")
            for row in filter(None, reader):
                if len(row) != len(header) or not row[key_at]:
                    raise ConfigError(f"{name} line {reader.line_num}: it has no key, or not {len(header)} fields")
                key, text = key_form(row[key_at]), row[label_at].strip()
                label = None if text in _NONE else class_name(text)
                takes_away |= bool(text) and label is None
                if label and _NEGATIVE.fullmatch(label):
                    raise ConfigError(f"{name} line {reader.line_num}: label {label}: leave it empty if there is none")
                if by_key.setdefault(key, label) != label:
                    raise ConfigError(f"{name} lines {lines[key]} and {reader.line_num}: two labels of {key}: keep one")
                lines.setdefault(key, reader.line_num)
    except UnicodeDecodeError as error:
        raise ConfigError(f"{name} is not encoded in UTF-8 ({error.reason}): save it so") from None
    except (OSError, ValueError, csv.Error) as error:
        raise ConfigError(f"{name} cannot be read as a table of keys and labels ({error})") from None
    if not by_key:
        raise ConfigError(f"{name} has no line of a key and a label below its first")
    names = {label for label in by_key.values() if label is not None}
    if names and all(map(_WHOLE.fullmatch, names)):
        by_key = {key: label and label.removesuffix(".0") for key, label in by_key.items()}
    for like_none in sorted(names):
        if like_none.lower() in _LIKE_NONE:
            log.warning("%s has a class %s: where it means that there is no label, leave it empty", name, like_none)
    return Labels(name, by_key, takes_away)


def with_labels_of(listed: Source, file: str | os.PathLike[str]) -> Source:
    """Give the images of a source the labels of a CSV file, in place of all labels that they have.

    Raises:
        ConfigError: as ``read_labels_csv`` and ``Labels.expect_known``.
    """
    labels = read_labels_csv(file)
    keys = (member.key for member in listed.members()) if listed.keys is None else listed.keys
    labels.expect_known(keys, listed.name)
    known = {key: name for key, name in labels.by_key.items() if name is not None}
    itself = os.path.relpath(os.path.realpath(file), os.path.realpath(listed.name))  # it may lie in the source
    left_out = tuple(one for one in listed.left_out if one.key != itself)
    return replace(listed.with_labels(known, labels.class_names), left_out=left_out)


def label(store: str | os.PathLike[str], file: str | os.PathLike[str], *, new_classes: bool = False) -> Manifest:
    """Give images of a store the labels of a CSV file; those that it does not name keep theirs.

    The images are not written again: the labels of all go into a file of their own, which the manifest names.

    Args:
        store: the store's folder.
        file: see ``read_labels_csv``.
        new_classes: take classes that a store with classes does not have, behind those it has. A class that loses all
            its images is dropped.

    Raises:
        ConfigError: the file cannot be used, or has keys or classes that the store does not have.
        StoreError: there is no store, or it cannot be written.
    """
    path, labels = local_folder(store), read_labels_csv(file)
    if not labels.class_names and not labels.takes_away:
        raise ConfigError(
            f"{labels.file} has no label: write classes into its column label, or -1 to take an image's label away"
        )
    Manifest.read(path)
    with lock_store(path):
        opened = ImageStore(path)
        old = opened.manifest
        keys = stored_keys(path, old)
        labels.expect_known(keys, str(path))
        by_form = {class_name(name): name for name in reversed(old.class_names)}
        more = tuple(name for name in labels.class_names if name not in by_form)
        if more and by_form and not new_classes:
            raise ConfigError(
                f"{labels.file} has classes that {path} does not have ({_named(more)}): correct them, or add them with"
                " --new-classes"
            )
        names = (*old.class_names, *more)
        numbers = {name: names.index(by_form.get(name, name)) for name in labels.class_names}
        before = opened.labels
        after = before.copy()
        for row, key in enumerate(map(key_form, keys)):
            if key in labels.by_key:
                after[row] = NO_LABEL if (name := labels.by_key[key]) is None else numbers[name]
        if taken := int(((before >= 0) & (after < 0)).sum()):
            log.warning("%s leaves %d labels empty that %s had: they are taken away", labels.file, taken, path)
        return _write(path, old, names, before, after)


def _write(path: Path, old: Manifest, names: tuple[str, ...], before: np.ndarray, after: np.ndarray) -> Manifest:
    """Write new labels, int32 ``[n]``, and a manifest that names them, without classes that have lost all images."""
    counts = [np.bincount(labels[labels >= 0], minlength=len(names)) for labels in (before, after)]
    kept = np.flatnonzero((counts[1] > 0) | (counts[0] == 0))
    renumbered = np.append(np.searchsorted(kept, np.arange(len(names))), NO_LABEL)
    shard_classes = max(len(old.class_names), old.labels.shard_classes if old.labels else 0)
    entry = write_labels(path, renumbered[after], shard_classes)
    fields = old.model_dump(exclude={"xxh3"}) | {"class_names": [names[one] for one in kept], "labels": entry}
    manifest = Manifest.model_validate(fields).with_checksum()
    manifest.write(path)
    in_use = {entry.file, old.labels and old.labels.file}  # a reader may have just read the old manifest
    for file in path.glob("labels-*.npy"):
        if file.name not in in_use:
            file.unlink()
    return manifest


def count_labels(store: str | os.PathLike[str], manifest: Manifest) -> np.ndarray:
    """Count the images of each class of a local store, int64 ``[classes + 1]``; the last have no label.

    Raises:
        StoreError, StoreDamaged: the labels cannot be read, or are no numbers of classes.
    """
    path, num_classes, given, first = Path(store), len(manifest.class_names), manifest.labels, 0
    parts = [parse_labels(read_labels(path, given), given, num_classes, str(path))] if given else []
    for shard in manifest.shards:
        if not given or first >= given.rows:
            columns = read_column(path / shard.file, shard, "label")
            parts += [column.fill_null(NO_LABEL).to_numpy(zero_copy_only=False) for column in columns]
        first += shard.rows
    labels = np.concatenate(parts)
    if labels.min() < NO_LABEL or labels.max() >= num_classes:
        raise StoreDamaged(f"{path} has labels that are not 0 to {num_classes - 1}: build it again")
    return np.roll(np.bincount(labels + 1, minlength=num_classes + 1), -1)


def stored_keys(path: Path, manifest: Manifest) -> list[str]:
    """Return the keys of all images of a local store, in their order."""
    columns = (column for shard in manifest.shards for column in read_column(path / shard.file, shard, "key"))
    return [key for column in columns for key in column.to_pylist()]


def _named(names: Sequence[str]) -> str:
    more = f" and {len(names) - _NAMED:,} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more
