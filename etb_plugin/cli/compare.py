"""`etb compare`: train, attack and certify several methods on one network and data set."""

import typer

from etb_plugin.cli import options as o
from etb_plugin.cli.stopping import StoppableLive
from etb_plugin.comparison import Comparison
from etb_plugin.report.table import comparison_table


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
    certify: o.Certify = None,
    tensorboard: o.TensorBoard = None,
    compile: o.Compile = None,
    device: o.Device = None,
    data_dir: o.DataDir = None,
    out: o.Out = None,
) -> None:
    """Train every method on the same network and data, attack and certify all alike, and show one table.

    The same command again resumes: finished methods are kept, a half-trained one goes on from its last epoch.

    Example: etb compare --dataset cifar10 --methods ibp,expected,crown --eps 2/255
    """
    comparison = Comparison(o.experiment(context, file))
    with StoppableLive(o.stderr()) as live:
        results = comparison.run(live)
    o.stdout().print(comparison_table(results, comparison.title))
    o.stdout().print(f"Written: {comparison.experiment.folder}/results.json and results.csv", soft_wrap=True)
