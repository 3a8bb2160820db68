"""The tables of a study: our figures beside theirs, and each of its claims with a word."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks import page
from benchmarks.studies.claims import Claim, Read, Value
from benchmarks.studies.tables import Study

RULE = (
    "Of several seeds: their mean, and Student's interval of 95 %. Of one: the normal interval of 95 % over the 10,000"
    " test images. A claim that one is above another is confirmed if the whole interval of our difference is above 0;"
    " that two are level, if it lies within 1 point of 0; and neither while seeds are missing."
)


def report(study: Study, read: Read) -> str:
    """Return a study's two tables as Markdown, and what was not run below each."""
    rows, claims = list[Sequence[str]](), list[Sequence[str]]()
    no_rows, no_claims = list[str](), list[str]()
    for row in study.rows:
        if (value := row.ours.value(read)) is None:
            no_rows.append(row.label)
        else:
            rows.append((row.label, value.percent(), row.theirs, value.seeds))
    for claim in study.claims:
        word = claim.word(read)
        if word == "not run":
            no_claims.append(claim.text)
        else:
            found = claim.difference(read)
            points, seeds = ("", "") if found is None else (found.percent(signed=True), found.seeds)
            claims.append((claim.text, claim.theirs, points, seeds, f"**{word}**{_notes(claim, found, word)}"))
    parts = [
        f"### {study.title}",
        f"{study.setting}.",
        page.table(["accuracy, %", "ours", "theirs", "seeds"], rows) if rows else "",
        _not_run(no_rows),
        page.table(["they found", "theirs", "our difference, points", "seeds", "word"], claims) if claims else "",
        _not_run(no_claims),
    ]
    return "\n\n".join(filter(None, parts))


def _notes(claim: Claim, found: Value | None, word: str) -> str:
    """Return why the word is what it is, behind a colon."""
    why = _reason(claim, found) if found is not None and word == "not confirmed" else ""
    notes = "; ".join(filter(None, [why, claim.why]))
    return f": {notes}" if notes else ""


def _reason(claim: Claim, found: Value) -> str:
    if not found.is_whole:
        return "seeds are missing"
    if claim.kind == "level":
        return "the interval reaches beyond 1 point"
    return "the other way round" if found.high < 0 else "0 lies in the interval"


def _not_run(names: Sequence[str]) -> str:
    return f"Not run: {'; '.join(names)}." if names else ""
