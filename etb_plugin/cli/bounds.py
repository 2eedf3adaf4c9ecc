"""`etb bounds`: how tight each bound is on trained networks."""

from pathlib import Path
from typing import Annotated

import typer

from etb_plugin.cli import options as o
from etb_plugin.experiment import eps_text


def command(
    context: typer.Context,
    checkpoint: Annotated[Path, typer.Option(help="A run folder, or a file of weights.", show_default=False)],
    methods: Annotated[
        str | None,
        typer.Option(
            help="Bounds of `etb methods`, with options as in dual:projections=50 or expected:masks=blockwise; "
            "without it ibp,expected,crown-ibp, or expected to calibrate.",
        ),
    ] = None,
    dataset: o.Dataset = None,
    model: o.Model = None,
    eps_test: o.EpsTest = None,
    test_limit: Annotated[int, typer.Option(help="Test images in the batch.")] = 100,
    calibrate: Annotated[
        bool,
        typer.Option(
            "--calibrate", help="Find the factor of the radius that covers PGD and samples on 1 - alpha of the images."
        ),
    ] = False,
    alpha: Annotated[float, typer.Option(help="Share of images that may be left uncovered.")] = 0.1,
    pgd_steps: o.PgdSteps = None,
    pgd_restarts: o.PgdRestarts = None,
    seed: o.AttackSeed = None,
    device: o.Device = None,
    data_dir: o.DataDir = None,
) -> None:
    """Show how wide each bound's margins are, relative to IBP's, and the time for one batch of test images.

    With --calibrate: how much wider the expected interval has to be to cover what attacks and samples reach.

    Example: etb bounds --checkpoint runs/mine --methods ibp,expected,expected:masks=blockwise,crown
    """
    o.check_there(checkpoint)
    request = o.evaluation(context)
    from etb_plugin.comparison.tightness import calibrate_bounds, compare_bounds
    from etb_plugin.report.table import calibration_table, tightness_table
    from etb_plugin.training.allocation import keep_freed_memory

    keep_freed_memory()
    names = (methods or ("expected" if calibrate else "ibp,expected,crown-ibp")).split(",")
    if calibrate:
        for about, eps, found in calibrate_bounds(checkpoint, names, request, alpha):
            heading = f"{about['method']}: {about['model']} on {about['dataset']}, eps {eps_text(eps)}"
            o.stdout().print(calibration_table(found, alpha, heading))
        return
    for about, eps, rows in compare_bounds(checkpoint, names, request):
        heading = f"{about['method']}: {about['model']} on {about['dataset']}, {test_limit} images, eps {eps_text(eps)}"
        o.stdout().print(tightness_table(rows, heading))
