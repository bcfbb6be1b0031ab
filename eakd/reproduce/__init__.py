"""Comparing finished runs."""

from eakd.reproduce.comparison import Row, compare, plot_curves, read_runs, report, to_markdown

__all__ = ["Row", "compare", "plot_curves", "read_runs", "report", "to_markdown"]
