"""The page of a run while it runs: what is done, what goes on and how far, and the curves so far. It asks to be read
again every few seconds, without a server; the finished report takes its place."""

from collections.abc import Iterator
from html import escape
from types import TracebackType
from typing import Any, Self

from etb_plugin.comparison import Comparison, Planned, Word, planned
from etb_plugin.files import Paced, write_passing
from etb_plugin.report.curves import Curve, curves
from etb_plugin.report.figures import Style, styles
from etb_plugin.report.live import duration
from etb_plugin.report.page import document, tables
from etb_plugin.report.sheet import comparison_sheet
from etb_plugin.training import read_metrics

_REFRESH = 5
"""Seconds after which a browser reads the page again."""
_DASHES = {"-": "", "--": "6 3", "-.": "6 3 1 3", ":": "1.5 3"}
_CURVES = (
    ("loss", "loss", 1.0, None),
    ("accuracy", "training accuracy (%)", 100.0, 100.0),
    ("certified_accuracy", "certified by IBP (%), 100 training images", 100.0, 100.0),
    ("pgd_accuracy", "PGD of 10 steps (%), 100 training images", 100.0, 100.0),
)


class RunningPage:
    """Writes report.html of a comparison now and then while the context holds, and at its end as what is left."""

    def __init__(self, comparison: Comparison) -> None:
        self._comparison = comparison
        self._paced = Paced(lambda: self._write(runs=True))
        self.due = self._paced.due

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None and self._paced.begun:
            self._write(runs=False)

    def _write(self, *, runs: bool) -> None:
        write_passing(self._comparison.experiment.folder / "report.html", self._page(runs))

    def _page(self, runs: bool) -> str:
        c = self._comparison
        plan = planned(c.workshop)
        running = [item.word for item in plan if item.state == "running" and item.word is not None]
        done = sum(item.state == "done" for item in plan)
        said = f"{done:,} of {len(plan):,} cells done"
        if runs:
            left = _left(plan, running)
            said += f", {len(running):,} running" + (f"; about {duration(left)} left" if left else "")
        else:
            said += "; stopped: the same command goes on from here"
        parts = [f'<progress value="{done}" max="{max(1, len(plan))}" aria-label="cells done"></progress>']
        parts += _cells(plan)
        results = [row for task in c.finished() for row in c.workshop.results(task)]
        if results:
            parts += ["<h2>Results so far</h2>", *tables(comparison_sheet(results, "", c.experiment.report.spread))]
        parts += self._curves()
        return document(c.title, said, parts, refresh=_REFRESH if runs else None)

    def _curves(self) -> Iterator[str]:
        logs: list[tuple[str, list[dict[str, Any]]]] = []
        for entry in self._comparison.entries:
            for cell in entry.cells:
                if epochs := read_metrics(cell.folder):
                    logs.append((entry.label, epochs))
        if not logs:
            return
        style = styles([label for label, _ in logs])
        yield "<h2>Training</h2>"
        yield f"<p>{' '.join(_legend(label, style[label]) for label in dict.fromkeys(label for label, _ in logs))}</p>"
        yield '<div class="curves">'
        for key, title, factor, top in _CURVES:
            series = []
            for label, epochs in logs:
                colour, _, dash = style[label]
                points = [(float(e["epoch"]), factor * e[key]) for e in epochs if e.get(key) is not None]
                if points:
                    series.append(Curve(label, points, colour, _DASHES[dash]))
            if series:
                yield f"<figure>{curves(title, series, top)}<figcaption>{escape(title)}</figcaption></figure>"
        yield "</div>"


def _legend(label: str, style: Style) -> str:
    colour, _, dash = style
    line = f'<polyline points="0,5 22,5" stroke="{colour}" stroke-dasharray="{_DASHES[dash]}"/>'
    return f'<span class="legend"><svg viewBox="0 0 22 10" aria-hidden="true">{line}</svg> {escape(label)}</span>'


def _left(plan: list[Planned], running: list[Word]) -> float:
    """Return the seconds of training that are left, shared among as many cells as run now."""
    of_running = sum(word.seconds_left or 0.0 for word in running)
    waiting = [item.seconds for item in plan if item.state in ("missing", "begun") and item.seconds is not None]
    return (of_running + sum(waiting)) / max(1, len(running))


def _cells(plan: list[Planned]) -> Iterator[str]:
    yield '<div class="scroll"><table class="sortable cells"><thead><tr>'
    yield "".join(f"<th><button>{name}</button></th>" for name in ("cell", "state", "done", "now"))
    yield "</tr></thead><tbody>"
    for item in plan:
        word, share, said = item.word, float(item.state == "done"), ""
        if word is not None and word.failed is not None:
            said = word.failed
        elif word is not None:
            share, said = word.done / max(1, word.total), word.status
            if word.seconds_left is not None:
                said += f", {duration(word.seconds_left)} left"
        state = "waiting" if item.state == "missing" else item.state
        yield (
            f"<tr><td>{escape(item.name)}</td><td>{escape(state)}</td>"
            f'<td data-value="{share}"><progress value="{share:.3f}" max="1" aria-label="done"></progress></td>'
            f"<td>{escape(said)}</td></tr>"
        )
    yield "</tbody></table></div>"
