"""`etb compare status`: how far a comparison is, asked from another terminal."""

from pathlib import Path
from typing import Annotated

import typer

from etb_plugin.cli import options as o


def command(run: Annotated[Path, typer.Argument(help="A run folder.", show_default=False)]) -> None:
    """Say how far a comparison is: cells done, those that run, with their losses, and those that failed.

    Example: etb compare status runs/compare-digits-1a2b3c4d
    """
    o.check_there(run)
    from etb_plugin.comparison import Workshop, overview
    from etb_plugin.report.table import status_table

    o.stdout().print(status_table(*overview(Workshop.of(run)), heading=str(run)))
