"""Writer of docs/performance.md: each benchmark has a section there, and each of its runs replaces it."""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

DOCS = Path(__file__).parent.parent / "docs"
_HEAD = """# Performance

The modules of `benchmarks/` write this page (`make bench`). A table compares this project ("ours") with other libraries
in one run on one machine. Only the ratios within a table say something about other machines.
"""


def write_section(title: str, text: str, docs: Path = DOCS) -> None:
    """Replace the section with the same title, or append it at the end."""
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
    """Return a Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def machine() -> str:
    """Describe this machine and its torch in a phrase, for the text of a section."""
    import torch

    model = next(
        (line.partition(":")[2].strip() for line in _cpu_lines() if line.startswith("model name")), platform.machine()
    )
    threads = torch.get_num_threads()
    return f"{os.cpu_count()} cores of {model}, {threads} thread{'s' * (threads > 1)}, torch {torch.__version__}."


def _cpu_lines() -> list[str]:
    cpu = Path("/proc/cpuinfo")
    return cpu.read_text().splitlines() if cpu.exists() else []
