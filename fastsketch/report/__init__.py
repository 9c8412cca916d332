"""One self-contained HTML page of one or more runs."""

from fastsketch.report.look import Look, Shown, look_at_run, run_settings
from fastsketch.report.page import save_report

__all__ = ["Look", "Shown", "look_at_run", "run_settings", "save_report"]
