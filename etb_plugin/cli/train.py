"""`etb train`: train one method."""

import typer

from etb_plugin.cli import options as o
from etb_plugin.cli.stopping import StoppableLive
from etb_plugin.comparison import Comparison
from etb_plugin.experiment import read_experiment


def command(
    context: typer.Context,
    method: o.Method,
    dataset: o.Dataset = None,
    model: o.Model = None,
    eps: o.Eps = None,
    epochs: o.Epochs = None,
    batch_size: o.BatchSize = None,
    lr: o.Lr = None,
    seed: o.Seed = None,
    train_limit: o.TrainLimit = None,
    device: o.Device = None,
    data_dir: o.DataDir = None,
    out: o.Out = None,
) -> None:
    """Train a network by one method, and keep its last and best weights.

    The same command again resumes from the last finished epoch. `etb evaluate` takes the run folder.

    Example: etb train --method expected --dataset mnist --eps 0.1 --epochs 20
    """
    comparison = Comparison(read_experiment(None, {**context.params, "methods": method}))
    with StoppableLive(o.stderr()) as live:
        comparison.run(live, evaluation=False)
    folder = comparison.experiment.folder
    o.stdout().print(f"Trained: {comparison.title}", soft_wrap=True, highlight=False)
    o.stdout().print(f"Weights: {folder}/cells. Next: etb evaluate {folder}", soft_wrap=True, highlight=False)
