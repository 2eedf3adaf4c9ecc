"""`etb leaderboard`: one page from many runs."""

from pathlib import Path
from typing import Annotated

import typer

from etb_plugin.cli import options as o
from etb_plugin.files import write_file


def command(
    folder: Annotated[Path, typer.Argument(help="A folder with runs in it, at any depth.", show_default=False)],
    out: Annotated[Path | None, typer.Option(help="The page; FOLDER/leaderboard.html without it.")] = None,
) -> None:
    """Build one page from every run below a folder: their networks in one sortable table for each data set and radius.

    Example: etb leaderboard runs
    """
    o.check_there(folder)
    from etb_plugin.report.page import page, plots_of
    from etb_plugin.report.runs import find_runs

    runs = find_runs(folder)
    place = out or folder / "leaderboard.html"
    write_file(place, page(runs, plots_of(runs), f"Leaderboard: {len(runs):,} runs", "deviation", against=True))
    o.stdout().print(f"Written: {place}", soft_wrap=True)
