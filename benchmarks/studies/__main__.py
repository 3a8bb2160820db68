"""Run the studies' cells, or some of them by name, and print our figures beside theirs.

    python -m benchmarks.studies --list
    python -m benchmarks.studies 002 --train cifar10-train.tar --test cifar10-test.tar
    python -m benchmarks.studies simclr-0-linear --epochs 1 --out runs/studies-short
    python -m benchmarks.studies --report

Stop it when you like: the same command goes on. A second process with the same --out takes its share of the work.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from benchmarks.studies import s000, s001, s002, s003, s004
from benchmarks.studies.cells import Cell, CellFailed, Results, run_all, run_command, with_needs
from benchmarks.studies.report import RULE, report
from benchmarks.studies.tables import EPOCHS, Study, stores

STUDIES: dict[str, Study] = {
    "000": s000.STUDY,
    "001": s001.STUDY,
    "002": s002.STUDY,
    "003": s003.STUDY,
    "004": s004.STUDY,
}


def main(
    names: Annotated[list[str] | None, typer.Argument(help="Studies (002) or cells; default: all.")] = None,
    out: Annotated[Path, typer.Option(help="Folder of the results.")] = Path("runs/studies"),
    train: Annotated[Path, typer.Option(help="CIFAR-10's training images.")] = Path("cifar10-train.tar"),
    test: Annotated[Path, typer.Option(help="CIFAR-10's test images.")] = Path("cifar10-test.tar"),
    epochs: Annotated[float, typer.Option(min=0.01, help="Passes of a pretraining over the images.")] = EPOCHS,
    list_: Annotated[bool, typer.Option("--list", help="Print the names of the cells, and what they need.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the commands of the cells that are left.")] = False,
    only_report: Annotated[bool, typer.Option("--report", help="Run nothing, print what is there.")] = False,
) -> None:
    """Run cells that are not finished, in their order, and print the tables of their studies."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # as Ctrl-C: the command ends with it
    results, cells = Results(out.absolute()), all_cells(epochs, train.absolute(), test.absolute())
    chosen = wanted(names or list(STUDIES), cells)
    of_them = [name for name in STUDIES if {one.name for one in cells[name]} & set(chosen)]
    ordered = with_needs(chosen, {one.name: one for some in cells.values() for one in some})
    if list_:
        typer.echo("\n".join(f"{one.name:32}{' '.join(one.needs)}".rstrip() for one in ordered))
        return
    failed = list[str]()
    try:
        left = [] if only_report else [one for one in ordered if results.of(one) is None]
        if dry_run:
            typer.echo("\n".join(command for one in left for command in one.commands))
            return
        if left:
            failed = run_all(left, results, run_command, lambda text: typer.echo(text, err=True))
    except CellFailed as error:
        raise SystemExit(f"error: {error}") from None
    typer.echo("\n\n".join([*(report(STUDIES[name], results.last) for name in of_them), RULE]))
    if failed:
        raise SystemExit(f"{len(failed)} cells failed: {', '.join(failed)}")


def all_cells(epochs: float, train: Path, test: Path) -> dict[str, Sequence[Cell]]:
    """Return the cells of each study, those of the stores beside them."""
    return {"": stores(train, test), **{name: study.cells(epochs) for name, study in STUDIES.items()}}


def wanted(names: Sequence[str], cells: dict[str, Sequence[Cell]]) -> list[str]:
    """Return the names of the cells of studies, and of single cells.

    Raises:
        typer.BadParameter: there is no such study or cell.
    """
    known = {one.name for some in cells.values() for one in some}
    if unknown := [name for name in names if name not in known and name not in cells]:
        raise typer.BadParameter(f"{unknown[0]!r} is neither a study nor a cell: see --list")
    return [one for name in names for one in ([name] if name in known else [one.name for one in cells[name]])]


if __name__ == "__main__":
    typer.run(main)
