"""A report of a run, or of several side by side, as one HTML file that needs nothing else."""

from ssl_dist.report.page.run_files import RunFiles
from ssl_dist.report.page.several_runs import ranked
from ssl_dist.report.page.writing import write_page

__all__ = ["RunFiles", "ranked", "write_page"]
