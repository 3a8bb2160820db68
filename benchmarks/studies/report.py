"""The tables of a study: our figures beside theirs, and each of its claims with a word."""

from __future__ import annotations

from benchmarks import page
from benchmarks.studies.claims import Claim, Read, Value
from benchmarks.studies.tables import Study

RULE = (
    "Of three seeds: their mean, and Student's interval of 95 %. Of one: the normal interval of 95 % over the 10,000"
    " test images. A claim that one is above another is confirmed if the whole interval of our difference is above 0;"
    " that two are level, if it lies within 1 point of 0."
)


def report(study: Study, read: Read) -> str:
    """Return a study's two tables as Markdown."""
    rows = [
        (
            row.label,
            "not run" if (value := row.ours.value(read)) is None else value.percent(),
            row.theirs,
            _seeds(value),
        )
        for row in study.rows
    ]
    return "\n\n".join(
        [
            f"### {study.title}",
            f"{study.setting}.",
            page.table(["accuracy, %", "ours", "theirs", "seeds"], rows),
            page.table(
                ["they found", "theirs", "our difference, points", "seeds", "word"],
                [_told(claim, read) for claim in study.claims],
            ),
        ]
    )


def _told(claim: Claim, read: Read) -> tuple[str, ...]:
    found, word = claim.difference(read), claim.word(read)
    why = ""
    if word == "not confirmed" and found is not None:
        why = _reason(claim, found)
    points = "" if found is None else found.percent(signed=True)
    notes = "; ".join(filter(None, [why, claim.why]))
    return claim.text, claim.theirs, points, _seeds(found), f"**{word}**{': ' * bool(notes)}{notes}"


def _reason(claim: Claim, found: Value) -> str:
    if claim.kind == "level":
        return "the interval reaches beyond 1 point"
    return "the other way round" if found.high < 0 else "0 lies in the interval"


def _seeds(found: Value | None) -> str:
    return "" if found is None else found.seeds
