"""Study 003: supervised learning, Barlow Twins and FixMatch with three networks, and the ratios of unlabelled images.

Theirs is STL-10 (5,000 labels, 100,000 images without, 96 px). Here 2,000 labels of CIFAR-10 stand for its labels, so
that there are 20 other images for each; the ResNets have a stem of stride 2. All runs of a network from labels have as
many steps. Barlow Twins trains for a third of study 002's epochs, since a step of these networks costs ten times one of
ResNet-8.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from benchmarks.studies.cells import Cell, cell
from benchmarks.studies.claims import Claim, Figure, Row, features, figure, semi
from benchmarks.studies.tables import ALONE, PAIR, TRAIN, Study

_BACKBONES = {
    "ConvNet": ("convnet", "{name: convnet}"),
    "ResNet-18": ("resnet18", "{name: resnet18, stem: half}"),
    "WRN-45-2": ("wrn45-2", "{name: wrn45-2, stem: half}"),
}
_LABELS = "--labels 2000"
_RATIOS = (1, 5, 20)


def cells(epochs: float) -> Sequence[Cell]:
    """Return the runs: from labels at each ratio, Barlow Twins and its evaluation, and labels after Barlow Twins."""
    made = list[Cell]()
    length = f"{_LABELS} --epochs {2 * epochs:g} --lr 1e-3"
    for name, backbone in _BACKBONES.values():
        settings = f"--set 'backbone={backbone}' {ALONE}"
        made += [
            cell(
                f"{name}-ratio-{ratio}",
                f"""ssl-dist evaluate semi fixmatch-cifar10 {PAIR} {length} --ratios 1:{ratio} --from random {settings}
                --run-dir runs/{name}-ratio-{ratio}""",
            )
            for ratio in reversed(_RATIOS)
        ]
        made += [
            cell(
                f"{name}-barlow",
                f"""ssl-dist pretrain barlow-twins-cifar10 --set data.store={TRAIN} --set epochs={epochs / 3:g}
                {settings} --set optim.warmup_epochs={epochs / 30:g} --run-dir runs/{name}-barlow""",
            ),
            cell(
                f"{name}-barlow-linear",
                f"ssl-dist evaluate linear runs/{name}-barlow {PAIR} {_LABELS} --baselines random",
            ),
            cell(
                f"{name}-after-barlow",
                f"""ssl-dist evaluate semi runs/{name}-barlow {PAIR} {length} --ratios 1:20
                --run-dir runs/{name}-after-barlow""",
            ),
        ]
    return made


def _from_labels(network: str, method: str = "fixmatch", ratio: int = 20) -> Figure:
    """Return the figure of FixMatch at a ratio, of pseudo-labels, or of the labels alone."""
    pick = semi(method, 0 if method == "supervised" else ratio)
    return figure(pick, f"{_BACKBONES[network][0]}-ratio-{ratio}")


def _barlow(network: str, encoder: str = "trained") -> Figure:
    return figure(features(encoder=encoder), f"{_BACKBONES[network][0]}-barlow-linear")


def _after(network: str) -> Figure:
    return figure(semi("fixmatch", 20, "run"), f"{_BACKBONES[network][0]}-after-barlow")


_SUPERVISED = {"ConvNet": "59.58", "ResNet-18": "71.68", "WRN-45-2": "73.18"}
_BARLOW = {"ConvNet": "42.98", "ResNet-18": "39.45", "WRN-45-2": "44.95"}
_FIXMATCH = {"ConvNet": "55.63", "ResNet-18": "72.45", "WRN-45-2": "75.17"}
_BY_RATIO = {
    "ConvNet": ("55.61", "58.06", "58.72"),
    "ResNet-18": ("72.1", "73.2", "75.55"),
    "WRN-45-2": ("74.05", "74.71", "76.08"),
}


def _above(text: str, theirs: dict[str, str], first: tuple[str, Figure], second: tuple[str, Figure]) -> Claim:
    (one, mine), (other, beside) = first, second
    return Claim(f"{text}, {one} is above {other}", f"{theirs[one]} and {theirs[other]}", pair=(mine, beside))


def _networks(text: str, theirs: dict[str, str], figures: dict[str, Figure]) -> list[Claim]:
    """Return the claims that each network is above the one that was next to it in the study."""
    order = sorted(theirs, key=lambda network: -float(theirs[network]))
    return [
        _above(text, theirs, (one, figures[one]), (other, figures[other])) for one, other in itertools.pairwise(order)
    ]


def _semi_beside_supervised(network: str) -> Claim:
    names = {"FixMatch": _from_labels(network), "the labels alone": _from_labels(network, "supervised")}
    values = {"FixMatch": _FIXMATCH[network], "the labels alone": _SUPERVISED[network]}
    one, other = sorted(names, key=lambda name: -float(values[name]))
    return _above(network, values, (one, names[one]), (other, names[other]))


STUDY = Study(
    "003: supervised, Barlow Twins and semi-supervised",
    "2,000 labels of CIFAR-10 for STL-10's 5,000, 32 px for its 96, one seed",
    cells,
    [
        *(Row(f"{name}, supervised", _from_labels(name, "supervised"), theirs) for name, theirs in _SUPERVISED.items()),
        *(Row(f"{name}, Barlow Twins, linear", _barlow(name), theirs) for name, theirs in _BARLOW.items()),
        *(Row(f"{name}, random weights, linear", _barlow(name, "random")) for name in _BACKBONES),
        *(
            Row(f"{name}, FixMatch at 1:{ratio}", _from_labels(name, "fixmatch", ratio), f"{theirs} (validation)")
            for name, values in _BY_RATIO.items()
            for ratio, theirs in zip(_RATIOS, values, strict=True)
        ),
        *(Row(f"{name}, pseudo-labels at 1:20", _from_labels(name, "pseudo-labels")) for name in _BACKBONES),
        *(Row(f"{name}, FixMatch at 1:20 after Barlow Twins", _after(name)) for name in _BACKBONES),
    ],
    [
        *_networks("Supervised", _SUPERVISED, {name: _from_labels(name, "supervised") for name in _BACKBONES}),
        *_networks("With Barlow Twins", _BARLOW, {name: _barlow(name) for name in _BACKBONES}),
        *_networks("With FixMatch", _FIXMATCH, {name: _from_labels(name) for name in _BACKBONES}),
        *map(_semi_beside_supervised, _BACKBONES),
        *(
            Claim(
                f"{name}, 1:{more} is above 1:{ratio}",
                f"{values[_RATIOS.index(more)]} and {values[_RATIOS.index(ratio)]}",
                pair=(_from_labels(name, "fixmatch", more), _from_labels(name, "fixmatch", ratio)),
            )
            for name, values in _BY_RATIO.items()
            for more, ratio in ((5, 1), (20, 5), (20, 1))
        ),
        *(
            Claim(
                f"{name}, FixMatch starts from Barlow Twins' weights as well as from random ones",
                "brings nothing",
                "level",
                (_after(name), _from_labels(name)),
            )
            for name in _BACKBONES
        ),
    ],
)
