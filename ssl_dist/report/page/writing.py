"""Writing a report: what its files say is filled into a template, which escapes all of it."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ssl_dist import __version__
from ssl_dist.errors import RunError
from ssl_dist.files import write_text
from ssl_dist.report.page.one_run import content_of
from ssl_dist.report.page.run_files import RunFiles
from ssl_dist.report.page.several_runs import content_of_several
from ssl_dist.report.page.words import setting
from ssl_dist.report.pictures import shortened

if TYPE_CHECKING:
    import jinja2


def write_page(runs: Sequence[RunFiles], title: str, page: Path, price_per_hour: float | None = None) -> None:
    """Write the report of one run, or of several side by side, whole or not at all.

    The page is a function of the runs' files, of the stores that they name, and of the arguments.

    Args:
        runs: one or more.
        title: of a page of several runs.
        price_per_hour: of all machines of a run together, in any currency.

    Raises:
        RunError: the page cannot be written.
    """
    if len(runs) == 1:
        text = _filled("run.html", content_of(runs[0], price_per_hour))
    else:
        text = _filled("runs.html", {"title": title, **content_of_several(runs, price_per_hour)})
    try:
        write_text(page, text)
    except OSError as error:
        raise RunError(f"report {page} cannot be written ({error.strerror})") from None


def _filled(template: str, content: dict[str, Any]) -> str:
    """Fill a template of this folder."""
    return _templates().get_template(template).render(version=__version__, **content) + "\n"


@functools.cache
def _templates() -> jinja2.Environment:
    import jinja2

    loader = jinja2.FileSystemLoader(Path(__file__).parent)
    strict: Any = {"autoescape": True, "undefined": jinja2.StrictUndefined}
    templates = jinja2.Environment(loader=loader, trim_blocks=True, lstrip_blocks=True, **strict)
    templates.filters |= {"setting": setting, "shortened": shortened}
    return templates
