"""Study 001: fine-tuning beside transfer, for several networks and rates, and for an encoder that SimCLR trained.

Theirs has 3,680 pets and networks with supervised ImageNet weights. Here a tenth of CIFAR-10's labels stands for the
pets. The weights of torchvision's networks are in no package of a registry; so their networks start from random
weights, and what the study says of supervised weights is not testable here.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from benchmarks.studies.cells import Cell, cell
from benchmarks.studies.claims import Claim, Figure, Row, figure, tuned
from benchmarks.studies.tables import ALONE, PAIR, Study

_NETWORKS = {
    "ResNet-18": ("resnet18", "{name: resnet18, stem: half}"),
    "MobileNet v3": ("mobilenet", "{name: mobilenet_v3_small}"),
    "Swin-T": ("swin", "{name: swin_t}"),
    "VGG-11": ("vgg11", "{name: vgg11}"),
    "ViT-B/16": ("vit", "{name: vit_b_16}"),
}
_UNFREEZE = {"fine-tuned": "all", "transfer": "head"}
_RATES = ("1e-3", "1e-4")
_SIMCLR_RATES = {"1e-3": "44", "8e-4": "43", "5e-4": "50", "4e-4": "51", "3.5e-4": "53", "3e-4": "51", "1e-4": "50"}
_COMMON = f"{PAIR} --labels 10% --set batch.micro=32 {ALONE}"
_SIMCLR = "simclr-0"  # of study 002


def cells(epochs: float) -> Sequence[Cell]:
    """Return the grids of SimCLR's encoder, then those of the networks from random weights."""
    length, rates = f"--epochs {epochs:g}", ",".join(_SIMCLR_RATES)
    grids = {
        "rates": f"--from run,random --batch 32 --grid lr={rates} {length}",
        "transfer": f"--from run,random --unfreeze head --batch 32 --grid lr={','.join(_RATES)} {length}",
        "batches": f"--lr 3e-4 --grid batch=32,64,256 {length}",
        "lengths": f"--lr 3e-4 --batch 32 --grid epochs={epochs:g},{2 * epochs:g}",
    }
    made = [
        cell(
            f"{_SIMCLR}-{name}",
            f"ssl-dist evaluate finetune runs/{_SIMCLR} {_COMMON} {grid} --run-dir runs/{_SIMCLR}-{name}",
        )
        for name, grid in grids.items()
    ]
    for (name, backbone), unfreeze, rate in itertools.product(_NETWORKS.values(), _UNFREEZE.values(), _RATES):
        run = f"{name}-{unfreeze}-{rate}"
        made.append(
            cell(
                run,
                f"""ssl-dist evaluate finetune simclr-cifar10 {_COMMON} --from random --set 'backbone={backbone}'
                --unfreeze {unfreeze} --batch 32 --lr {rate} {length} --run-dir runs/{run}""",
            )
        )
    return made


def _network(network: str, way: str, rate: str) -> Figure:
    return figure(tuned("random"), f"{_NETWORKS[network][0]}-{_UNFREEZE[way]}-{rate}")


def _simclr(grid: str, start: str = "run", **settings: object) -> Figure:
    return figure(tuned(start, **settings), f"{_SIMCLR}-{grid}")


def _longest(result: dict[str, object], number: int) -> float:
    """Pick from a grid of epochs by place: their values are those of a budget."""
    rows = result["rows"]
    assert isinstance(rows, list)
    return float(rows[number]["top1"])


_SHORT, _LONG = (
    figure(lambda result, number=number: _longest(result, number), f"{_SIMCLR}-lengths")  # type: ignore[misc]
    for number in (0, 1)
)
_RANDOM = "theirs have ImageNet's weights, ours are random"

STUDY = Study(
    "001: fine-tuning and transfer",
    "5,000 labels of CIFAR-10 for Oxford-IIIT Pet, Adam, plateau, batches of 32, one seed; SimCLR is study 002's run 0",
    cells,
    [
        *(
            Row(f"SimCLR, fine-tuned at {rate}", _simclr("rates", lr=rate), theirs)
            for rate, theirs in _SIMCLR_RATES.items()
        ),
        *(Row(f"SimCLR, transfer at {rate}", _simclr("transfer", lr=rate)) for rate in _RATES),
        *(
            Row(f"its random weights, {way} at {rate}", _simclr(grid, "random", lr=rate))
            for way, grid in (("fine-tuned", "rates"), ("transfer", "transfer"))
            for rate in _RATES
        ),
        *(Row(f"SimCLR, fine-tuned in batches of {batch}", _simclr("batches", batch=batch)) for batch in (32, 64, 256)),
        *(
            Row(f"{network}, {way} at {rate}, random weights", _network(network, way, rate))
            for network in _NETWORKS
            for way in _UNFREEZE
            for rate in _RATES
        ),
    ],
    [
        Claim(
            "A rate of 3.5e-4 is above 1e-3 (SimCLR)",
            "53 and 44",
            pair=(_simclr("rates", lr="3.5e-4"), _simclr("rates", lr="1e-3")),
        ),
        Claim(
            "A rate of 3.5e-4 is above 1e-4 (SimCLR)",
            "53 and 50",
            pair=(_simclr("rates", lr="3.5e-4"), _simclr("rates", lr="1e-4")),
        ),
        *(
            Claim(
                f"A rate of 1e-4 is above 1e-3 ({network})",
                "fails at 1e-3" if network[:3] in ("VGG", "ViT") else "better",
                pair=(_network(network, "fine-tuned", "1e-4"), _network(network, "fine-tuned", "1e-3")),
                why=_RANDOM,
            )
            for network in _NETWORKS
        ),
        Claim(
            "Batches of 32 and 64 are level",
            "no difference",
            "level",
            (_simclr("batches", batch=32), _simclr("batches", batch=64)),
        ),
        Claim(
            "A batch of 32 is above one of 256",
            "about 50 and 46",
            pair=(_simclr("batches", batch=32), _simclr("batches", batch=256)),
        ),
        Claim("Twice the epochs are level", "change little", "level", (_LONG, _SHORT)),
        Claim(
            "Fine-tuning is above transfer (SimCLR, 1e-3)",
            "much",
            pair=(_simclr("rates", lr="1e-3"), _simclr("transfer", lr="1e-3")),
        ),
        Claim(
            "SimCLR's weights are above random ones (1e-3)",
            "not run",
            pair=(_simclr("rates", lr="1e-3"), _simclr("rates", "random", lr="1e-3")),
            why="they left SimCLR beside training from scratch open",
        ),
        Claim(
            "Supervised ImageNet weights are far above SimCLR's, and lose little by transfer",
            "bar charts",
            why="no package of a registry has torchvision's weights",
        ),
    ],
)
