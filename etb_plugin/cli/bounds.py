"""`etb bounds`: how tight each bound is on trained networks."""

from pathlib import Path
from typing import Annotated

import typer

from etb_plugin.cli import options as o
from etb_plugin.experiment import eps_text
from etb_plugin.report.table import tightness_table
from etb_plugin.tightness import compare_bounds


def command(
    context: typer.Context,
    checkpoint: Annotated[Path, typer.Option(help="A run folder, or a file of weights.", show_default=False)],
    methods: Annotated[
        str,
        typer.Option(
            help="Bounds of `etb methods`, with options as in dual:projections=50 or expected:masks=blockwise."
        ),
    ] = "ibp,expected,crown-ibp",
    dataset: o.Dataset = None,
    model: o.Model = None,
    eps_test: o.EpsTest = None,
    test_limit: Annotated[int, typer.Option(help="Test images in the batch.")] = 100,
    device: o.Device = None,
    data_dir: o.DataDir = None,
) -> None:
    """Show how wide each bound's margins are, relative to IBP's, and the time for one batch of test images.

    Example: etb bounds --checkpoint runs/mine --methods ibp,expected,expected:masks=blockwise,crown
    """
    request = o.evaluation(context)
    for about, eps, rows in compare_bounds(checkpoint, methods.split(","), request):
        heading = f"{about['method']}: {about['model']} on {about['dataset']}, {test_limit} images, eps {eps_text(eps)}"
        o.stdout().print(tightness_table(rows, heading))
