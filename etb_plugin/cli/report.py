"""`etb report`: show runs that are done."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from etb_plugin.cli import options as o
from etb_plugin.errors import ConfigError
from etb_plugin.files import write_file


class Format(StrEnum):
    """How a run is shown."""

    CONSOLE = "console"
    MARKDOWN = "markdown"
    LATEX = "latex"
    CSV = "csv"
    JSON = "json"
    HTML = "html"


class Spread(StrEnum):
    """What stands behind ±."""

    DEVIATION = "deviation"
    INTERVAL = "interval"


def command(
    runs: Annotated[list[Path], typer.Argument(help="Run folders, or results.json files.", show_default=False)],
    format_: Annotated[Format, typer.Option("--format", help="How it is shown; html is the page.")] = Format.CONSOLE,
    against: Annotated[
        str | None, typer.Option(help="paper: put the papers' published figures beside ours.", show_default=False)
    ] = None,
    spread: Annotated[
        Spread, typer.Option(help="What stands behind ± over several seeds; interval is the mean's 95 %.")
    ] = Spread.DEVIATION,
    title: Annotated[str | None, typer.Option(help="The heading; the runs' names without it.")] = None,
    out: Annotated[Path | None, typer.Option(help="A file to write to, in place of the terminal.")] = None,
) -> None:
    """Show one run, or several as one: a table on the terminal or in a paper's source, or a page with plots.

    Example: etb report runs/mine runs/yours --format latex --out table.tex

    Example: etb report runs/mine --against paper
    """
    o.check_there(*runs)
    from etb_plugin.report.published import beside
    from etb_plugin.report.runs import by_dataset, merged, read_runs
    from etb_plugin.report.sheet import comparison_sheet
    from etb_plugin.report.table import beside_table, comparison_table
    from etb_plugin.report.text import FORMATS

    if against not in (None, "paper"):
        raise ConfigError(f"--against {against}: write --against paper")
    if against is not None and format_ not in (Format.CONSOLE, Format.HTML):
        raise ConfigError(f"--against paper with --format {format_}: published figures stand in console and html")
    if format_ is Format.HTML and out is None:
        raise ConfigError("--format html writes a file: name one by --out page.html")
    if format_ is Format.CONSOLE and out is not None:
        raise ConfigError("--out takes a format: --format markdown, say")
    read = read_runs(runs)
    heading = title or ", ".join(run.name for run in read)
    if format_ is Format.HTML:
        from etb_plugin.report.page import page, plots_of  # draws, which the other formats can do without

        text = page(read, plots_of(read), heading, spread.value, against=against is not None)
    else:
        grouped = by_dataset(merged(read))
        parts = []
        for dataset, own in grouped.items():
            sheet = comparison_sheet(own, f"{heading}: {dataset}" if len(grouped) > 1 else heading, spread.value)
            if format_ is not Format.CONSOLE:
                parts.append(FORMATS[format_.value](sheet))
                continue
            o.stdout().print(comparison_table(sheet))
            if against is not None:
                o.stdout().print(beside_table(list(beside(own))))
        text = "\n".join(parts)
    if out is not None:
        write_file(out, text)
        o.stdout().print(f"Written: {out}", soft_wrap=True)
    elif text:
        print(text, end="")
