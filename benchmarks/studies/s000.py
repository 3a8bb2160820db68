"""Study 000: Self-Classifier, SimCLR and MoCo v2 with 32 labels a class, and then with labels that were requested.

Theirs has 800 classes and 512,000 images of 96 px without labels; docs/studies.md has the commands for that. Here it is
CIFAR-10: 320 labels, the other 49,680 images have none. They requested half as many labels again: so do these cells, by
the features of MoCo's run. The classes of the requested images are the true ones (``annotator``).
"""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.studies.cells import Cell, cell
from benchmarks.studies.claims import Claim, Figure, Pick, Row, features, tuned
from benchmarks.studies.tables import NETWORK, SEEDS, TEST, TRAIN, Study, pretrain

_PER_CLASS, _REQUESTED, _ROUNDS = 32, 160, 3
_FEW = "stores/few-{}"
_ANNOTATOR = "python -m benchmarks.studies.annotator"
_METHODS = {"Self-Classifier": "self-classifier", "SimCLR": "simclr", "MoCo v2": "moco", "SwAV": "swav"}
_STRATEGIES = ("representative", "random")


def cells(epochs: float) -> Sequence[Cell]:
    """Return the runs and their evaluations, the requests, the half-long run and self-training, seed by seed."""
    made = list[Cell]()
    for seed in SEEDS:
        made.append(_few(seed))
        for name in ("self-classifier", "simclr", "moco"):
            made += _pretrained(name, seed, epochs)
        for strategy in _STRATEGIES:
            made += _requested(strategy, seed)
    for seed in SEEDS:
        made += [*_pretrained("moco", seed, epochs / 2, "-half"), *_pretrained("swav", seed, epochs)]
        made.append(_self_trained(seed))
    return made


def _few(seed: int) -> Cell:
    """Return the store of which only few images have a label; which ones is another draw with each seed."""
    name = f"few-{seed}"
    return cell(
        name,
        f"{_ANNOTATOR} draw {TRAIN} runs/{name}/labels.csv --per-class {_PER_CLASS} --seed {seed}",
        f"ssl-dist store build {TRAIN} stores/{name} --labels-csv runs/{name}/labels.csv",
    )


def _pretrained(recipe: str, seed: int, epochs: float, suffix: str = "") -> list[Cell]:
    name, store = f"few-{seed}-{recipe}{suffix}", _FEW.format(seed)
    sized = f"{NETWORK} --set batch.size=256 --set batch.micro=128 --set seed={seed}"
    if recipe == "swav":
        sized += f" --set method.freeze_prototypes_epochs={0.1 * epochs:g}"
    return [
        pretrain(name, f"{recipe}-cifar10", epochs, sized, store),
        _linear(name, store),
        cell(
            f"{name}-last2",
            f"""ssl-dist evaluate finetune runs/{name} --train {store} --test {TEST} --unfreeze last:2 --set
            method.anew=true --epochs 50 --batch 32 --lr 1e-3 --set batch.micro=32 --set seed={seed}
            --run-dir runs/{name}-last2""",
        ),
    ]


def _linear(run: str, store: str, name: str | None = None) -> Cell:
    return cell(
        f"{name or run}-linear", f"ssl-dist evaluate linear runs/{run} --train {store} --test {TEST} --baselines none"
    )


def _requested(strategy: str, seed: int) -> list[Cell]:
    """Return the request, the labelled copy of the store, and the evaluation."""
    run, name, store = f"few-{seed}-moco", f"few-{seed}-{strategy}", _FEW.format(seed)
    return [
        cell(
            f"{name}-request",
            f"""ssl-dist label-request runs/{run} {store} --count {_REQUESTED} --strategy {strategy} --seed {seed}
            --out runs/{name}-request""",
        ),
        cell(
            name,
            f"{_ANNOTATOR} answer {TRAIN} runs/{name}-request/labels.csv runs/{name}/labels.csv",
            f"ssl-dist store build {store} stores/{name}",
            f"ssl-dist store label stores/{name} runs/{name}/labels.csv",
        ),
        _linear(run, f"stores/{name}", name),
    ]


def _self_trained(seed: int) -> Cell:
    name = f"few-{seed}-rounds"
    return cell(
        name,
        f"""ssl-dist self-train supervised-cifar10 --test {TEST} --share 0.01 --margin -1 --rounds {_ROUNDS} {NETWORK}
        --set data.store={_FEW.format(seed)} --set seed={seed} --set epochs=30 --set batch.size=64 --set batch.micro=64
        --set optim.lr=0.0015 --run-dir runs/{name}""",
    )


def _of(name: str, pick: Pick | None = None) -> Figure:
    return Figure([name.format(seed) for seed in SEEDS], pick or features())


def _round(number: int) -> Figure:
    return _of("few-{}-rounds", lambda result: float(result["rounds"][number]["accuracy"]))


_LINEAR = {method: _of(f"few-{{}}-{name}-linear") for method, name in _METHODS.items()}
_LAST = {method: _of(f"few-{{}}-{name}-last2", tuned()) for method, name in _METHODS.items()}
_MORE = {strategy: _of(f"few-{{}}-{strategy}-linear") for strategy in _STRATEGIES}
_THEIRS = {"Self-Classifier": "16", "SimCLR": "26.5", "MoCo v2": "36.5", "SwAV": ""}

STUDY = Study(
    "000: contrastive methods, few labels, and requested ones",
    "CIFAR-10 with 32 labels a class for their 800 classes of 96 px, ResNet-8 of width 32 for their ResNet-50",
    cells,
    [
        *(Row(f"{method}, last two layers anew", _LAST[method], theirs) for method, theirs in _THEIRS.items()),
        *(Row(f"{method}, linear", figure) for method, figure in _LINEAR.items()),
        *(
            Row(f"MoCo v2, linear, with 160 {strategy} labels more", figure, "37.32" * (strategy == "representative"))
            for strategy, figure in _MORE.items()
        ),
        Row("supervised, 320 labels", _round(0)),
        Row(f"supervised, after {_ROUNDS} rounds of self-training", _round(_ROUNDS)),
    ],
    [
        *(
            Claim(f"{first} is above {second}{way}", theirs, pair=(figures[first], figures[second]))
            for figures, way in ((_LAST, " (last two layers anew)"), (_LINEAR, " (linear)"))
            for first, second, theirs in (
                ("SimCLR", "Self-Classifier", "26.5 and 16"),
                ("MoCo v2", "SimCLR", "36.5 and 26.5"),
            )
        ),
        Claim("SwAV is above SimCLR (linear)", "a first look", pair=(_LINEAR["SwAV"], _LINEAR["SimCLR"])),
        Claim(
            "MoCo v2 gains from the second half of its training (linear)",
            "32, 34.8, 36.5 at 200, 250, 300 epochs",
            pair=(_LINEAR["MoCo v2"], _of("few-{}-moco-half-linear")),
        ),
        Claim(
            "Half as many labels again, representative ones, are worth something",
            "37.32 and 36.5",
            pair=(_MORE["representative"], _LINEAR["MoCo v2"]),
        ),
        Claim(
            "Representative labels are above random ones",
            "not compared",
            pair=(_MORE["representative"], _MORE["random"]),
            why="they left this open",
        ),
        Claim("Self-training in rounds gains", "+0.1 a round", pair=(_round(_ROUNDS), _round(0))),
        Claim("ResNet-101 is above ResNet-50", "28 and 26.5", why="an epoch of either takes longer than a cell may"),
    ],
)
