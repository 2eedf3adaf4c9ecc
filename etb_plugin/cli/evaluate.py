"""`etb evaluate`: attack and certify networks that are trained already."""

from pathlib import Path
from typing import Annotated

import typer

from etb_plugin.cli import options as o


def command(
    context: typer.Context,
    weights: Annotated[
        Path,
        typer.Argument(help="A run folder, .safetensors, a state_dict, or zoo:NAME.", show_default=False),
    ],
    dataset: o.Dataset = None,
    model: o.Model = None,
    eps_test: o.EpsTest = None,
    test_limit: o.TestLimit = None,
    pgd_steps: o.PgdSteps = None,
    pgd_restarts: o.PgdRestarts = None,
    attack: o.Attack = None,
    certify: o.Certify = None,
    rigorous: o.RigorousCertificates = None,
    seed: o.AttackSeed = None,
    device: o.Device = None,
    data_dir: o.DataDir = None,
    out: o.Out = None,
) -> None:
    """Attack and certify trained networks: every one of a run, or one file of weights.

    Weights of our own say which network and data set they are for. Anyone else's need --model and --dataset, and
    see pixels in 0 to 1. With --out, results.json and results.csv are written there.

    Example: etb evaluate weights.pt --model wk-small --dataset mnist --eps-test 0.1 --certify ibp,crown
    """
    o.check_there(weights)
    request = o.evaluation(context)
    from etb_plugin.comparison import Reevaluation
    from etb_plugin.report.sheet import comparison_sheet
    from etb_plugin.report.stoppable import StoppableLive
    from etb_plugin.report.table import comparison_table

    evaluation = Reevaluation(weights, request)
    with StoppableLive(o.stderr()) as live:
        results = evaluation.run(live, Path(out) if out is not None else None)
    o.stdout().print(comparison_table(comparison_sheet(results, evaluation.title)))
    if out is not None:
        o.stdout().print(f"Written: {out}/results.json and results.csv", soft_wrap=True)
