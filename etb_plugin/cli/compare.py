"""`etb compare`: train, attack and certify several methods on one network and data set."""

import gc
import webbrowser
from typing import Annotated

import typer

from etb_plugin.cli import options as o


def command(
    context: typer.Context,
    file: o.File = None,
    dataset: o.Dataset = None,
    methods: o.Methods = None,
    model: o.Model = None,
    eps: o.Eps = None,
    eps_test: o.EpsTest = None,
    epochs: o.Epochs = None,
    batch_size: o.BatchSize = None,
    lr: o.Lr = None,
    seed: o.Seed = None,
    train_limit: o.TrainLimit = None,
    validation: o.Validation = None,
    select: o.Select = None,
    test_limit: o.TestLimit = None,
    pgd_steps: o.PgdSteps = None,
    pgd_restarts: o.PgdRestarts = None,
    attack: o.Attack = None,
    certify: o.Certify = None,
    rigorous: o.RigorousCertificates = None,
    tensorboard: o.TensorBoard = None,
    compile: o.Compile = None,
    capture: o.Capture = None,
    engine: o.EngineName = None,
    workers: o.Workers = None,
    threads: o.Threads = None,
    gpus: o.Gpus = None,
    address: o.Address = None,
    device: o.Device = None,
    data_dir: o.DataDir = None,
    out: o.Out = None,
    changes: o.Set = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="List the cells, what is done and what is missing, and stop.")
    ] = False,
    open_: Annotated[bool, typer.Option("--open", help="Show report.html in the browser when all is done.")] = False,
) -> None:
    """Train every method on the same network and data, attack and certify all alike, and show one table.

    Several networks, radii and seeds make a cell of each combination. The same command again resumes: finished cells
    are kept, a half-trained one goes on from its last epoch. From another terminal, etb compare status RUN tells how
    far it is.

    Example: etb compare --dataset cifar10 --methods ibp,expected,crown --eps 2/255

    Example: etb compare configs/quick/tradeoff.yaml --workers 2 --set training.epochs=5
    """
    experiment = o.experiment(context, file, changes)
    from etb_plugin.comparison import Comparison
    from etb_plugin.report.sheet import comparison_sheet
    from etb_plugin.report.stoppable import StoppableLive
    from etb_plugin.report.table import comparison_table, cost_table, plan_table

    gc.freeze()  # memory is measured from where no garbage is left, which what is imported is not
    comparison = Comparison(experiment)
    folder = comparison.experiment.folder
    if dry_run:
        comparison.estimate()
        o.stdout().print(plan_table(comparison.workshop, comparison.title))
        return
    from etb_plugin.report.running import RunningPage

    with RunningPage(comparison) as page, StoppableLive(o.stderr(), page.due) as live:
        results = comparison.run(live, estimated=lambda: live.show(cost_table(comparison.workshop)))
    if comparison.experiment.engine.name == "print":
        return
    o.stdout().print(comparison_table(comparison_sheet(results, comparison.title, comparison.experiment.report.spread)))
    from etb_plugin.report.page import write_report  # draws, which a dry run can do without

    write_report(folder, comparison.title, comparison.experiment.report.spread)
    o.stdout().print(f"Written: {folder}/report.html, results.json, results.csv and plots", soft_wrap=True)
    if open_:
        webbrowser.open((folder / "report.html").resolve().as_uri())
