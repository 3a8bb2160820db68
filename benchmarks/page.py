"""docs/performance.md: one section a benchmark, written anew by each of its runs."""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

DOCS = Path(__file__).parent.parent / "docs"
_HEAD = """# Performance

Written by the modules of `benchmarks/` (`make bench`), ours beside the peers in one run. Only ratios within a table
mean something elsewhere.
"""


def write_section(title: str, text: str, docs: Path = DOCS) -> None:
    """Put the section in the place of the one with the same title, or at the end."""
    page = docs / "performance.md"
    sections = re.split(r"^(?=## )", page.read_text() if page.exists() else _HEAD, flags=re.MULTILINE)
    new = f"## {title}\n\n{text.strip()}\n"
    for number, section in enumerate(sections):
        if section.startswith(f"## {title}\n"):
            sections[number] = new
            break
    else:
        sections.append(new)
    page.write_text("\n".join(section.strip() + "\n" for section in sections))


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def machine() -> str:
    """What the figures were measured on, in a sentence."""
    import torch

    model = next(
        (line.partition(":")[2].strip() for line in _cpu_lines() if line.startswith("model name")), platform.machine()
    )
    threads = torch.get_num_threads()
    return f"{os.cpu_count()} cores of {model}, {threads} thread{'s' * (threads > 1)}, torch {torch.__version__}."


def _cpu_lines() -> list[str]:
    cpu = Path("/proc/cpuinfo")
    return cpu.read_text().splitlines() if cpu.exists() else []
