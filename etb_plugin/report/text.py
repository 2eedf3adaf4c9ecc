"""A sheet as Markdown, LaTeX, CSV and JSON."""

import csv
import io
import json
import re
from collections.abc import Callable, Iterable

from etb_plugin.report.sheet import Figure, Sheet


def markdown(sheet: Sheet) -> str:
    """Return a heading, one table for all radii, and the notes."""
    header = ["eps", "method", *(column.title for column in sheet.columns)]
    rows = [
        [group.removeprefix("eps "), row.name, *(_bold(figure, "**{}**") for figure in row.figures)]
        for group, lines in sheet.groups
        for row in lines
    ]
    table = markdown_table(header, rows, figures=len(sheet.columns))
    return "\n".join([f"**{sheet.heading}**", "", table, *(f"{note}\n" for note in sheet.notes)])


def latex(sheet: Sheet) -> str:
    """Return a booktabs table with its caption; it needs booktabs only."""
    columns = "l" + "r" * len(sheet.columns)
    lines = [r"\begin{table}", r"\centering", rf"\begin{{tabular}}{{{columns}}}", r"\toprule"]
    lines.append(" & ".join(["method", *(_escaped(column.title) for column in sheet.columns)]) + r" \\")
    for group, rows in sheet.groups:
        lines += [r"\midrule", rf"\multicolumn{{{len(sheet.columns) + 1}}}{{l}}{{{_epsilon(group)}}} \\"]
        for row in rows:
            figures = [_bold(figure, r"\textbf{{{}}}", latex=True) for figure in row.figures]
            lines.append(" & ".join([_escaped(row.name), *figures]) + r" \\")
    lines += [r"\bottomrule", r"\end{tabular}"]
    caption = " ".join((sheet.heading + ".", *sheet.notes))
    return "\n".join([*lines, rf"\caption{{{_escaped(caption)}}}", r"\end{table}", ""])


def csv_text(sheet: Sheet) -> str:
    """Return one line for each row: eps, method, and mean, spread and number of seeds of each column."""
    buffer = io.StringIO()
    names = [name for c in sheet.columns for name in (c.key, f"{c.key}_spread")]
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["eps_test", "method", "seeds", *names])
    for group, rows in sheet.groups:
        for row in rows:
            seeds = max(figure.count for figure in row.figures if figure is not None)
            values = [v for f in row.figures for v in (("", "") if f is None else (f.mean, _or_empty(f.spread)))]
            writer.writerow([group.removeprefix("eps "), row.name, seeds, *values])
    return buffer.getvalue()


def json_text(sheet: Sheet) -> str:
    """Return the table as plain data, unrounded."""
    rows = [
        {
            "eps_test": group.removeprefix("eps "),
            "method": row.name,
            "figures": {
                column.key: {"mean": f.mean, "spread": f.spread, "seeds": f.count, "leads": f.leads}
                for column, f in zip(sheet.columns, row.figures, strict=True)
                if f is not None
            },
        }
        for group, lines in sheet.groups
        for row in lines
    ]
    kinds = {column.key: column.kind for column in sheet.columns}
    return json.dumps({"heading": sheet.heading, "kinds": kinds, "rows": rows, "notes": sheet.notes}, indent=2) + "\n"


def markdown_table(header: list[str], rows: Iterable[list[str]], figures: int = 0) -> str:
    """Return a table in Markdown; the last columns, `figures` of them, stand to the right."""
    rule = ["---"] * (len(header) - figures) + ["---:"] * figures
    return "".join(_row(row) + "\n" for row in (header, rule, *rows))


def _row(cells: list[str]) -> str:
    return "| " + " | ".join(cell.replace("|", r"\|") for cell in cells) + " |"


def _bold(figure: Figure | None, pattern: str, *, latex: bool = False) -> str:
    if figure is None:
        return ""
    text = figure.full
    if latex:
        text = text.replace("~", r"$\sim$").replace("±", r"$\pm$")
    return pattern.format(text) if figure.leads else text


def _or_empty(value: float | None) -> float | str:
    return "" if value is None else value


def _epsilon(group: str) -> str:
    return r"$\varepsilon = " + group.removeprefix("eps ") + "$"


_SPECIAL = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "±": r"$\pm$"}


def _escaped(text: str) -> str:
    return re.sub(r"[\\~^±&%$#_{}]", lambda found: _SPECIAL.get(found[0], rf"\{found[0]}"), text)


FORMATS: dict[str, Callable[[Sheet], str]] = {"markdown": markdown, "latex": latex, "csv": csv_text, "json": json_text}
"""What a sheet can be written as."""
