"""What `etb_plugin.compare` returns: a finished comparison, to print, to show in a notebook, to take to pandas."""

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from etb_plugin.report.page import fragment
from etb_plugin.report.runs import read_run
from etb_plugin.report.sheet import Spread, comparison_sheet
from etb_plugin.report.table import comparison_table
from etb_plugin.results import Result
from etb_plugin.shown import Shown

_WIDTH = 120
"""Columns of the printed table."""


@dataclass(frozen=True, repr=False)
class Compared(Shown):
    """The results of a comparison, one for each network and test radius, and the run folder that holds them, with
    report.html, results.json, results.csv, plots and weights. Printed, it is the table of `etb compare`."""

    title: str
    folder: Path
    results: tuple[Result, ...]
    spread: Spread = "deviation"

    def rows(self) -> list[dict[str, Any]]:
        """Return the rows of results.csv."""
        return [row for result in self.results for row in result.rows()]

    def __repr__(self) -> str:
        console = Console(file=io.StringIO(), width=_WIDTH)
        console.print(comparison_table(comparison_sheet(self.results, self.title, self.spread)))
        return console.file.getvalue().rstrip()  # type: ignore[attr-defined]

    def _repr_html_(self) -> str:
        return fragment([read_run(self.folder)], self.spread)
