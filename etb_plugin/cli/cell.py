"""`etb cell`: do one cell of a run, for schedulers."""

from pathlib import Path
from typing import Annotated

import typer

from etb_plugin.cli import options as o


def command(
    run: Annotated[Path, typer.Argument(help="A run folder, as --engine print names it.", show_default=False)],
    cell: Annotated[str, typer.Argument(help="A cell of it.", show_default=False)],
    validate: Annotated[
        bool, typer.Option("--validate", help="Put it to the validation images: a point of a grid.")
    ] = False,
    model: Annotated[
        str | None, typer.Option(help="Its network, where that is code of your own.", callback=o.run_own_network)
    ] = None,
    dataset: Annotated[
        str | None, typer.Option(help="The data set, where that is code of your own.", callback=o.run_own_data)
    ] = None,
) -> None:
    """Train and evaluate one cell of a run, or go on from its last checkpoint.

    What a comparison prints with --engine print. When all cells are done, the comparison with any other engine finds
    them, and writes the results.

    Example: etb compare mine.yaml --out run --engine print | xargs -P 4 -I{} sh -c '{}'
    """
    o.check_there(run)
    from etb_plugin.comparison import Workshop
    from etb_plugin.report.stoppable import StoppableLive

    workshop = Workshop.of(run)
    with StoppableLive(o.stderr()) as live:
        workshop.perform(workshop.task(cell, validate), live)
