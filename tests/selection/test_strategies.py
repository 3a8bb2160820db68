"""Each strategy equals its paper's rule, written as plain loops in float64, on clusters that differ in all they can."""

from __future__ import annotations

from unittest import mock

import numpy as np
import pytest

from ssl_dist.errors import ConfigError, StoreError
from ssl_dist.selection import badge, coreset, coverage, pool, probe, typical, uncertain
from ssl_dist.selection.pool import Pool, draw
from ssl_dist.selection.strategies import STRATEGIES, select, without_probe

SIZES, SPREADS = (130, 71, 40, 23, 9, 4), (0.5, 0.2, 0.9, 0.1, 0.3, 0.05)
ROOT = np.sqrt


def made(labelled: int = 0, seed: int = 0, dim: int = 7) -> Pool:
    """Make clusters of unequal size, spread and distance, off the origin; their labels for some of the images."""
    random = np.random.default_rng(seed)
    centres = random.normal(1, 2, (len(SIZES), dim))
    parts = [
        centre + spread * random.normal(size=(size, dim)) * np.linspace(0.5, 1.5, dim)
        for centre, size, spread in zip(centres, SIZES, SPREADS, strict=True)
    ]
    truth = np.repeat(np.arange(len(SIZES)), SIZES)
    order = random.permutation(len(truth))
    x, truth = np.concatenate(parts)[order].astype(np.float32), truth[order].astype(np.int32)
    labels = np.full(len(x), -1, np.int32)
    known = random.permutation(len(x))[:labelled]
    labels[known] = truth[known]
    return Pool(x, labels, len(SIZES))


def distances(x: np.ndarray) -> np.ndarray:
    """Return all pairs' Euclidean distances in float64."""
    x = x.astype(np.float64)
    return ROOT(((x[:, None] - x[None]) ** 2).sum(-1))


def unit(x: np.ndarray) -> np.ndarray:
    return x.astype(np.float64) / np.linalg.norm(x.astype(np.float64), axis=1, keepdims=True)


# All of them


@pytest.mark.parametrize("name", STRATEGIES)
@pytest.mark.parametrize("count", [1, 3, 60])
def test_a_request_names_as_many_unlabelled_images_and_none_twice(name: str, count: int) -> None:
    images = made(labelled=25)
    rows = select(name, images, count).rows
    assert len(rows) == len(set(rows.tolist())) == count
    assert (images.labels[rows] == -1).all()
    assert (select(name, images, count).rows == rows).all(), "a pure function of the seed"


@pytest.mark.parametrize("name", STRATEGIES)
def test_all_images_can_be_requested(name: str) -> None:
    images = made(labelled=40)
    assert sorted(select(name, images, 237).rows.tolist()) == images.unlabelled.tolist()


@pytest.mark.parametrize("name", without_probe())
def test_labels_are_not_needed_and_the_seed_matters(name: str) -> None:
    images = made()
    rows = [select(name, images, 20, seed).rows.tolist() for seed in range(4)]
    assert len(set(map(tuple, rows))) > 1


@pytest.mark.parametrize("name", STRATEGIES)
def test_images_that_are_all_equal_are_requested_too(name: str) -> None:
    images = Pool(np.ones((40, 3), np.float32), np.array([0, 1] + [-1] * 38, np.int32), 2)
    assert len(set(select(name, images, 30).rows.tolist())) == 30


@pytest.mark.parametrize("name", sorted(STRATEGIES.keys() - set(without_probe())))
@pytest.mark.parametrize(("labels", "has"), [([], "no labels"), ([3, 3], "labels of one class only")])
def test_a_strategy_with_a_probe_refuses_a_store_without_two_classes(name: str, labels: list[int], has: str) -> None:
    images = made()
    images.labels[: len(labels)] = labels
    with pytest.raises(StoreError, match=f"{has}: take one of random, representative, typical, coverage, coreset"):
        select(name, images, 3)


def test_more_images_than_there_are_and_unknown_strategies_are_refused() -> None:
    with pytest.raises(StoreError, match=r"--count 278: .* has 277 images without a label to request"):
        select("random", made(), 278)
    with pytest.raises(ConfigError, match="--strategy best: it is one of random, representative"):
        select("best", made(), 3)


# Where a probe is unsure


def softmax(images: Pool) -> tuple[np.ndarray, np.ndarray]:
    """Return the unlabelled rows and the probabilities of scikit-learn's logistic regression for them."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    known, rows = images.labelled, images.unlabelled
    scaler = StandardScaler().fit(images.features[known].astype(np.float64))
    model = LogisticRegression(C=1 / (1e-3 * len(known)), tol=1e-10, max_iter=10_000)
    model.fit(scaler.transform(images.features[known].astype(np.float64)), images.labels[known])
    return rows, model.predict_proba(scaler.transform(images.features[rows].astype(np.float64)))


def agree(found: np.ndarray, rows: np.ndarray, wanted: np.ndarray) -> None:
    """Expect the largest of ``wanted``, in order, up to differences that two solvers' optima allow."""
    value = dict(zip(rows.tolist(), wanted.tolist(), strict=True))
    got, best = np.array([value[row] for row in found.tolist()]), np.sort(wanted)[::-1][: len(found)]
    np.testing.assert_allclose(got, best, atol=2e-4)


def test_margin_and_entropy_follow_the_probabilities_of_scikit_learns_classifier() -> None:
    images = made(labelled=60)
    rows, p = softmax(images)
    ordered = np.sort(p, axis=1)
    agree(uncertain.margin(images, 25, 0).rows, rows, ordered[:, -2] - ordered[:, -1])
    agree(uncertain.entropy(images, 25, 0).rows, rows, np.array([-sum(q * np.log(q) for q in one) for one in p]))


def test_the_measures_of_logits_equal_their_formulas() -> None:
    logits = np.array([[3.0, 1.0, -2.0], [0.5, 0.4, 700.0], [0.0, 0.0, 0.0]])
    assert uncertain.energies(logits)[[0, 2]] == pytest.approx([-np.log(np.exp(logits[0]).sum()), -np.log(3)])
    assert uncertain.energies(logits)[1] == pytest.approx(-700)
    p = np.exp(logits[0]) / np.exp(logits[0]).sum()
    assert uncertain.margins(logits) == pytest.approx([p[0] - p[1], 1, 0])
    assert uncertain.entropies(logits) == pytest.approx([-(p * np.log(p)).sum(), 0, np.log(3)])


def test_energy_takes_the_highest_energies_first_in_tiles_of_any_size() -> None:
    images = made(labelled=60)
    fitted = probe.Probe.fit(images)
    x = (images.features.astype(np.float64) - fitted.mean) / fitted.scale
    logits = x @ fitted.classifier.weight + fitted.classifier.bias
    wanted = [-np.log(sum(np.exp(one - max(row)) for one in row)) - max(row) for row in logits[images.unlabelled]]
    expected = images.unlabelled[np.argsort(-np.array(wanted), kind="stable")[:25]]
    for tile in (1, 100, 1 << 23):
        with mock.patch.object(probe, "_TILE", tile):
            assert uncertain.energy(images, 25, 0).rows.tolist() == expected.tolist()


def test_equal_scores_go_to_the_lower_row() -> None:
    random = np.random.default_rng(0)
    x = np.repeat(random.normal(size=(30, 4)), 3, axis=0).astype(np.float32)
    images = Pool(x, np.where(np.arange(90) % 3 == 0, np.arange(90) % 2, -1).astype(np.int32), 2)
    rows = uncertain.margin(images, 40, 0).rows
    assert (rows[0::2] % 3 == 1).all()
    assert (rows[1::2] == rows[0::2] + 1).all()


@pytest.mark.parametrize("labelled", [0, 50])
@pytest.mark.parametrize("count", [7, 10, 34])
def test_representative_draws_equally_from_bins_of_energy_or_of_typicality(labelled: int, count: int) -> None:
    images = made(labelled)
    rows = images.unlabelled
    if labelled:
        _, p = softmax(images)
        fitted = probe.Probe.fit(images)
        values = fitted.over(images, rows, uncertain.energies)
        assert p.shape[1] == len(fitted.classifier.classes)
    else:
        nearest = np.sort(distances(unit(images.features)), axis=1)[:, 1:21]
        values = -nearest.mean(1)
    rank = {row: place for place, row in enumerate(rows[np.argsort(values, kind="stable")].tolist())}
    bins = min(10, count)
    edges = np.cumsum([len(part) for part in np.array_split(np.arange(len(rows)), bins)])
    found = uncertain.representative(images, count, 0).rows
    counts = np.bincount(np.searchsorted(edges, [rank[row] for row in found.tolist()], side="right"), minlength=bins)
    assert counts.tolist() == [count // bins + (number < count % bins) for number in range(bins)]


def test_typicality_is_measured_against_others_than_the_image_itself() -> None:
    images = made()
    x = unit(images.features).astype(np.float32)
    with mock.patch.object(typical, "_REFERENCES", 50):
        found = typical.mean_distances(x, images.unlabelled, 0)
    others = draw(50, len(x), 0, stream=1)
    for row in range(len(x)):
        nearest = sorted(np.linalg.norm(x[row].astype(np.float64) - x[one]) for one in others if one != row)
        assert found[row] == pytest.approx(np.mean(nearest[:20]), abs=1e-5)


# badge


@pytest.mark.parametrize("seed", [0, 1])
def test_badge_equals_k_means_plus_plus_on_gradients_that_are_written_out(seed: int) -> None:
    images = made(labelled=30, seed=seed)
    fitted, rows = probe.Probe.fit(images), images.unlabelled
    x = (images.features[rows].astype(np.float64) - fitted.mean) / fitted.scale
    scores = x @ fitted.classifier.weight + fitted.classifier.bias
    gradients = []
    for h, logits in zip(x, scores, strict=True):
        p = np.exp(logits - logits.max())
        p /= p.sum()
        answer = np.eye(len(p))[p.argmax()]
        gradients.append(np.outer(p - answer, h).ravel())
    g, random = np.array(gradients), np.random.default_rng(seed)
    picked = [max(range(len(g)), key=lambda row: (np.linalg.norm(g[row]), -row))]
    while len(picked) < 15:
        squared = np.array([min(((one - g[other]) ** 2).sum() for other in picked) for one in g])
        target, total = random.random() * squared.sum(), 0.0
        for row, weight in enumerate(squared):
            total += weight
            if total > target:
                picked.append(row)
                break
        random.random()  # decides nothing where all distances are known
    with mock.patch.object(badge, "_TOGETHER", 1):
        assert badge.badge(images, 15, seed).rows.tolist() == rows[picked].tolist()


@pytest.mark.parametrize("together", [2, 256])
def test_badge_draws_with_a_chance_of_the_squared_distance_however_late_distances_are_known(together: int) -> None:
    """Frequencies of the third and the fourth pick over 1,000 seeds, beside their chances, within 4 deviations."""
    errors = np.array([[3.0, 0], [0, 1], [1, 1], [0.5, -1], [-1, 0.2]], np.float32)
    inputs = np.array([[2.0], [1], [-0.5], [1.5], [0.7]], np.float32)
    g = errors * inputs
    gradients = badge._Gradients(errors, inputs, (g**2).sum(1))
    with mock.patch.object(badge, "_TOGETHER", together):
        runs = [tuple(badge._spread(gradients, 4, seed)) for seed in range(1000)]
    assert {one[0] for one in runs} == {0}
    for before in {one[:2] for one in runs} | {one[:3] for one in runs}:
        squared = np.array([min(((one - g[other]) ** 2).sum() for other in before) for one in g])
        after = [one[len(before)] for one in runs if one[: len(before)] == before]
        for row, chance in enumerate(squared / squared.sum()):
            deviation = np.sqrt(len(after) * chance * (1 - chance))
            assert abs(after.count(row) - len(after) * chance) <= 4 * deviation + 1e-3


def test_badge_chooses_among_as_many_images_as_fit_and_says_so() -> None:
    images = made(labelled=30)
    row_bytes = 4 * (7 + len(np.unique(images.labels[images.labelled]))) + 64
    found = badge.badge(images, 20, 0, room_bytes=100 * row_bytes)
    assert found.note == "badge: 100 of 247 images, drawn at random, fit in memory and are chosen from"
    assert set(found.rows.tolist()) <= set(images.unlabelled[draw(100, 247, 0, stream=2)].tolist())
    assert badge.badge(images, 20, 0).note == ""


# typical


def typiclust(images: Pool, count: int, cluster: np.ndarray) -> list[int]:
    """TypiClust's rules, one pick at a time."""
    x, taken, picked = unit(images.features), set(images.labelled.tolist()), list[int]()
    sizes = {one: int((cluster == one).sum()) for one in set(cluster.tolist())}
    asked = {one: sum(cluster[row] == one for row in images.labelled) for one in sizes}
    order = sorted(sizes, key=lambda one: (asked[one], -sizes[one], one))
    while len(picked) < count:
        left = {one: [row for row in np.flatnonzero(cluster == one) if row not in taken] for one in order}
        large = [one for one in order if left[one] and sizes[one] > 5]
        for one in large or [one for one in order if left[one]]:
            members = left[one]
            k = min(20, len(members) // 2)
            spread = [
                np.mean(sorted(np.linalg.norm(x[row] - x[other]) for other in members if other != row)[:k] or [0])
                for row in members
            ]
            pick = members[int(np.argmin(spread))]
            picked.append(int(pick))
            taken.add(pick)
    return picked[:count]


@pytest.mark.parametrize(("labelled", "count"), [(0, 6), (0, 25), (17, 9), (30, 160), (10, 262)])
def test_typical_equals_the_rules_of_typiclust(labelled: int, count: int) -> None:
    images = made(labelled)
    number = min(labelled + count, 500, len(images.labels))
    cluster = typical.clusters(pool.on_sphere(images.features), number, 3)
    assert typical.typical(images, count, 3).rows.tolist() == typiclust(images, count, cluster)


def test_typical_takes_at_most_500_clusters() -> None:
    random = np.random.default_rng(0)
    images = Pool(random.normal(size=(1400, 5)).astype(np.float32), np.full(1400, -1, np.int32))
    with mock.patch.object(typical, "clusters", side_effect=typical.clusters) as called:
        assert len(set(typical.typical(images, 700, 0).rows.tolist())) == 700
    assert called.call_args.args[1] == 500


# coverage


def probcover(images: Pool, count: int, radius: float) -> list[int]:
    """ProbCover's greedy rule, one edge at a time, until nothing is left to cover."""
    near = distances(unit(images.features)) < radius
    covered = {other for row in images.labelled for other in np.flatnonzero(near[row]).tolist()}
    picked = list[int]()
    while len(picked) < count:
        gains = {row: len(set(np.flatnonzero(near[row]).tolist()) - covered) for row in images.unlabelled.tolist()}
        for row in images.labelled:  # the store's labelled images are covered, and no candidates
            assert row in covered
        best = max(gains, key=lambda row: (gains[row], -row))
        if not gains[best]:
            break
        picked.append(best)
        covered |= set(np.flatnonzero(near[best]).tolist())
    return picked


@pytest.mark.parametrize("labelled", [0, 20])
@pytest.mark.parametrize("tile", [(512, 2048), (7, 30)])  # one tile, and many with rests
def test_coverage_equals_the_greedy_rule_of_probcover(
    labelled: int, tile: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, size in zip(("_TILE_ROWS", "_TILE_COLUMNS"), tile, strict=True):
        monkeypatch.setattr(coverage, name, size)
    images = made(labelled)
    # The radius is the distance of two images, which rounding may put on either side of it: a little less is neither.
    radius = coverage.purity_radius(pool.on_sphere(images.features), 6, 0) * (1 - 1e-5)
    expected = probcover(images, 60, radius)
    with mock.patch.object(coverage, "purity_radius", return_value=radius):
        rows = coverage.coverage(images, 60, 0).rows.tolist()
    assert len(expected) > 5
    assert rows[: len(expected)] == expected
    assert len(set(rows)) == 60, "the others are drawn"


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_radius_is_the_largest_with_a_purity_of_95_percent(seed: int) -> None:
    x = pool.on_sphere(made(seed=seed).features)
    cluster, apart = typical.clusters(x, 4, seed), distances(x)
    radius = coverage.purity_radius(x, 4, seed)

    def purity(radius: float) -> float:
        return float(np.mean([len(set(cluster[apart[row] < radius].tolist())) == 1 for row in range(len(x))]))

    assert purity(radius * (1 - 1e-4)) >= 0.95
    assert purity(radius * (1 + 1e-4)) < 0.95


def test_coverage_chooses_among_as_many_images_as_fit_and_says_so() -> None:
    images = made(labelled=10)
    found = coverage.coverage(images, 20, 0, room_bytes=40_000)
    assert found.note.startswith("coverage: ")
    fits = int(found.note.split()[1])
    assert 20 < fits < 267
    x = pool.on_sphere(images.features)
    rows = images.unlabelled[draw(fits, 267, 0, stream=2)]
    edges = (distances(x[rows]) < coverage.purity_radius(x, 6, 0)).sum()
    assert 0.7 * 40_000 < 4 * edges + 200 * fits < 1.3 * 40_000
    assert set(found.rows.tolist()) <= set(rows.tolist())


# coreset


def k_center(images: Pool, count: int, first: int) -> list[int]:
    """K-center greedy, one distance at a time."""
    apart = distances(images.features).tolist()
    centres = images.labelled.tolist()
    picked = [] if centres else [first]
    while len(picked) < count:
        best, farthest = -1, -1.0
        for row, others in enumerate(apart):
            if row not in centres and row not in picked:
                near = min(others[one] for one in (*centres, *picked))
                best, farthest = (row, near) if near > farthest else (best, farthest)
        picked.append(best)
    return picked


@pytest.mark.parametrize("labelled", [0, 12])
@pytest.mark.parametrize("candidates", [1, 5, 8192])
def test_coreset_equals_k_center_greedy_with_any_number_of_candidates(labelled: int, candidates: int) -> None:
    images = made(labelled)
    with mock.patch.object(coreset, "_CANDIDATES", candidates), mock.patch.object(coreset, "_ROWS", 50):
        found = coreset.coreset(images, 40, 0).rows.tolist()
    assert found == k_center(images, 40, first=found[0])


@pytest.mark.parametrize("candidates", [1, 3, 20])
def test_ties_of_coreset_go_to_the_lower_row(candidates: int) -> None:
    """Points of a grid around the origin: all distances are whole numbers, so float32 has them exactly."""
    grid = np.stack(np.meshgrid(np.arange(-3, 4), np.arange(-3, 4)), -1).reshape(-1, 2)
    labels = np.full(49, -1, np.int32)
    labels[[24, 9]] = 0
    images = Pool(grid[np.random.default_rng(0).permutation(49)].astype(np.float32), labels)
    images = images._replace(features=images.features - images.features.mean(0))
    with mock.patch.object(coreset, "_CANDIDATES", candidates):
        assert coreset.coreset(images, 45, 0).rows.tolist() == k_center(images, 45, -1)
