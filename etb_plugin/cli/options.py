"""The options that several subcommands share, and the console they write to."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import BaseModel
from rich.console import Console

from etb_plugin.catalogue import catalogue
from etb_plugin.errors import ConfigError, tell
from etb_plugin.experiment import (
    Engine,
    Evaluated,
    EvaluationSection,
    Experiment,
    TrainingSection,
    Verifying,
    VerifyRequest,
    read_evaluation,
    read_experiment,
    read_verification,
)
from etb_plugin.files import in_zoo
from etb_plugin.registry import own_code

_WIDTH = 120
"""Columns where the output is no terminal."""


def complete(kind: str) -> Callable[[str], list[str]]:
    """Return the completion of names of a `kind`, the last of a comma-separated list."""

    def completed(incomplete: str) -> list[str]:
        before, comma, last = incomplete.rpartition(",")
        return [before + comma + name for name in catalogue(kind) if name.startswith(last)]

    return completed


_NAMES = {"methods": "method", "model": "network", "dataset": "dataset", "certify": "bound"}
"""The keys that hold names, and of what."""


def run_own_network(named: str | None) -> str | None:
    """Run the files of a command's own networks, path/file.py:NAME among its models, and say so. Raises ConfigError."""
    for name in (named or "").split(","):
        if _announced(name, "--model"):
            from etb_plugin.networks import register_own

            register_own(name)
    return named


def run_own_data(named: str | None) -> str | None:
    """Run the file of a command's own data set, path/file.py:NAME, and say so. Raises ConfigError."""
    if _announced(named or "", "--dataset"):
        from etb_plugin.data import register_own_data

        register_own_data(named or "")
    return named


def _announced(name: str, flag: str) -> bool:
    if (found := own_code(name)) is None:
        return False
    tell(f"running {found[0]}, as {flag} {name} says")
    return True


_RUNS = {"model": run_own_network, "dataset": run_own_data}
"""The keys whose names may be a user's own code."""


def _option(schema: type[BaseModel], key: str, panel: str, *names: str) -> Any:
    """Return the option of a key, with the schema's own words for it."""
    completion = complete(_NAMES[key]) if key in _NAMES else None
    description = schema.model_fields[key].description
    return typer.Option(
        *names, help=description, rich_help_panel=panel, autocompletion=completion, callback=_RUNS.get(key)
    )


def _what(key: str) -> Any:
    return _option(Experiment, key, "What")


def _training(key: str, *names: str) -> Any:
    return _option(TrainingSection, key, "Training", *names)


def _evaluation(key: str, *names: str) -> Any:
    return _option(EvaluationSection, key, "Evaluation", *names)


def _verification(key: str, *names: str) -> Any:
    return _option(Verifying, key, "Verification", *names)


def _where(key: str) -> Any:
    return _option(Experiment, key, "Where")


def _engine(key: str, *names: str) -> Any:
    return _option(Engine, key, "Engine", *names)


Dataset = Annotated[str | None, _what("dataset")]
Methods = Annotated[str | None, _what("methods")]
Method = Annotated[
    str | None,
    typer.Option(
        help="A method of `etb methods`, such as ibp:elision=false.",
        rich_help_panel="What",
        autocompletion=complete("method"),
    ),
]
Model = Annotated[str | None, _what("model")]
Eps = Annotated[str | None, _what("eps")]
Seed = Annotated[str | None, _what("seed")]
Epochs = Annotated[int | None, _training("epochs")]
BatchSize = Annotated[int | None, _training("batch_size")]
Lr = Annotated[str | None, _training("lr")]
TrainLimit = Annotated[int | None, _training("train_limit")]
Validation = Annotated[int | None, _training("validation")]
Select = Annotated[str | None, _training("select")]
TensorBoard = Annotated[bool | None, _training("tensorboard", "--tensorboard")]
Compile = Annotated[bool | None, _training("compile", "--compile")]
Capture = Annotated[str | None, _training("capture")]
EpsTest = Annotated[str | None, _evaluation("eps_test")]
TestLimit = Annotated[int | None, _evaluation("test_limit")]
PgdSteps = Annotated[int | None, _evaluation("pgd_steps")]
PgdRestarts = Annotated[int | None, _evaluation("pgd_restarts")]
Attack = Annotated[str | None, _evaluation("attack")]
Certify = Annotated[str | None, _evaluation("certify")]
RigorousCertificates = Annotated[bool | None, _evaluation("rigorous", "--rigorous")]
Images = Annotated[str | None, _verification("images")]
Stages = Annotated[str | None, _verification("stages")]
TimeLimit = Annotated[float | None, _verification("time_limit", "--time-limit", "--timeout")]
Solver = Annotated[str | None, _verification("solver")]
Rigorous = Annotated[bool | None, _verification("rigorous", "--rigorous")]
EngineName = Annotated[str | None, _engine("name", "--engine")]
Workers = Annotated[int | None, _engine("workers")]
Threads = Annotated[int | None, _engine("threads")]
Gpus = Annotated[float | None, _engine("gpus")]
Address = Annotated[str | None, _engine("address")]
Device = Annotated[str | None, _where("device")]
DataDir = Annotated[str | None, _where("data_dir")]
Out = Annotated[str | None, _where("out")]
AttackSeed = Annotated[int | None, typer.Option("--seed", help="Seed of attacks; 0.", rich_help_panel="Evaluation")]
Set = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="KEY=VALUE", help="Any key of the experiment, such as training.epochs=5; can be repeated."
    ),
]
File = Annotated[Path | None, typer.Argument(help="A YAML file with the same keys as the flags, which override it.")]


def check_there(*paths: Path) -> None:
    """Raise ConfigError for the first path that there is not."""
    for path in paths:
        if not in_zoo(path).exists():
            raise ConfigError(f"there is no file or folder {path}")


def experiment(context: typer.Context, file: Path | None, changes: list[str] | None) -> Experiment:
    """Return the experiment that the call, and a file, describe. Raises ConfigError."""
    return read_experiment(file, context.params, changes or ())


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
