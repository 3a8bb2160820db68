"""Study 003: supervised learning, Barlow Twins and FixMatch with three networks.

Theirs is STL-10 (5,000 labels, 100,000 images without, 96 px). Here a tenth of CIFAR-10's labels, 5,000, stands for its
labels; the ResNets have a stem of stride 2. Barlow Twins trains for a third of study 002's epochs, since a step of
these networks costs ten times one of ResNet-8.
"""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.studies.cells import Cell, cell
from benchmarks.studies.claims import Claim, Figure, Row, features, figure, tuned
from benchmarks.studies.tables import PAIR, TRAIN, Study

_BACKBONES = {
    "ConvNet": ("convnet", "{name: convnet}"),
    "ResNet-18": ("resnet18", "{name: resnet18, stem: half}"),
    "WRN-45-2": ("wrn45-2", "{name: wrn45-2, stem: half}"),
}
_LABELS = "--labels 10%"


def cells(epochs: float) -> Sequence[Cell]:
    """Return the runs of each network: supervised, Barlow Twins and its evaluation."""
    made = list[Cell]()
    for name, backbone in _BACKBONES.values():
        settings = f"--set 'backbone={backbone}' --set cluster.workers=1"
        made += [
            cell(
                f"{name}-supervised",
                f"""ssl-dist evaluate finetune supervised-cifar10 {PAIR} {_LABELS} --from random {settings} --epochs
                {4 * epochs:g} --batch 128 --lr 2e-3 --set batch.micro=128 --run-dir runs/{name}-supervised""",
            ),
            cell(
                f"{name}-barlow",
                f"""ssl-dist pretrain barlow-twins-cifar10 --set data.store={TRAIN} --set epochs={epochs / 3:g}
                {settings} --set optim.warmup_epochs={epochs / 30:g} --run-dir runs/{name}-barlow""",
            ),
            cell(
                f"{name}-barlow-linear",
                f"ssl-dist evaluate linear runs/{name}-barlow {PAIR} {_LABELS} --baselines random",
            ),
        ]
    return made


def _supervised(network: str) -> Figure:
    return figure(tuned("random"), f"{_BACKBONES[network][0]}-supervised")


def _barlow(network: str, encoder: str = "trained") -> Figure:
    return figure(features(encoder=encoder), f"{_BACKBONES[network][0]}-barlow-linear")


_THEIRS = {"ConvNet": ("59.58", "42.98"), "ResNet-18": ("71.68", "39.45"), "WRN-45-2": ("73.18", "44.95")}
_ORDER = [("ResNet-18", "ConvNet"), ("WRN-45-2", "ResNet-18")]

STUDY = Study(
    "003: supervised, Barlow Twins and semi-supervised",
    "5,000 labels of CIFAR-10 for STL-10's, 32 px for its 96, one seed",
    cells,
    [
        *(Row(f"{network}, supervised", _supervised(network), theirs) for network, (theirs, _) in _THEIRS.items()),
        *(
            Row(f"{network}, Barlow Twins, linear", _barlow(network), theirs)
            for network, (_, theirs) in _THEIRS.items()
        ),
        *(Row(f"{network}, random weights, linear", _barlow(network, "random")) for network in _THEIRS),
    ],
    [
        *(
            Claim(
                f"Supervised, {one} is above {other}",
                f"{_THEIRS[one][0]} and {_THEIRS[other][0]}",
                pair=(_supervised(one), _supervised(other)),
            )
            for one, other in _ORDER
        ),
        *(
            Claim(
                f"With Barlow Twins, {one} is above {other}",
                f"{_THEIRS[one][1]} and {_THEIRS[other][1]}",
                pair=(_barlow(one), _barlow(other)),
            )
            for one, other in [("ConvNet", "ResNet-18"), ("WRN-45-2", "ConvNet")]
        ),
        *(
            Claim(
                f"Supervised training is above Barlow Twins ({network})",
                f"{supervised} and {barlow}",
                pair=(_supervised(network), _barlow(network)),
            )
            for network, (supervised, barlow) in _THEIRS.items()
        ),
    ],
)
