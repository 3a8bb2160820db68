"""Study 002: G-SimCLR beside SimCLR, at three depths of the projection head, and fine-tuned with a tenth of the labels.

Theirs has batches of 64 and as many clusters; so have these. Both methods train for as many epochs. The autoencoder
comes on top, with half as many. The rate is that of the recipe for batches of 256, times the root of the batches'
ratio; neither method's was tuned.
"""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.studies.cells import Cell, cell
from benchmarks.studies.claims import Claim, Figure, Row, features, figure, tuned
from benchmarks.studies.tables import ALONE, NETWORK, PAIR, SEEDS, TRAIN, Study, pretrain

_BATCH = f"{NETWORK} --set batch.size=64 --set batch.micro=64 --set optim.lr=0.0015"
_HEAD = "--set method.projection_layers=3"  # so that P1, P2 and P3 differ
_LEVELS = {"P1": "head-1", "P2": "head-2", "P3": "backbone"}
_RUNS = {"SimCLR": "simclr-{}", "G-SimCLR": "gsimclr-{}/simclr"}


def cells(epochs: float) -> Sequence[Cell]:
    """Return the runs, then the linear evaluations, then the fine-tunings, seed by seed."""
    made = list[Cell]()
    for seed in SEEDS:
        settings = f"{_BATCH} --set seed={seed}"
        made += [
            pretrain(f"simclr-{seed}", "simclr-cifar10", epochs, f"{settings} {_HEAD}"),
            _linear(f"simclr-{seed}", f"--features all --baselines {'none' if seed else 'random'}"),
            cell(
                f"gsimclr-{seed}",
                f"""ssl-dist g-simclr gsimclr-cifar10 --clusters 64 --set data.store={TRAIN} --set epochs={epochs:g}
                --set optim.warmup_epochs={0.2 * min(epochs, 1):g} {settings} {_HEAD}
                --set-autoencoder epochs={epochs / 2:g} --set-autoencoder seed={seed}
                --set-autoencoder optim.warmup_epochs={0.1 * min(epochs, 1):g}
                {ALONE.replace("--set", "--set-autoencoder")} --run-dir runs/gsimclr-{seed}""",
            ),
            _linear(f"gsimclr-{seed}/simclr", "--features all --baselines none"),
        ]
    for seed in SEEDS:
        settings = f"{_BATCH} --set seed={seed}"
        made += [
            _tenth(f"simclr-{seed}", seed, "run" if seed else "run,random"),
            _tenth(f"gsimclr-{seed}/simclr", seed, "run"),
        ]
        made += [
            pretrain(f"supervised-{seed}", "supervised-cifar10", epochs, settings),
            _linear(f"supervised-{seed}", "--baselines none"),
        ]
    return made


def _linear(run: str, options: str) -> Cell:
    return cell(f"{_short(run)}-linear", f"ssl-dist evaluate linear runs/{run} {PAIR} {options}")


def _tenth(run: str, seed: int, starts: str) -> Cell:
    name = f"{_short(run)}-tenth"
    return cell(
        name,
        f"""ssl-dist evaluate finetune runs/{run} {PAIR} --labels 10% --epochs 10 --batch 32 --lr 3e-4 --from {starts}
        --set batch.micro=32 --set seed={seed} --run-dir runs/{name}""",
    )


def _short(run: str) -> str:
    return run.partition("/")[0]


def _level(method: str, level: str) -> Figure:
    return Figure([f"{_short(_RUNS[method].format(seed))}-linear" for seed in SEEDS], features(level))


def _tuned(method: str) -> Figure:
    return Figure([f"{_short(_RUNS[method].format(seed))}-tenth" for seed in SEEDS], tuned())


_SUPERVISED = Figure([f"supervised-{seed}-linear" for seed in SEEDS], features())
_THEIRS = {
    "SimCLR": {"P1": "37.69", "P2": "39.4", "P3": "39.92", "10 %": "42.21"},
    "G-SimCLR": {"P1": "38.15", "P2": "41.01", "P3": "40.5", "10 %": "43.1"},
}


def _beside(text: str, column: str, first: Figure, second: Figure) -> Claim:
    return Claim(text, f"{_THEIRS['G-SimCLR'][column]} and {_THEIRS['SimCLR'][column]}", pair=(first, second))


STUDY = Study(
    "002: G-SimCLR",
    "CIFAR-10; ResNet-8 of width 32 for their network, batches of 64, 64 clusters",
    cells,
    [
        Row("supervised, linear on P3", _SUPERVISED, "73.62"),
        *(
            Row(f"{method}, linear on {name}", _level(method, level), _THEIRS[method][name])
            for method in _RUNS
            for name, level in _LEVELS.items()
        ),
        *(
            Row(f"random weights, linear on {name}", figure(features(level, "random"), "simclr-0-linear"))
            for name, level in _LEVELS.items()
        ),
        *(
            Row(f"{method}, fine-tuned on 10 % of the labels", _tuned(method), _THEIRS[method]["10 %"])
            for method in _RUNS
        ),
        Row("random weights, fine-tuned on 10 % of the labels", figure(tuned("random"), "simclr-0-tenth")),
    ],
    [
        *(
            _beside(f"G-SimCLR is above SimCLR at {name}", name, _level("G-SimCLR", level), _level("SimCLR", level))
            for name, level in _LEVELS.items()
        ),
        _beside("G-SimCLR is above SimCLR with 10 % of the labels", "10 %", _tuned("G-SimCLR"), _tuned("SimCLR")),
        *(
            Claim(
                f"SimCLR's P3 is above its {name}",
                f"39.92 and {_THEIRS['SimCLR'][name]}",
                pair=(_level("SimCLR", "backbone"), _level("SimCLR", _LEVELS[name])),
            )
            for name in ("P1", "P2")
        ),
        Claim(
            "G-SimCLR's P2 is above its P3",
            "41.01 and 40.5",
            pair=(_level("G-SimCLR", "head-2"), _level("G-SimCLR", "backbone")),
        ),
        Claim(
            "Supervised training is above G-SimCLR",
            "73.62 and 40.5",
            pair=(_SUPERVISED, _level("G-SimCLR", "backbone")),
        ),
        Claim(
            "On a subset of ImageNet, G-SimCLR is above SimCLR at P1, P2, P3 and with 10 % of the labels",
            "56.4, 56.8, 60.0, 56.0 and 52.8, 48.4, 52.4, 49.2",
            why="no images of ImageNet are at hand",
        ),
    ],
)
