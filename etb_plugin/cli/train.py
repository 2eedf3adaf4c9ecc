"""`etb train`: train one method."""

import typer

from etb_plugin.cli import options as o
from etb_plugin.errors import ConfigError
from etb_plugin.experiment import Engine, read_experiment, resolve_device


def command(
    context: typer.Context,
    file: o.File = None,
    method: o.Method = None,
    dataset: o.Dataset = None,
    model: o.Model = None,
    eps: o.Eps = None,
    epochs: o.Epochs = None,
    batch_size: o.BatchSize = None,
    lr: o.Lr = None,
    seed: o.Seed = None,
    train_limit: o.TrainLimit = None,
    tensorboard: o.TensorBoard = None,
    compile: o.Compile = None,
    capture: o.Capture = None,
    device: o.Device = None,
    data_dir: o.DataDir = None,
    out: o.Out = None,
    changes: o.Set = None,
) -> None:
    """Train a network by one method, and keep its last and best weights.

    The same command again resumes. `etb evaluate` takes the run folder. Started by torchrun, several processes, on one
    GPU each or on CPUs, train the network together.

    Example: etb train --method expected --dataset mnist --eps 0.1 --epochs 20

    Several processes: torchrun --nproc-per-node 2 -m etb_plugin train mine.yaml
    """
    if file is None and method is None:
        raise ConfigError("which method? write --method ibp, or name a file that says so")
    experiment = read_experiment(file, {**context.params, "methods": method}, changes or ())
    axes = (experiment.methods, experiment.model or (), experiment.eps or (), experiment.seed)
    if any(len(axis) > 1 for axis in axes) or experiment.methods[0].grid:
        names = ", ".join(variant.label for variant in experiment.methods)
        raise ConfigError(f"etb train trains one network; for several ({names}) there is etb compare")
    from etb_plugin.comparison import Comparison
    from etb_plugin.report.stoppable import StoppableLive
    from etb_plugin.training import joined

    with joined(resolve_device(experiment.device)) as team:
        # One network: whatever engine a file names for its comparisons, this process trains it, or torchrun's do.
        comparison = Comparison(experiment.model_copy(update={"engine": Engine()}))
        with StoppableLive(o.stderr(team.leads)) as live:
            comparison.run(live, evaluation=False)
    if not team.leads:
        return
    folder = comparison.experiment.folder
    o.stdout().print(f"Trained: {comparison.title}", soft_wrap=True, highlight=False)
    o.stdout().print(f"Weights: {folder}/cells. Next: etb evaluate {folder}", soft_wrap=True, highlight=False)
