"""The page: one self-contained HTML file with sortable tables, plots, attacked images, and how to do it again."""

import base64
import hashlib
import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from html import escape
from importlib.resources import files
from pathlib import Path
from string import Template
from types import MappingProxyType
from typing import Any

import numpy as np
import yaml
from matplotlib.figure import Figure
from matplotlib.image import imsave

from etb_plugin import __version__
from etb_plugin.experiment import eps_text
from etb_plugin.files import write_file
from etb_plugin.report.figures import draw
from etb_plugin.report.plots import save_figure
from etb_plugin.report.published import Beside, beside
from etb_plugin.report.runs import Example, Run, by_dataset, examples, logs, merged, read_run
from etb_plugin.report.sheet import Figure as Value
from etb_plugin.report.sheet import Sheet, Spread, comparison_sheet, percent
from etb_plugin.results import Result

_PLOTS = {
    "accuracy-robustness": "Accuracy against robustness under PGD. Small marks are seeds, large ones their means.",
    "pareto": "Clean against certified accuracy, by the best sound bound. The dotted line joins what nothing beats.",
    "error-eps": "Error under PGD (a lower end of the true error) and verified error (an upper end) against the test "
    "radius.",
    "training": "Training, one line for each cell. Losses of different methods are different losses.",
    "robust": "On 100 training images at the trained radius: what PGD of 10 steps leaves, what IBP certifies.",
    "width": "How wide IBP's margins are on training images, epoch by epoch.",
}


_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
_NOTEBOOK = (
    ".etb button {all: unset} .etb .certified {color: #00805a} .etb .expected {color: #a8528f; font-style: italic} "
    ".etb .leads {font-weight: 700} .etb .cost, .etb .spread, .etb p {opacity: .75} .etb img {background: #fff}"
)
"""Colours that can be read on white and on black."""

Plots = dict[str, dict[str, Figure]]
"""Figures by data set and name."""


def plots_of(runs: Sequence[Run]) -> Plots:
    """Draw what there is to see of one or several runs."""
    log = [entry for run in runs for entry in logs(run)]
    return {
        dataset: draw(own, [entry for entry in log if entry[0]["dataset"] == dataset])
        for dataset, own in by_dataset(merged(runs)).items()
    }


def page(runs: Sequence[Run], plots: Plots, title: str, spread: Spread, *, against: bool = False) -> str:
    """Return the page of one or several runs, with their plots."""
    parts: list[str] = []
    results = merged(runs)
    grouped = by_dataset(results)
    shown = [_by_name(examples(run)) for run in runs]
    links = {name: f"images-{n}-{m}" for n, some in enumerate(shown) for m, name in enumerate(some)}
    for dataset, own in grouped.items():
        parts.append(f"<h2>{escape(dataset if len(grouped) > 1 else 'Results')}</h2>")
        parts += tables(comparison_sheet(own, "", spread), links)
        if against:
            parts += _against(list(beside(own)))
        parts += _plots(plots[dataset])
    for number, some in enumerate(shown):
        parts += _attacked(some, f"images-{number}")
    for run in runs:
        parts += _again(run, several=len(runs) > 1)
    return document(title, _subtitle(results), parts)


def document(title: str, subtitle: str, parts: Sequence[str], refresh: int | None = None) -> str:
    """Return a page of `parts`, HTML; with `refresh` a browser reads it again after so many seconds. Its policy lets it
    show pictures that it holds, and run its own script, known by its hash, alone."""
    text = files("etb_plugin.report").joinpath("page.html").read_text()
    script = text.partition("<script>")[2].partition("</script>")[0]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    page, found, rest = text.partition("<script>")
    words = {
        "title": escape(title),
        "subtitle": escape(subtitle),
        "body": "\n".join(parts),
        "policy": f"{_POLICY}; script-src 'sha256-{digest}'",
        "refresh": "" if refresh is None else f'<meta http-equiv="refresh" content="{refresh}">\n',
    }
    return Template(page).substitute(words) + found + rest


def fragment(runs: Sequence[Run], spread: Spread) -> str:
    """Return the tables and plots of runs as HTML to stand in a notebook."""
    parts = [f"<style>{_NOTEBOOK}</style>"]
    plots = plots_of(runs)
    for dataset, own in by_dataset(merged(runs)).items():
        parts += tables(comparison_sheet(own, "", spread))
        parts += _plots(plots[dataset])
    return f'<div class="etb">{"".join(parts)}</div>'


def write_report(folder: Path, title: str, spread: Spread) -> None:
    """Write a run's report.html, and its plots as plots/*.png and *.pdf; nothing where they are there already, of the
    same results: drawing takes longer than all else that a finished run does."""
    file = folder / "report.html"
    content = (folder / "results.json").read_bytes() + repr((title, spread, __version__)).encode()
    mark = f"<!-- {hashlib.sha256(content).hexdigest()} -->\n"
    if file.exists() and file.read_text().endswith(mark):
        return
    run = read_run(folder)
    plots = plots_of([run])
    for drawn in plots.values():  # a run has one data set
        for name, made in drawn.items():
            save_figure(made, folder / "plots" / name)
    write_file(file, page([run], plots, title, spread) + mark)


def _subtitle(results: Sequence[Result]) -> str:
    models = ", ".join(dict.fromkeys(f"{r.model} ({r.parameters:,} parameters)" for r in results))
    return f"{', '.join(dict.fromkeys(r.dataset for r in results))}; {models}"


def tables(sheet: Sheet, links: Mapping[str, str] = MappingProxyType({})) -> Iterator[str]:
    """Yield a sheet as sortable tables, one for each test radius; `links` leads rows' names to places of the page."""
    for group, lines in sheet.groups:
        shown = [n for n in range(len(sheet.columns)) if any(line.figures[n] is not None for line in lines)]
        yield f"<h3>test {escape(group.replace('eps', 'ε ='))}</h3>"
        yield '<div class="scroll"><table class="sortable"><thead><tr><th><button>method</button></th>'
        for n in shown:
            yield f'<th class="{sheet.columns[n].kind}"><button>{escape(sheet.columns[n].title)}</button></th>'
        yield "</tr></thead><tbody>"
        for line in lines:
            cells = "".join(_cell(line.figures[n], sheet.columns[n].kind) for n in shown)
            name = escape(line.name)
            named = f'<a href="#{links[line.name]}">{name}</a>' if line.name in links else name
            yield f"<tr><td>{named}</td>{cells}</tr>"
        yield "</tbody></table></div>"
    yield from (f"<p>{escape(note)}</p>" for note in sheet.notes)


def _cell(value: Value | None, kind: str) -> str:
    if value is None:
        return '<td data-value=""></td>'
    spread = f' <span class="spread">± {value.spread_text}</span>' if value.spread_text else ""
    leads = " leads" if value.leads else ""
    return f'<td class="{kind}{leads}" data-value="{value.mean!r}">{escape(value.text)}{spread}</td>'


def _against(lines: Sequence[Beside]) -> Iterator[str]:
    yield "<h3>Beside published figures</h3>"
    if not lines:
        yield "<p>No published figure is known for these methods, networks and radii.</p>"
        return
    yield '<div class="scroll"><table><thead><tr><th>method, network, ε</th><th>source</th>'
    for name in ("error", "PGD error", "verified error"):
        yield f"<th>{name}<br>published</th><th>{name}<br>here</th>"
    yield "</tr></thead><tbody>"
    for line in lines:
        p = line.published
        pairs = ((p.clean, line.clean), (p.pgd, line.pgd), (p.verified, line.verified))
        cells = "".join(f"<td>{'' if a is None else percent(a)}</td><td>{percent(b)}</td>" for a, b in pairs)
        name = f"{line.label}, {p.model}, {eps_text(p.eps)}"
        yield f"<tr><td>{escape(name)}</td><td>{escape(p.source)}: {escape(p.note)}</td>{cells}</tr>"
    yield "</tbody></table></div>"
    yield "<p>Percent of test images; ours verified by the best bound of the table. Shorter training errs more.</p>"


def _plots(figures: dict[str, Figure]) -> Iterator[str]:
    for name, made in figures.items():
        buffer = io.BytesIO()
        made.savefig(buffer, format="svg", metadata={"Date": None})
        source = base64.b64encode(buffer.getvalue()).decode()
        caption = escape(_PLOTS[name])
        yield f'<figure><img class="plot" alt="{caption}" src="data:image/svg+xml;base64,{source}">'
        yield f"<figcaption>{caption}</figcaption></figure>"


def _by_name(found: Iterable[Example]) -> dict[str, list[Example]]:
    """Return the examples of each row, one for each seed."""
    rows: dict[str, list[Example]] = {}
    for example in found:
        rows.setdefault(example.name, []).append(example)
    return rows


def _attacked(found: Mapping[str, Sequence[Example]], place: str) -> Iterator[str]:
    """Yield the first test images, what PGD makes of them for the first seed of each row, and behind the row's name
    what was certified, attacked and how, seed by seed."""
    if not found:
        return
    first = next(iter(found.values()))[0]
    yield f"<h2>The first test images of {escape(first.dataset)}, attacked</h2>"
    yield (
        f"<p>PGD at ε = {eps_text(first.eps)}, the first seed of each. Below each image is what the network says; "
        f'<span class="broken">coloured</span>: PGD changed it. A method\'s name leads to its margins.</p>'
    )
    yield '<div class="scroll"><table class="examples"><tbody><tr><td>image<br>label</td>'
    for image, label in zip(first.images, first.labels, strict=True):
        yield f"<td>{_picture(image)}{label}</td>"
    yield "</tr>"
    for number, (name, (example, *_)) in enumerate(found.items()):
        yield f'<tr><td><a href="#{place}-{number}">{escape(name)}</a></td>'
        for image, before, after in zip(example.points, example.before, example.after, strict=True):
            yield f"<td>{_picture(image)}{_said(before, after)}</td>"
        yield "</tr>"
    yield "</tbody></table></div>"
    for number, (name, seeds) in enumerate(found.items()):
        yield f'<details id="{place}-{number}"><summary>{escape(name)}: its images, one by one</summary>'
        for example in seeds:
            if len(seeds) > 1:
                yield f"<h3>seed {example.seed}</h3>"
            yield from _one_by_one(example)
        if seeds[0].margins:
            yield (
                "<p>Margin: a lower end, over the whole box, of how far the label's logit is ahead of every other's. "
                '<span class="certified">Above 0</span> the image is certified.</p>'
            )
        yield "</details>"


def _one_by_one(example: Example) -> Iterator[str]:
    yield '<div class="scroll"><table class="examples"><tbody>'
    scale = 1 / (2 * example.eps) if example.eps else 1.0
    differences = 0.5 + scale * (example.points - example.images)
    rows = (
        ("image<br>label", map(_captioned, example.images, example.labels)),
        ("under PGD<br>said", map(_captioned, example.points, map(_said, example.before, example.after))),
        (f"difference<br>x {scale:.3g}", map(_picture, differences)),
        *((f"margin by<br>{escape(bound)}", map(_margin, row)) for bound, row in example.margins.items()),
    )
    for name, cells in rows:
        yield f"<tr><td>{name}</td>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>"
    yield "</tbody></table></div>"


def _captioned(image: np.ndarray, caption: object) -> str:
    return f"{_picture(image)}{caption}"


def _said(before: int, after: int) -> str:
    return f'<span class="broken">{before} → {after}</span>' if before != after else f"{after}"


def _margin(value: float) -> str:
    return f'<span class="certified">{value:+.3g}</span>' if value > 0 else f"{value:+.3g}"


def _picture(image: np.ndarray) -> str:
    shown = np.moveaxis(np.clip(image, 0, 1), 0, 2)
    buffer = io.BytesIO()
    imsave(buffer, np.repeat(shown, 3, 2) if shown.shape[2] == 1 else shown, format="png")
    return f'<img alt="" src="data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}">'


def _again(run: Run, *, several: bool) -> Iterator[str]:
    """Yield how to get these figures again: the experiment, the command, and where it ran."""
    name = f" {run.name}" if several else ""
    shown = {key: value for key, value in run.experiment.items() if key not in ("out", "data_dir")}
    if not several:
        yield "<h2>The same again</h2>"
    yield f"<details{'' if several else ' open'}><summary>Experiment{escape(name)}</summary>"
    yield "<p>Save this as experiment.yaml, then: <code>etb compare experiment.yaml</code></p>"
    yield f"<pre>{escape(_yaml(shown))}</pre></details>"
    yield f"<details><summary>Environment{escape(name)}</summary><pre>{escape(_yaml(run.environment))}</pre></details>"


def _yaml(value: Any) -> str:
    return yaml.safe_dump(value, sort_keys=False, allow_unicode=True, width=100)
