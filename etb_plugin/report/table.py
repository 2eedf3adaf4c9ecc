"""Tables on a terminal."""

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from etb_plugin.bench import AttackCost, BoundCost, EpochCost, StepCost
from etb_plugin.comparison import Overview, Planned, Workshop, planned
from etb_plugin.comparison.tightness import Tightness
from etb_plugin.evaluation.calibration import Calibration
from etb_plugin.experiment import Experiment, Read, Resolved, eps_text
from etb_plugin.report.live import duration
from etb_plugin.report.published import Beside
from etb_plugin.report.sheet import Figure, Kind, Sheet, percent
from etb_plugin.verification import MISCLASSIFIED, STAGES, Radii, Verified

CERTIFIED, EXPECTED = "green", "italic magenta"


def beside_table(lines: Sequence[Beside]) -> RenderableType:
    """Return published errors beside ours."""
    if not lines:
        return Text("No published figure is known for these methods, networks and radii.", "dim")
    table = _table()
    table.add_column("method, network, eps", no_wrap=True)
    table.add_column("source", style="dim")
    for name in ("error", "PGD\nerror", "verified\nerror"):
        table.add_column(f"{name}\npaper", justify="right")
        table.add_column(f"{name}\nhere", justify="right", style="bold")
    for line in lines:
        p = line.published
        pairs = ((p.clean, line.clean), (p.pgd, line.pgd), (p.verified, line.verified))
        figures = [text for a, b in pairs for text in ("" if a is None else percent(a), percent(b))]
        table.add_row(Text(f"{line.label}, {p.model}, {eps_text(p.eps)}"), f"{p.source}: {p.note}", *figures)
    return Group(table, Text("Percent of test images; ours verified by the best bound of the table.", "dim"))


_LONG = 3600.0
"""Seconds of training from which a cell is called dear."""
_STYLES = {Kind.CERTIFIED: CERTIFIED, Kind.EXPECTED: EXPECTED, Kind.COST: "dim"}


def comparison_table(sheet: Sheet) -> RenderableType:
    """Return a comparison. Certified columns are green; the expected one is set apart by style, by ~ and by the notes,
    which say that it is no certificate."""
    table = _table()
    table.add_column("method", no_wrap=True)
    for column in sheet.columns:
        style = _STYLES.get(column.kind, "")
        header = Text("\n".join(_lines(column.title)), "" if column.kind is Kind.COST else style)
        table.add_column(header, justify="right", style=style)
    for name, lines in sheet.groups:
        table.add_row(f"[dim]{name}[/]")
        for line in lines:
            table.add_row(Text(f" {line.name}"), *map(_figure, line.figures))
    return Group(Text(sheet.heading, "bold"), table, Text("\n".join(sheet.notes), "dim"))


def _figure(figure: Figure | None) -> Text:
    if figure is None:
        return Text("")
    spread = (f" ± {figure.spread_text}", "dim") if figure.spread_text else ""
    return Text.assemble((figure.text, "bold underline" if figure.leads else ""), spread)


def _lines(title: str) -> list[str]:
    """Return a title in short lines: words, and the parts of hyphenated ones."""
    title = title.replace("AutoAttack", "Auto-Attack")
    words = [part for word in title.split() for part in word.replace("-", "- ").replace(":", ": ").split()]
    lines = [words[0]]
    for word in words[1:]:
        if len(lines[-1]) + 1 + len(word) <= 8 and not lines[-1].endswith(("-", ":")):
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    return lines


def plan_table(shop: Workshop, heading: str) -> RenderableType:
    """Return every cell of an experiment: done, running or missing, and how long its training will take."""
    table = _table()
    for name in ("cell", "name", "state"):
        table.add_column(name, no_wrap=True)
    for name in ("left", "memory"):
        table.add_column(name, justify="right")
    plan = planned(shop)
    for item in plan:
        takes = duration(item.seconds) if item.seconds else ""
        style = {"done": "green", "running": "bold", "failed": "bold red"}.get(item.state, "")
        table.add_row(item.cell, Text(item.name), Text(item.state, style), takes, _memory(item.mib))
    left = [item for item in plan if item.state != "done"]
    known = [item.seconds for item in left if item.seconds is not None]
    counts = Counter(item.state for item in plan)
    said = ", ".join(f"{count:,} {state}" for state, count in counts.items())
    if known:
        said += f"; {duration(sum(known))} of training, by epochs that were measured or steps at the full radius"
    if len(known) < len(left):
        said += f"; nothing is known yet of {len(left) - len(known):,} cells"
    return Group(Text(heading, "bold"), table, Text(said, "dim"), *map(Text, _dear(left)))


def cost_table(shop: Workshop) -> RenderableType:
    """Return what is to be trained and what it will cost, cheapest first; nothing where all is done."""
    table = _table()
    table.add_column("to be trained", no_wrap=True)
    for name in ("cells", "takes each", "all", "memory"):
        table.add_column(name, justify="right")
    todo = [item for item in planned(shop) if item.state != "done"]
    trained = sum(item.seconds == 0 for item in todo)
    left = [item for item in todo if item.seconds]
    kinds: dict[tuple[str, str], list[Planned]] = {}
    for item in sorted(left, key=lambda item: item.seconds or 0.0):
        kinds.setdefault((item.label, item.model), []).append(item)
    for (label, model), items in kinds.items():
        seconds = [item.seconds or 0.0 for item in items]
        each = " to ".join(dict.fromkeys((duration(min(seconds)), duration(max(seconds)))))
        memory = _memory(max((item.mib for item in items if item.mib is not None), default=None))
        table.add_row(Text(f"{label}, {model}"), f"{len(items):,}", each, duration(sum(seconds)), memory)
    parts: list[RenderableType] = [table] if left else []
    if trained:
        parts.append(Text(f"{trained:,} {'cell is' if trained == 1 else 'cells are'} trained, and to be evaluated"))
    return Group(*parts, *map(Text, _dear(left)))


def _dear(items: Sequence[Planned]) -> Iterator[str]:
    """Yield a line for each method that takes more than an hour, with what would cost less."""
    longest: dict[str, float] = {}
    for item in items:
        longest[item.label] = max(longest.get(item.label, 0.0), item.seconds or 0.0)
    for label, seconds in longest.items():
        if seconds > _LONG:
            name = label.split(maxsplit=1)[0].partition(":")[0]
            other = "the method crown-ibp, " if name in ("crown", "dual", "dual-projected", "robustra") else ""
            yield f"{label} takes {duration(seconds)}: {other}a smaller --model, fewer --epochs or a GPU cost less"


def _memory(mib: float | None) -> str:
    return "" if mib is None else f"{mib:,.0f} MiB" if mib < 1024 else f"{mib / 1024:,.1f} GiB"


def steps_table(found: Sequence[StepCost], heading: str) -> RenderableType:
    """Return what training steps cost: time and memory, the ratio to a nominal step, and its floor."""
    table = _table()
    for name in ("network", "method"):
        table.add_column(name, no_wrap=True)
    captured = any(cost.eager_ms is not None for cost in found)
    names = ["classes", "ms", "least", "most", "nominal ms", "ratio", "floor", "ratio / floor", "memory"]
    for name in names[:4] + ["eager ms"] * captured + names[4:]:
        table.add_column(name, justify="right")
    for cost in found:
        eager = [] if cost.eager_ms is None else [cost.eager_ms]
        times = (cost.median_ms, cost.least_ms, cost.most_ms, *eager, cost.nominal_ms)
        shares = (cost.ratio, cost.floor, cost.ratio / cost.floor)
        figures = [*(f"{value:.3g}" for value in times), *(f"{value:.2f}" for value in shares), _memory(cost.mib)]
        table.add_row(cost.model, Text(cost.method), str(cost.classes), *figures)
    caption = (
        "A step of the last phase of each schedule (crown-ibp is IBP there). ratio: to a nominal step taken in turns\n"
        "with it; floor: the same in multiplications and additions."
    ) + "\nSteps are replayed as CUDA graphs; eager: launch by launch." * captured
    return Group(Text(heading, "bold"), table, Text(caption, "dim"))


def epochs_table(found: Sequence[EpochCost], heading: str) -> RenderableType:
    """Return what whole epochs cost: time and memory, and the ratio to a nominal epoch."""
    table = _table()
    for name in ("network", "method"):
        table.add_column(name, no_wrap=True)
    for name in ("seconds", "least", "most", "nominal s", "ratio", "memory"):
        table.add_column(name, justify="right")
    for cost in found:
        times = (cost.median_seconds, cost.least_seconds, cost.most_seconds, cost.nominal_seconds)
        figures = [*(f"{value:.3g}" for value in times), f"{cost.ratio:.2f}", _memory(cost.mib)]
        table.add_row(cost.model, Text(cost.method), *figures)
    caption = (
        "An epoch at the end of each schedule, what is measured and saved after it included. ratio: to a nominal one."
    )
    return Group(Text(heading, "bold"), table, Text(caption, "dim"))


def bounds_table(found: Sequence[BoundCost], heading: str) -> RenderableType:
    """Return what bounds cost and how tight they are: time, memory, the ratio to a forward pass, widths to IBP's."""
    table = _table()
    for name in ("network", "bound"):
        table.add_column(name, no_wrap=True)
    for name in ("classes", "sound", "ms", "least", "most", "forward passes", "memory", "mean width", "x IBP's"):
        table.add_column(name, justify="right")
    for cost in found:
        sound = Text("yes", CERTIFIED) if cost.sound else Text("no", EXPECTED)
        times = (f"{value:,.3g}" for value in (cost.median_ms, cost.least_ms, cost.most_ms))
        figures = (f"{cost.ratio:,.3g}", _memory(cost.mib), f"{cost.width:.4g}", f"{cost.ratio_to_ibp:.3g}")
        table.add_row(cost.model, cost.bound, str(cost.classes), sound, *times, *figures)
    caption = (
        "Networks as they are drawn, random images; widths of the margins of the predicted class. What is not sound\n"
        "proves nothing, however tight."
    )
    return Group(Text(heading, "bold"), table, Text(caption, "dim"))


def attacks_table(found: Sequence[AttackCost], heading: str) -> RenderableType:
    """Return what an attack costs that drops what is broken, and one that drops nothing."""
    table = _table()
    for name in ("eps", "stand", "s", "dropping nothing, s", "ratio"):
        table.add_column(name, justify="right")
    for cost in found:
        shown = (f"{cost.eps:.3f}", percent(cost.standing), f"{cost.seconds:.2f}", f"{cost.dropping_nothing:.2f}")
        table.add_row(*shown, f"{cost.ratio:.1f}")
    return Group(Text(heading, "bold"), table)


def status_table(overview: Overview, failed: Mapping[str, str], heading: str) -> RenderableType:
    """Return how far a run is: a line for each cell that runs, the failures, and the totals."""
    table = _table()
    table.add_column("running", no_wrap=True)
    table.add_column("done", justify="right")
    table.add_column("")
    table.add_column("left", justify="right")
    for word in overview.running.values():
        left = "" if word.seconds_left is None else duration(word.seconds_left)
        table.add_row(Text(word.name), f"{word.done / max(1, word.total):.0%}", Text(word.status), left)
    lines = [Text(f"{heading}: {overview.done:,} of {overview.total:,} cells done", "bold")]
    parts: list[RenderableType] = [*lines, *([table] if overview.running else [])]
    parts += [Text(f"failed: {name}: {why}", "red") for name, why in failed.items()]
    return Group(*parts)


def experiment_table(read: Read, resolved: Resolved) -> RenderableType:
    """Return every key of an experiment with its value, and where that comes from."""
    table = _table()
    table.add_column("key", no_wrap=True)
    table.add_column("value")
    table.add_column("from", style="dim")
    for keys, value in _leaves(resolved.plain):
        opened = _FILLED.get(keys[-1], "default") if _is_open(read.experiment, keys) else "default"
        text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
        table.add_row(".".join(keys), Text(text), read.places.get(keys, opened))
    return table


_FILLED = {
    **dict.fromkeys(("model", "eps", "epochs"), "the data set's default"),
    **{"data_dir": "ETB_DATA_DIR", "eps_test": "eps", "certify": "ibp, crown-ibp and the methods'"},
}
"""Where values come from that were left open."""


def _leaves(values: Mapping[str, Any], above: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, (*above, key))
        else:
            yield (*above, key), value


def _is_open(experiment: Experiment, keys: tuple[str, ...]) -> bool:
    value: Any = experiment
    for key in keys:
        value = getattr(value, key)
    return value is None


def verification_table(results: Sequence[Verified], heading: str) -> RenderableType:
    """Return the totals of each network and eps, and below them how many images each stage decided, and its time."""
    totals = _table()
    totals.add_column("method", no_wrap=True)
    for name in ("eps", "clean", "PGD"):
        totals.add_column(name, justify="right")
    totals.add_column("verified", justify="right", style=CERTIFIED, header_style=CERTIFIED)
    for name in ("gap", "unknown"):
        totals.add_column(name, justify="right")
    named = {stage for result in results for stage in (*result.decided, *result.seconds)}
    stages = [stage for stage in (MISCLASSIFIED, *STAGES) if stage in named] + sorted(named - {MISCLASSIFIED, *STAGES})
    work = _table()
    work.add_column("decided by\n(s an image)", no_wrap=True)
    for stage in stages:
        work.add_column(stage.replace("-", "-\n"), justify="right")
    names = _names(results)
    for r, name in zip(results, names, strict=True):
        gap = r.pgd_accuracy - r.verified_accuracy
        shares = (r.clean_accuracy, r.pgd_accuracy, r.verified_accuracy, gap, r.unknown)
        totals.add_row(name, eps_text(r.eps_test), *(percent(share) for share in shares))
        counts = [str(r.decided.get(stage, 0)) for stage in stages]
        times = [f" ({r.seconds[stage]:.2g})" if stage in r.seconds else "" for stage in stages]
        work.add_row(f"{name} {eps_text(r.eps_test)}", *(c + t for c, t in zip(counts, times, strict=True)))
    caption = (
        f"Percent of {len(results[0].findings):,} test images. verified: proved robust, a lower bound of true robust\n"
        "accuracy; PGD: stands under PGD, an upper bound; unknown: neither proved nor broken, counted as attackable."
    )
    return Group(Text(heading, "bold"), totals, Text(caption, "dim"), Text(), work)


def _names(results: Sequence[Verified]) -> list[str]:
    """Return each network's method, and in what it differs from others of that method."""
    found = []
    for r in results:
        others = [other for other in results if other.method == r.method]
        parts = [r.method] + [r.model] * (len({other.model for other in others}) > 1)
        if len({other.eps_train for other in others}) > 1 and r.eps_train is not None:
            parts.append(f"trained at {eps_text(r.eps_train)}")
        parts += [f"seed {r.seed}"] * (len({other.seed for other in others}) > 1)
        found.append(", ".join(parts))
    return found


def radius_table(results: Sequence[Radii], heading: str) -> RenderableType:
    """Return the quartiles of each network's certified and attacked radii."""
    table = _table()
    table.add_column("method", no_wrap=True)
    for kind in ("certified", "attacked"):
        style = CERTIFIED if kind == "certified" else ""
        for name in ("quarter", "median", "three quarters"):
            table.add_column(f"{kind}\n{name}", justify="right", style=style, header_style=style)
    quarters = torch.tensor([0.25, 0.5, 0.75])
    for r in results:
        found = [
            *r.certified.quantile(quarters).tolist(),
            *r.attacked.quantile(quarters, interpolation="lower").tolist(),
        ]
        table.add_row(r.method, *("-" if math.isinf(value) else f"{value:.4f}" for value in found))
    caption = (
        f"Quartiles over {len(results[0].radii):,} test images, pixel units; a misclassified one has 0 and 0.\n"
        "certified: proved robust up to there; attacked: a counterexample lies at that distance. -: none was found."
    )
    return Group(Text(heading, "bold"), table, Text(caption, "dim"))


def tightness_table(rows: Sequence[Tightness], heading: str) -> RenderableType:
    """Return one line per bound: the width of its margins, that width relative to IBP's, and its cost."""
    table = _table()
    table.add_column("bound", no_wrap=True)
    for name in ("sound", "mean width", "x IBP's", "all margins > 0", "ms"):
        table.add_column(name, justify="right")
    for row in rows:
        sound = Text("yes", CERTIFIED) if row.sound else Text("no", EXPECTED)
        figures = (
            f"{row.width:.4g}",
            f"{row.ratio_to_ibp:.3g}",
            f"{percent(row.positive)} %",
            f"{row.milliseconds:,.0f}",
        )
        table.add_row(row.name, sound, *figures)
    caption = "Widths of the margins f_y - f_j, all images and classes. A bound that is not sound proves nothing."
    return Group(Text(heading, "bold"), table, Text(caption, "dim"))


def calibration_table(found: Mapping[str, Calibration], alpha: float, heading: str) -> RenderableType:
    """Return one line per bound: the factor of its radius, and the coverage of fresh images without and with it."""
    table = _table()
    table.add_column("bound", no_wrap=True)
    for name in ("factor", "covered\nas it is", f"covered\nscaled (aim {percent(1 - alpha)})"):
        table.add_column(name, justify="right", style=EXPECTED, header_style=EXPECTED)
    for name, c in found.items():
        table.add_row(name, f"{c.factor:.4g}", f"{percent(c.covered_before)} %", f"{percent(c.covered_after)} %")
    one = next(iter(found.values()))
    caption = (
        f"Factor found on {one.images} test images, coverage counted on {one.fresh_images} others: the share whose "
        f"margins, as far as PGD and samples reach, lie inside in every class. Coverage of this attack is NOT a "
        f"certificate."
    )
    return Group(Text(heading, "bold"), table, Text(caption, "dim"))


def claims_table(claims: Sequence[tuple[str, str, str, str]], heading: str) -> RenderableType:
    """Return one line per claim (what is said, where, the published figure, the one measured)."""
    table = _table()
    for name in ("claim", "published", "measured here"):
        table.add_column(name, style="bold" if name == "measured here" else None)
    for text, source, published, measured in claims:
        table.add_row(Text.assemble(text, ("\n" + source, "dim")), published, measured)
    return Group(Text(heading, "bold"), table)


def _table() -> Table:
    return Table(box=box.SIMPLE_HEAD, show_edge=False, padding=0)
