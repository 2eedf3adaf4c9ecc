"""A comparison as a table that any renderer can show: what stands where, which figure leads, and what must be said."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from statistics import fmean, stdev
from typing import Literal

from etb_plugin.experiment import changed_text, eps_text
from etb_plugin.report.runs import row_names
from etb_plugin.results import Result

Spread = Literal["deviation", "interval"]


class Kind(StrEnum):
    """What a column holds: certificates and what is none are set apart wherever they are shown."""

    NAME = "name"
    ACCURACY = "accuracy"
    CERTIFIED = "certified"
    EXPECTED = "expected"
    COST = "cost"


@dataclass(frozen=True)
class Column:
    """A column: a key for machines, a title whose words may be broken into lines, and where its figures come from."""

    key: str
    title: str
    kind: Kind
    read: Callable[[Result], float | None]


@dataclass(frozen=True)
class Figure:
    """A mean over `count` seeds, and its spread where there are several. `leads`: no other row of the group comes near
    it. `text` is how the mean is written, `spread_text` the spread."""

    mean: float
    spread: float | None
    count: int
    text: str
    spread_text: str = ""
    leads: bool = False

    @property
    def full(self) -> str:
        """The mean, and behind ± the spread."""
        return f"{self.text} ± {self.spread_text}" if self.spread_text else self.text


@dataclass(frozen=True)
class Line:
    """A row: its name, and a figure for each further column, or None where there is none."""

    name: str
    figures: tuple[Figure | None, ...]


@dataclass(frozen=True)
class Sheet:
    """A table: a heading, columns behind the rows' names, groups of rows by test radius, and the sentences that belong
    below it."""

    heading: str
    columns: tuple[Column, ...]
    groups: tuple[tuple[str, tuple[Line, ...]], ...]
    notes: tuple[str, ...]


def comparison_sheet(results: Sequence[Result], heading: str, spread: Spread = "deviation") -> Sheet:
    """Return the results of one data set, grouped by test eps, seeds put together; costs are shown once per method.

    A figure leads where it exceeds every other of its group and column by more than both spreads together: with one
    seed nothing leads.
    """
    columns = _columns(results)
    groups = []
    for number, (eps, rows) in enumerate(_rows(results)):
        lines = [
            Line(name, tuple(None if c.kind is Kind.COST and number else _figure(c, seeds, spread) for c in columns))
            for name, seeds in rows
        ]
        groups.append((f"eps {eps_text(eps)}", _led(lines, columns)))
    return Sheet(heading, columns, tuple(groups), tuple(_notes(results, columns, spread)))


def _rows(results: Sequence[Result]) -> list[tuple[float, list[tuple[str, list[Result]]]]]:
    """Return for each test eps the rows' names, and their results, one for each seed."""
    names = row_names(results)
    found: dict[float, dict[str, list[Result]]] = {}
    for r in results:
        found.setdefault(r.eps_test, {}).setdefault(names[r.method, r.model, r.eps_train], []).append(r)
    return [(eps, list(found[eps].items())) for eps in sorted(found)]


def _columns(results: Sequence[Result]) -> tuple[Column, ...]:
    """Return the columns of which any result has a figure."""
    certifiers = dict.fromkeys(name for r in results for name in r.certified_accuracy)
    attacks = dict.fromkeys(name for r in results for name in r.attacked_accuracy)
    spans = [r.verified["images"] for r in results if r.verified is not None]
    which = f"{min(first for first, _ in spans)}:{max(stop for _, stop in spans)}" if spans else ""
    every = (
        Column("clean_accuracy", "clean", Kind.ACCURACY, lambda r: r.clean_accuracy),
        Column("pgd_accuracy", "PGD", Kind.ACCURACY, lambda r: r.pgd_accuracy),
        *(Column(f"attacked_{name}", _titled(name), Kind.ACCURACY, _attacked(name)) for name in attacks),
        Column("pgd_robustness", "PGD robust", Kind.ACCURACY, lambda r: r.pgd_robustness),
        *(Column(f"certified_{name}", _heading(name), Kind.CERTIFIED, _certified(name)) for name in certifiers),
        Column("verified_accuracy", f"verified {which}", Kind.CERTIFIED, _verified("verified_accuracy")),
        Column("verification_pgd", f"PGD {which}", Kind.ACCURACY, _verified("pgd_accuracy")),
        Column("expected_accuracy", "expected no proof", Kind.EXPECTED, lambda r: r.expected_accuracy),
        Column("seconds_per_epoch", "s per epoch", Kind.COST, lambda r: r.seconds_per_epoch),
        Column("relative_step", "step x nominal", Kind.COST, lambda r: r.relative_step),
        Column("peak_memory_mib", "peak MiB", Kind.COST, lambda r: r.peak_memory_mib),
    )
    return tuple(column for column in every if any(column.read(r) is not None for r in results))


def _heading(certifier: str) -> str:
    """Return what a certifier's column is called: another toolkit's says so."""
    return f"cert. {certifier.replace(':by=', ' by ')}"


def _titled(attack: str) -> str:
    return "AutoAttack" if attack == "autoattack" else attack


def _attacked(name: str) -> Callable[[Result], float | None]:
    return lambda r: r.attacked_accuracy.get(name)


def _certified(name: str) -> Callable[[Result], float | None]:
    return lambda r: r.certified_accuracy.get(name)


def _verified(key: str) -> Callable[[Result], float | None]:
    return lambda r: None if r.verified is None else r.verified[key]


def _figure(column: Column, seeds: Sequence[Result], spread: Spread) -> Figure | None:
    values = [value for value in map(column.read, seeds) if value is not None]
    if not values:
        return None
    mean, beside = fmean(values), None
    if len(values) > 1:
        beside = stdev(values)
        if spread == "interval":
            from scipy.special import stdtrit  # only here: it takes a while

            beside *= float(stdtrit(len(values) - 1, 0.975)) / math.sqrt(len(values))
    if column.kind is Kind.COST:
        return Figure(mean, beside, len(values), _cost(column.key, mean))
    sign = "~" if column.kind is Kind.EXPECTED else ""
    return Figure(mean, beside, len(values), sign + percent(mean), "" if beside is None else percent(beside))


def _cost(key: str, value: float) -> str:
    if key == "seconds_per_epoch":
        return f"{value:.3g}"
    return f"{value:.1f}" if value < 100 and key == "relative_step" else f"{value:,.0f}"


def percent(share: float) -> str:
    """Return a share of 1 in percent."""
    return f"{100 * share:.1f}"


def _led(lines: Sequence[Line], columns: Sequence[Column]) -> tuple[Line, ...]:
    """Mark what leads in each column of accuracies; the expected bound's is none that one could lead in."""
    rows = [list(line.figures) for line in lines]
    for place, column in enumerate(columns):
        figures = [(number, f) for number, row in enumerate(rows) if (f := row[place]) is not None]
        if column.kind not in (Kind.ACCURACY, Kind.CERTIFIED) or len(figures) < 2:
            continue
        number, best = max(figures, key=lambda pair: pair[1].mean)
        others = [figure for other, figure in figures if other != number]
        if all(_clear(best, other) for other in others):
            rows[number][place] = replace(best, leads=True)
    return tuple(Line(line.name, tuple(row)) for line, row in zip(lines, rows, strict=True))


def _clear(best: Figure, other: Figure) -> bool:
    return best.spread is not None and other.spread is not None and best.mean - other.mean > best.spread + other.spread


def _notes(results: Sequence[Result], columns: Sequence[Column], spread: Spread) -> Iterator[str]:
    images = sorted({result.images for result in results})
    count = f"{images[0]:,}" if len(images) == 1 else f"{images[0]:,} to {images[-1]:,}"
    half_width = 100 * 1.96 * math.sqrt(0.25 / images[0])
    seeds = {len(group) for _, rows in _rows(results) for _, group in rows}
    if seeds == {1}:
        about = "one seed, so nothing is marked as best"
    else:
        several = str(max(seeds)) if len(seeds) == 1 else f"{min(seeds)} to {max(seeds)}"
        kind = "standard deviation" if spread == "deviation" else "95 % interval of the mean"
        about = f"mean over {several} seeds ± {kind}; bold: ahead of all others by more than both spreads"
    yield (
        f"Percent of {count} test images (95 % interval at most ±{half_width:.1f}); {about}. PGD robust: the "
        f"prediction, right or wrong, stays."
    )
    exact = {r.rigorous for r in results} == {True}
    yield (
        "cert.: certified, proved by a sound bound for every point of the box, by etb_plugin's own where no toolkit is "
        f"named, {'in real arithmetic' if exact else 'up to rounding'}. expected is NOT a certificate: it says how "
        "often the expected bound's margins are positive."
    )
    if any(column.key == "attacked_autoattack" for column in columns):
        yield (
            "AutoAttack: as PGD, then APGD (cross-entropy, targeted ratio) and Square on what no bound certifies; it "
            "lacks FAB."
        )
    if any(column.key == "verified_accuracy" for column in columns):
        yield "verified: proved image by image by etb verify on the test images named; PGD beside it is its upper end."
    for label, changes in {r.method: r.changes for r in results if r.changes}.items():
        if label != changed_text(label.partition(" ")[0], changes):
            yield f"{label}: {changed_text('', changes).strip()}."
    if any(result.relative_step is not None for result in results):
        yield "Step: median, relative to a nominal step of the same network and batch timed just before."
