"""Study 004: SimCLR with small batches, two optimizers, two similarities, and pairs of augmentations.

Theirs trains for 10 epochs, here half of what study 002's runs have; their final run of 100, here twice of it. Adam is
AdamW without weight decay. LARS is as untuned as theirs: its rate is the paper's, 0.3 for a batch of 256, scaled.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from benchmarks.studies.cells import Cell, cell
from benchmarks.studies.claims import Claim, Row, features, figure, transferred
from benchmarks.studies.tables import NETWORK, PAIR, TRAIN, Study, pretrain

_HEAD = "--set method.projection_layers=2 --set method.projection_hidden=512 --set method.projection_dim=128"
_ADAM = "--set optim.weight_decay=0 --set optim.lr=0.001"
_OPTIMIZERS = {"adam": _ADAM, "lars": "--set optim.name=lars --set optim.lr=0.3 --set optim.lr_scaling=linear"}
_LONG = "batch-32-long"
_OPERATIONS = ("crop", "flip", "rotation", "colour", "blur")


_PAIRS = list(itertools.combinations_with_replacement(_OPERATIONS, 2))  # one beside itself: alone


def cells(epochs: float) -> Sequence[Cell]:
    """Return the runs and their evaluations: batches and optimizers, the similarity, the long run, augmentations."""
    made = list[Cell]()
    for optimizer, settings in _OPTIMIZERS.items():
        for batch in (32, 16, 8):
            made += _measured(_name(batch, optimizer), batch, epochs / 2, settings)
    made += _measured("batch-32-dot", 32, epochs / 2, f"{_ADAM} --set method.similarity=dot")
    made += _measured(_LONG, 32, 2 * epochs, _ADAM)
    made.append(cell(f"{_LONG}-cut", f"ssl-dist evaluate transfer runs/{_LONG} {TRAIN} --k 1"))
    for one, other in _PAIRS:
        both = one if one == other else f"{one}, {other}"
        made += _measured(_pair(one, other), 32, epochs / 2, f"{_ADAM} --set 'augment.only=[{both}]'")
    return made


def _measured(name: str, batch: int, epochs: float, settings: str) -> list[Cell]:
    sized = f"--set batch.size={batch} --set batch.micro={batch}"
    return [
        pretrain(name, "simclr-cifar10", epochs, f"{NETWORK} {_HEAD} {sized} {settings}"),
        cell(f"{name}-nearest", f"ssl-dist evaluate knn runs/{name} {PAIR} --k 1 --baselines none"),
    ]


def _name(batch: int, optimizer: str) -> str:
    return f"batch-{batch}-{optimizer}"


def _pair(one: str, other: str) -> str:
    return f"only-{one}" if one == other else f"only-{one}-{other}"


def _nearest(name: str) -> Row:
    return Row(f"1-nearest neighbour, {name.replace('-', ' ')}", figure(features(), f"{name}-nearest"))


def _above(text: str, first: str, second: str, theirs: str = "curves only") -> Claim:
    return Claim(text, theirs, pair=(_nearest(first).ours, _nearest(second).ours))


STUDY = Study(
    "004: SimCLR rebuilt",
    "CIFAR-10; ResNet-8 of width 32 for their ResNet-50, one seed, 1-nearest neighbour",
    cells,
    [
        *(_nearest(_name(batch, optimizer)) for optimizer in _OPTIMIZERS for batch in (8, 16, 32)),
        _nearest("batch-32-dot"),
        _nearest(_LONG)._replace(theirs="74"),
        Row("logistic regression, long, training images cut 75/25", figure(transferred(1), f"{_LONG}-cut"), "77.18"),
        *(_nearest(_pair(*pair)) for pair in _PAIRS),
    ],
    [
        _above("A batch of 32 is above one of 8 (Adam)", "batch-32-adam", "batch-8-adam"),
        _above("A batch of 16 is above one of 8 (Adam)", "batch-16-adam", "batch-8-adam"),
        _above("A batch of 32 is above one of 8 (LARS)", "batch-32-lars", "batch-8-lars"),
        _above("Adam is above untuned LARS (batch of 32)", "batch-32-adam", "batch-32-lars"),
        _above("Cosine is above dot", "batch-32-adam", "batch-32-dot"),
        _above("Longer training is above 1/4 of it", _LONG, "batch-32-adam"),
        *(
            _above(f"Crop + colour is above {' + '.join(pair)}", "only-crop-colour", _pair(*pair))
            for pair in _PAIRS
            if pair[0] != pair[1] and pair != ("crop", "colour")
        ),
        _above("All augmentations are above crop + colour", "batch-32-adam", "only-crop-colour"),
    ],
)
