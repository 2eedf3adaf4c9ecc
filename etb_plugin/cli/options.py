"""The options that several subcommands share, and the console they write to."""

import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from etb_plugin.experiment import (
    Evaluated,
    Experiment,
    VerifyRequest,
    read_evaluation,
    read_experiment,
    read_verification,
)

_WIDTH = 120
"""Columns where the output is no terminal."""

_WHAT, _TRAINING, _EVALUATION, _WHERE = "What", "Training", "Evaluation", "Where"

Dataset = Annotated[
    str | None,
    typer.Option(
        help="digits, mnist, fashion-mnist, cifar10, cifar100, svhn, har, imagenet64, or path/to/file.npz.",
        rich_help_panel=_WHAT,
    ),
]
Methods = Annotated[
    str | None,
    typer.Option(
        help="Methods of `etb methods`, such as ibp,expected,crown or ibp:elision=false:kappa=0.5.",
        rich_help_panel=_WHAT,
    ),
]
Method = Annotated[
    str | None, typer.Option(help="A method of `etb methods`, such as ibp:elision=false.", rich_help_panel=_WHAT)
]
Model = Annotated[
    str | None,
    typer.Option(
        help="An architecture of `etb models`; tiny on digits and small elsewhere unless given.", rich_help_panel=_WHAT
    ),
]
Eps = Annotated[
    str | None,
    typer.Option(help="Training radius in pixel units, 0 to 1; 8/255 is understood.", rich_help_panel=_TRAINING),
]
Epochs = Annotated[int | None, typer.Option(help="Passes over the training images.", rich_help_panel=_TRAINING)]
BatchSize = Annotated[int | None, typer.Option(help="Images in a training step; 100.", rich_help_panel=_TRAINING)]
Lr = Annotated[
    str | None, typer.Option(help="Learning rate, in place of each method's own.", rich_help_panel=_TRAINING)
]
Seed = Annotated[int | None, typer.Option(help="Seed of weights, batches and attacks; 0.", rich_help_panel=_TRAINING)]
TrainLimit = Annotated[
    int | None, typer.Option(help="Train on the first so many images only.", rich_help_panel=_TRAINING)
]
Validation = Annotated[
    int | None,
    typer.Option(
        help="Set the last so many training images aside, to choose a grid's best.", rich_help_panel=_TRAINING
    ),
]
Select = Annotated[
    str | None,
    typer.Option(
        help="What a grid's best is chosen by on them: clean, pgd (the default) or certified accuracy.",
        rich_help_panel=_TRAINING,
    ),
]
TensorBoard = Annotated[
    bool | None, typer.Option("--tensorboard", help="Write TensorBoard's logs too.", rich_help_panel=_TRAINING)
]
Compile = Annotated[
    bool | None,
    typer.Option(
        "--compile", help="Have torch compile the network; pays on GPUs and long runs.", rich_help_panel=_TRAINING
    ),
]
EpsTest = Annotated[
    str | None,
    typer.Option(help="Test radii, such as 0.1,0.2; without it the training one.", rich_help_panel=_EVALUATION),
]
TestLimit = Annotated[
    int | None, typer.Option(help="Test on the first so many images only.", rich_help_panel=_EVALUATION)
]
PgdSteps = Annotated[
    int | None, typer.Option(help="Steps of PGD; 40. The papers take 200.", rich_help_panel=_EVALUATION)
]
PgdRestarts = Annotated[
    int | None, typer.Option(help="Restarts of PGD; 1. The papers take 10.", rich_help_panel=_EVALUATION)
]
Certify = Annotated[
    str | None,
    typer.Option(
        help="Sound bounds that certify, such as ibp,exact:time_limit=10; without it ibp, crown-ibp and the sound ones "
        "that are trained with.",
        rich_help_panel=_EVALUATION,
    ),
]
Device = Annotated[
    str | None, typer.Option(help="auto (the GPU where there is one), cpu, cuda, cuda:1.", rich_help_panel=_WHERE)
]
DataDir = Annotated[
    str | None,
    typer.Option(help="Folder of data sets; the variable ETB_DATA_DIR, or data.", rich_help_panel=_WHERE),
]
Out = Annotated[
    str | None, typer.Option(help="Run folder; runs/... named after the experiment.", rich_help_panel=_WHERE)
]
File = Annotated[Path | None, typer.Argument(help="A YAML file with the same keys as the flags, which override it.")]


def experiment(context: typer.Context, file: Path | None = None) -> Experiment:
    """Return the experiment that the call, and a file, describe. Raises ConfigError."""
    return read_experiment(file, context.params)


def evaluation(context: typer.Context) -> Evaluated:
    """Return the evaluation that the call describes. Raises ConfigError."""
    return read_evaluation(context.params)


def verification(context: typer.Context) -> VerifyRequest:
    """Return the verification that the call describes. Raises ConfigError."""
    return read_verification(context.params)


def stdout() -> Console:
    """Return the console for results."""
    return Console(width=None if sys.stdout.isatty() else _WIDTH)


def stderr(speaks: bool = True) -> Console:
    """Return the console for progress, or one that says nothing."""
    return Console(stderr=True, quiet=not speaks)
