"""`etb experiment`: look at an experiment file without running it."""

import json
from pathlib import Path
from typing import Annotated

import typer

from etb_plugin.cli import options as o
from etb_plugin.experiment import Experiment, trace_experiment

app = typer.Typer(no_args_is_help=True, help="Look at an experiment file: schema, check, show.")
_File = Annotated[Path, typer.Argument(help="An experiment file.", show_default=False)]


@app.command()
def schema() -> None:
    """Print the JSON Schema of experiment files, by which editors complete and check them.

    Example: etb experiment schema > etb.schema.json
    """
    print(json.dumps(Experiment.model_json_schema(), indent=2))


@app.command()
def check(context: typer.Context, file: _File, data_dir: o.DataDir = None, changes: o.Set = None) -> None:
    """Check an experiment down to its data, networks and schedules, and start nothing.

    Example: etb experiment check configs/quick/tradeoff.yaml
    """
    experiment = o.experiment(context, file, changes)
    from etb_plugin.comparison import Comparison

    comparison = Comparison(experiment)
    cells = {cell.id for entry in comparison.entries for cell in entry.cells}
    o.stdout().print(f"{file} is an experiment of {len(cells):,} cells: {comparison.title}", soft_wrap=True)


@app.command()
def show(context: typer.Context, file: _File, changes: o.Set = None) -> None:
    """Show an experiment with nothing left open, and where each value comes from.

    Example: etb experiment show configs/quick/tradeoff.yaml --set training.epochs=5
    """
    read = trace_experiment(file, context.params, changes or ())
    from etb_plugin.report.table import experiment_table

    o.stdout().print(experiment_table(read, read.experiment.resolved()))
