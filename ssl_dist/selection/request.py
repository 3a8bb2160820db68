"""A request for labels: the images of a store that may be asked for, their features, and the files that name them."""

from __future__ import annotations

import collections
import csv
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple, Self

import numpy as np

from ssl_dist.checkpoint import Checkpoint
from ssl_dist.errors import StoreError
from ssl_dist.evaluate.labelled import open_images
from ssl_dist.progress import Tally
from ssl_dist.selection.pool import Pool, Selection
from ssl_dist.selection.strategies import expect_possible, num_classes_in, select
from ssl_dist.store import ImageStore, key_form, stored_keys
from ssl_dist.uris import is_remote, without_secrets

log = logging.getLogger(__name__)


class Candidates(NamedTuple):
    """The images of a local store that a request chooses from.

    Attributes:
        store: the store.
        keys: of all its images.
        rows: int64, the labelled images, and those without a label whose key is theirs alone.
    """

    store: ImageStore
    keys: Sequence[str]
    rows: np.ndarray

    @classmethod
    def of(cls, checkpoint: Checkpoint, store: str) -> Self:
        """Open a store whose images a run's encoder takes, and which can be given labels.

        Raises:
            StoreError: there is no such local store, or its images have another size.
        """
        if is_remote(store):
            raise StoreError(
                f"{without_secrets(store)}: only a store in a folder can be labelled: copy it, and give its folder"
            )
        opened = open_images(store, checkpoint.config.data, checkpoint.config.facts.image_shape)
        keys = stored_keys(Path(opened.location), opened.manifest)
        forms = [key_form(key) for key in keys]
        counts = collections.Counter(forms)
        alone = np.array([counts[form] == 1 for form in forms])
        if several := int((~alone & (opened.labels < 0)).sum()):
            log.warning(
                "%s has %d images without a label whose keys others have too: they are not requested, because a file of"
                " labels could not name them",
                *(opened.name, several),
            )
        return cls(opened, keys, np.flatnonzero(alone | (opened.labels >= 0)))

    @property
    def labels(self) -> np.ndarray:
        """The labels of ``rows``, int32, -1 for none."""
        labels: np.ndarray = self.store.labels[self.rows]
        return labels

    @property
    def num_classes(self) -> int:
        """How many classes have labelled images."""
        return num_classes_in(self.labels)

    def expect_possible(self, strategy: str, count: int) -> None:
        """Expect what a strategy needs; raise StoreError where the store has it not."""
        expect_possible(strategy, count, int((self.labels < 0).sum()), self.num_classes, self.store.name)

    def features(self, checkpoint: Checkpoint, progress: Callable[[int, int], None]) -> np.ndarray:
        """Return features of ``rows`` by a checkpoint's encoder, float32 ``[n, D]``; imports torch.

        Args:
            progress: called with (images embedded, images in all).

        Raises:
            RunError: they are not finite.
        """
        from ssl_dist.evaluate.features import expect_finite, extract, fastest_device, load_method

        device, count = fastest_device(), Tally(progress, len(self.rows))
        encoder = load_method(checkpoint).backbone.to(device)
        features = extract(encoder, self.store, self.rows, device, checkpoint.config, count).cpu()
        found: np.ndarray = expect_finite(features, checkpoint).numpy()
        return found

    def choose(self, strategy: str, features: np.ndarray, count: int, seed: int) -> Selection:
        """Choose sample ids of the store by a strategy; ``features`` are those of ``rows``."""
        chosen = select(strategy, Pool(features, self.labels, len(self.store.class_names)), count, seed)
        return chosen._replace(rows=self.rows[chosen.rows])


def write_table(folder: Path, keys: Sequence[str]) -> None:
    """Write keys.txt, a key a line, and labels.csv, with the columns key and label, which is empty."""
    (folder / "keys.txt").write_text("".join(f"{key}\n" for key in keys), encoding="utf-8")
    with (folder / "labels.csv").open("w", encoding="utf-8", newline="") as content:
        table = csv.writer(content, lineterminator="\n", quoting=csv.QUOTE_ALL)  # keys may have any character
        table.writerows([("key", "label"), *((key, "") for key in keys)])
