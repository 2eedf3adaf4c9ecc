"""`etb study`: a figure or table of a paper, measured again."""

import hashlib
import json
from dataclasses import astuple
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml
from rich import box
from rich.table import Table

from etb_plugin.catalogue import check_spelling
from etb_plugin.cli import options as o
from etb_plugin.errors import ConfigError
from etb_plugin.experiment import read_mapping


def command(
    name: Annotated[
        str | None, typer.Argument(help="A study; without one, they are listed.", autocompletion=o.complete("study"))
    ] = None,
    file: Annotated[Path | None, typer.Argument(help="A YAML file of parameters, as in configs/studies.")] = None,
    full: Annotated[bool, typer.Option("--full", help="The paper's size, in place of a minute's.")] = False,
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="One parameter, such as runs=100 or n=[2,5]; repeatable.")
    ] = None,
    data_dir: o.DataDir = None,
    out: o.Out = None,
) -> None:
    """Measure a figure or table of a paper again, and show the paper's claim beside what was found.

    Writes results.json, figure.png and figure.pdf. The same command again resumes.

    Example: etb study coverage --set runs=100
    """
    if name is not None:
        check_spelling("study", name)
    from etb_plugin.report.live import CaseProgress
    from etb_plugin.report.table import claims_table
    from etb_plugin.studies import get_study, run_study, studies
    from etb_plugin.training.allocation import keep_freed_memory

    keep_freed_memory()
    if name is None:
        listing = Table(box=box.SIMPLE_HEAD, show_edge=False)
        for heading in ("study", "question", "source"):
            listing.add_column(heading, no_wrap=heading == "study")
        for study in studies().values():
            listing.add_row(study.name, study.question, study.source)
        o.stdout().print(listing)
        return
    study = get_study(name)
    changes = read_mapping(file) if file is not None else {}
    for text in set_ or ():
        key, equals, value = text.partition("=")
        if not equals:
            raise ConfigError(f"--set {text}: write key=value, such as runs=100")
        changes[key] = yaml.safe_load(value)
    if data_dir is not None:
        changes["data_dir"] = data_dir
    parameters = study.parameters(full, changes)
    folder = Path(out) if out is not None else _folder(name, parameters)
    with CaseProgress(o.stderr(), name) as progress:
        claims = run_study(study, parameters, folder, watch=progress)
    o.stdout().print(claims_table([astuple(claim) for claim in claims], f"{name}: {study.question}"))
    o.stdout().print(f"Written: {folder}/results.json, figure.png and figure.pdf", soft_wrap=True)


def _folder(name: str, parameters: dict[str, Any]) -> Path:
    content = json.dumps({k: v for k, v in parameters.items() if k != "data_dir"}, sort_keys=True)
    return Path("runs") / f"study-{name}-{hashlib.sha256(content.encode()).hexdigest()[:8]}"
