"""Maps of features: images as points in the plane, by t-SNE or UMAP, and the groups that give them their colours."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from ssl_dist.checkpoint import Checkpoint
from ssl_dist.config import ResolvedConfig
from ssl_dist.data.images import class_names
from ssl_dist.errors import ConfigError, RunError, StoreError
from ssl_dist.evaluate.over_training import weights_over_training
from ssl_dist.evaluate.protocols import ProgressCallback
from ssl_dist.progress import Tally
from ssl_dist.store import ImageStore

if TYPE_CHECKING:
    from torch import Tensor

    from ssl_dist.methods import Method

MAX_CHECKPOINTS = 8  # of a strip, beside the random weights
_PCA_DIMENSIONS = 50
_VOTERS, _TEMPERATURE = 20, 0.1  # of the nearest neighbours that predict a class, as of ``evaluate knn``
_START_SPREAD = 1e-4  # standard deviation of a layout's start, as scikit-learn has it for PCA


class Settings(NamedTuple):
    """How a map is made.

    Attributes:
        method: "tsne" or "umap".
        perplexity: effective number of neighbours of a point; UMAP's ``n_neighbors``.
        colour: "class" (the store's labels), "prediction" or "cluster".
        num_clusters: of k-means.
        seed: of everything random.
    """

    method: str
    perplexity: float
    colour: str
    num_clusters: int
    seed: int

    def expect_possible(self, config: ResolvedConfig, labels: np.ndarray, store_name: str) -> None:
        """Refuse what the drawn images, of labels int32 ``[n]``, do not allow.

        Raises:
            ConfigError: an option is out of range, or UMAP is not installed.
            StoreError: colours need labels, and there are none.
        """
        n = len(labels)
        for option, value, choices in (
            ("method", self.method, ("tsne", "umap")),
            ("colour", self.colour, ("class", "prediction", "cluster")),
        ):
            if value not in choices:
                raise ConfigError(f"--{option} {value}: it is {' or '.join(choices)}")
        if not 1 <= self.perplexity < n:
            raise ConfigError(
                f"--perplexity {self.perplexity:g}: it is at least 1 and less than the {n} images of the map"
            )
        if self.colour == "cluster" and not 1 <= self.num_clusters <= n:
            raise ConfigError(f"--clusters {self.num_clusters}: it is one of 1..{n}, the images of the map")
        if self.method == "umap" and importlib.util.find_spec("umap") is None:
            raise ConfigError("--method umap needs umap-learn, which is not installed: pip install umap-learn")
        by_labels = self.colour == "class" or (self.colour == "prediction" and not _classifies(config))
        if by_labels and not (labels >= 0).any():
            raise StoreError(f"{store_name} has no labels for --colour {self.colour}: choose --colour cluster")


class Groups(NamedTuple):
    """Which images have one colour.

    Attributes:
        title: what a group is.
        names: of the groups.
        numbers: int64 ``[n]`` in [0, len(names)).
        grouped: bool ``[n]``, whether an image has a group; the last one is of those without a label.
    """

    title: str
    names: Sequence[str]
    numbers: np.ndarray
    grouped: np.ndarray


class Panel(NamedTuple):
    """The map of one encoder; ``step`` None: of random weights. ``points`` are float32 ``[n, 2]``."""

    step: int | None
    points: np.ndarray

    @property
    def title(self) -> str:
        return "random weights" if self.step is None else f"step {self.step:,}"


def spread_evenly(checkpoints: Sequence[Checkpoint]) -> Sequence[Checkpoint]:
    """Return at most MAX_CHECKPOINTS of them, the first and the last among these."""
    count = min(len(checkpoints), MAX_CHECKPOINTS)
    return [checkpoints[round(number)] for number in np.linspace(0, len(checkpoints) - 1, count)]


def embed_over_training(
    checkpoints: Sequence[Checkpoint],
    store: ImageStore,
    ids: np.ndarray,
    settings: Settings,
    *,
    with_random: bool,
    progress: ProgressCallback | None = None,
) -> tuple[dict[int | None, np.ndarray], Groups]:
    """Embed images by each checkpoint's backbone, and group them by what the last one knows.

    Args:
        with_random: begin with the random weights of the run's seed.
        progress: called with (images embedded, images in all).

    Returns:
        (step -> principal components of the features, float32 ``[n, up to 50]``; the images' groups).
    """
    from ssl_dist.evaluate.features import expect_finite, extract, fastest_device

    config, device, found = checkpoints[-1].config, fastest_device(), dict[int | None, np.ndarray]()
    count = Tally(progress, (len(checkpoints) + with_random) * len(ids))

    for step, method in weights_over_training(checkpoints):
        if step is not None or with_random:
            features = extract(method.backbone.to(device), store, ids, device, config, count).cpu()
            found[step] = principal_components(expect_finite(features, checkpoints[-1]).numpy())
    return found, _groups(method, config, features, store, store.labels_at(ids), settings)


def principal_components(features: np.ndarray) -> np.ndarray:
    """Return the features' first principal components, at most 50: float32 ``[n, D]`` -> ``[n, min(50, n, D)]``.

    Raises:
        RunError: all images have the same features.
    """
    from sklearn.decomposition import PCA

    if (features == features[0]).all():
        raise RunError("all images have the same features, of which no map can be made: take another checkpoint")
    exact = PCA(min(_PCA_DIMENSIONS, *features.shape), svd_solver="full")
    return np.asarray(exact.fit_transform(features.astype(np.float64)), dtype=np.float32)


def layouts(
    components: dict[int | None, np.ndarray], settings: Settings, report: Callable[[str], None] = lambda text: None
) -> list[Panel]:
    """Lay out each encoder's images in the plane; a map starts from the one before it, so that both can be compared.

    Args:
        components: as of ``embed_over_training``.
        report: called with what is worked on.
    """
    panels = list[Panel]()
    for step, x in components.items():
        report(f"map {len(panels) + 1} of {len(components)}: {len(x):,} images")
        panels.append(Panel(step, layout(x, settings, panels[-1].points if panels else x[:, :2])))
    return panels


def layout(x: np.ndarray, settings: Settings, start: np.ndarray) -> np.ndarray:
    """Return the images' places in the plane, float32 ``[n, 2]``, the same for the same seed.

    Args:
        x: float32 ``[n, D]``.
        start: ``[n, 2]``, where the images are at first, but for the scale; a lacking second column is 0.

    Source: van der Maaten and Hinton, "Visualizing Data using t-SNE", 2008 (scikit-learn's, by Barnes and Hut's
        approximation); McInnes et al., "UMAP", arXiv 1802.03426 (umap-learn's).
    """
    from threadpoolctl import threadpool_limits

    start = np.pad(start, ((0, 0), (0, 2 - start.shape[1]))).astype(np.float32)
    start = start / max(float(start[:, 0].std()), np.finfo(np.float32).tiny) * np.float32(_START_SPREAD)
    with threadpool_limits(1):  # sums of several threads are rounded in no fixed order, and a map differs wholly then
        if settings.method == "umap":
            from umap import UMAP

            neighbours = max(2, round(settings.perplexity))
            made = UMAP(n_neighbors=neighbours, init=start, random_state=settings.seed % 2**32, n_jobs=1)
        else:
            from sklearn.manifold import TSNE

            made = TSNE(perplexity=settings.perplexity, init=start, random_state=settings.seed % 2**32)
        return np.asarray(made.fit_transform(x), dtype=np.float32)


def share_beside_their_own(points: np.ndarray, numbers: np.ndarray) -> float:
    """Return the share of images whose nearest neighbour in a map has the same number, in [0, 1]; NaN of one image."""
    from sklearn.neighbors import NearestNeighbors

    if len(points) < 2:
        return float("nan")
    nearest = NearestNeighbors(n_neighbors=1).fit(points).kneighbors(return_distance=False)[:, 0]
    return float((numbers[nearest] == numbers).mean())


def vote_of_others(features: Tensor, labels: np.ndarray) -> np.ndarray:
    """Predict each image's class from its 20 nearest labelled images, itself left out, as ``evaluate knn`` does.

    Args:
        features: ``[n, D]``.
        labels: int32 ``[n]``, -1: none.

    Returns:
        int64 ``[n]``, classes; -1 where there is no other labelled image.
    """
    import torch

    from ssl_dist.evaluate.knn import nearest, weights

    voters = torch.from_numpy(np.flatnonzero(labels >= 0))
    similarity, near = nearest(features[voters], features, min(_VOTERS + 1, len(voters)))
    others = voters[near] != torch.arange(len(features))[:, None]  # [n, 21]
    others &= others.cumsum(1) <= _VOTERS
    classes = torch.from_numpy(labels).long()[voters]
    votes = similarity.new_zeros(len(features), int(classes.max()) + 1)
    votes.scatter_add_(1, classes[near], weights(similarity, _TEMPERATURE) * others)
    return torch.where(votes.sum(1) > 0, votes.argmax(1), -1).numpy()


def _groups(
    method: Method,
    config: ResolvedConfig,
    features: Tensor,
    store: ImageStore,
    labels: np.ndarray,
    settings: Settings,
) -> Groups:
    """Group images by their labels ``[n]``, or by what a checkpoint's method makes of their features ``[n, D]``."""
    import torch

    if settings.colour == "cluster":
        from ssl_dist.evaluate.pseudo_labels import cluster_labels

        numbers = cluster_labels(features.clone(), settings.num_clusters, settings.seed)  # it overwrites what it gets
        return _named("cluster of k-means", [f"cluster {k + 1}" for k in range(settings.num_clusters)], numbers)
    if settings.colour == "class":
        return _named("class", store.class_names, labels)
    if not _classifies(config):
        others = vote_of_others(features, labels)
        return _named(f"prediction of the {_VOTERS} nearest labelled images", store.class_names, others)
    with torch.no_grad():
        scores = method.get_submodule("classifier").cpu()(features)
    return _named("prediction of the run's classifier", class_names(config, scores.shape[1]), scores.argmax(1).numpy())


def _classifies(config: ResolvedConfig) -> bool:
    return hasattr(config.method, "num_classes")


def _named(title: str, names: Sequence[str], numbers: np.ndarray) -> Groups:
    """Leave out the groups without images; an image of none (-1) is in the last group."""
    grouped = numbers >= 0
    present, numbers = np.unique(np.where(grouped, numbers, len(names)), return_inverse=True)
    return Groups(title, [[*names, "no label"][number] for number in present], numbers, grouped)
