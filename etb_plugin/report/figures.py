"""The plots of a comparison. A method has the same colour and marker in all of them."""

from collections import Counter
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from matplotlib.figure import Figure

from etb_plugin.experiment import eps_text
from etb_plugin.objectives import methods
from etb_plugin.report.plots import COLOURS, LINES, MARKERS, figure, shared_legend
from etb_plugin.results import Result

Log = tuple[Mapping[str, Any], Sequence[Mapping[str, float]]]
"""What is known of a trained cell, and its metrics, epoch by epoch."""


def draw(results: Sequence[Result], logs: Sequence[Log]) -> dict[str, Figure]:
    """Return the plots for which there is something to see, by the names of their files. Results of one data set."""
    style = styles([*(r.method for r in results), *(about["method"] for about, _ in logs)])
    made = {"accuracy-robustness": _scatter(results, style, "PGD accuracy (%)", lambda r: r.pgd_accuracy)}
    if any(r.certified_accuracy for r in results):
        made["pareto"] = _scatter(results, style, "certified accuracy (%), best sound bound", _certified, front=True)
    if len({r.eps_test for r in results}) > 1:
        made["error-eps"] = _error_curves(results, style)
    if any(len(epochs) > 1 for _, epochs in logs):
        made["training"] = _curves(logs, style, (("loss", "loss", 1), ("accuracy", "training accuracy (%)", 100)))
    robust = ("pgd_accuracy", "PGD, 10 steps (%)", 100), ("certified_accuracy", "certified by IBP (%)", 100)
    if any(epoch.get("certified_accuracy") is not None for _, epochs in logs if len(epochs) > 1 for epoch in epochs):
        made["robust"] = _curves(logs, style, robust)
    if any(epoch.get("width") for _, epochs in logs for epoch in epochs):
        made["width"] = _curves(logs, style, (("width", "mean width of IBP's margins", 1),), log=True)
    return made


Style = tuple[str, str, str]
"""Colour, marker and line."""


def styles(labels: Sequence[str]) -> dict[str, Style]:
    """Return a style for each label. A method, known by a label's first word, has the same colour everywhere, unless
    one that comes before it has that and another is left; names of one's own come last. Further labels of a method
    differ in marker and line."""
    known = [*_FIRST, *(name for name in sorted(methods()) if name not in _FIRST)]
    bases = {label: first if (first := label.replace(",", " ").split()[0]) in known else label for label in labels}
    known += [base for base in dict.fromkeys(bases.values()) if base not in known]
    order = sorted({known.index(base) for base in bases.values()})
    owners = {number % 6: number for number in reversed(order)}
    left = [colour for colour in range(6) if colour not in owners]
    numbers = {known[number]: number if owners[number % 6] == number or not left else left.pop(0) for number in order}
    found, seen = {}, Counter[str]()
    for label in dict.fromkeys(labels):
        number, place = numbers[bases[label]], numbers[bases[label]] + seen[bases[label]]
        found[label] = (COLOURS[number % 6], MARKERS[(place + number // 6) % 6], LINES[(place + number // 6) % 4])
        seen[bases[label]] += 1
    return found


_FIRST = ("nominal", "pgd", "ibp", "expected", "crown-ibp", "dual")
"""The methods that most comparisons have: told apart by colour alone."""


def _certified(result: Result) -> float:
    return max(result.certified_accuracy.values(), default=0.0)


def _label(result: Result, several: bool) -> str:
    trained = f", trained at {eps_text(result.eps_train)}" if several and result.eps_train is not None else ""
    return result.method + trained


def _scatter(
    results: Sequence[Result], style: Mapping[str, Style], title: str, read: Any, *, front: bool = False
) -> Figure:
    """Draw clean accuracy against robustness, one plot for each test radius: small marks for seeds, large ones for
    means; with `front` the line through what nothing exceeds in both."""
    radii = sorted({r.eps_test for r in results})
    made, axes = figure(len(radii), width=3.9, height=3.4)
    for axis, eps in zip(axes, radii, strict=True):
        groups: dict[tuple[str, str, float | None], list[Result]] = {}
        for r in results:
            if r.eps_test == eps:
                groups.setdefault((r.method, r.model, r.eps_train), []).append(r)
        means = []
        for (method, _, _), rows in groups.items():
            colour, marker, _ = style[method]
            x, y = [100 * r.clean_accuracy for r in rows], [100 * read(r) for r in rows]
            if len(rows) > 1:
                axis.scatter(x, y, s=12, color=colour, marker=marker, alpha=0.35, linewidths=0)
            _, labels = axis.get_legend_handles_labels()
            axis.scatter(
                fmean(x), fmean(y), s=52, color=colour, marker=marker, label=None if method in labels else method,
                edgecolors="white", linewidths=0.6, zorder=3,
            )  # fmt: skip
            means.append((fmean(x), fmean(y)))
        if front:
            best = [p for p in means if not any(q[0] >= p[0] and q[1] >= p[1] and q != p for q in means)]
            axis.plot(*zip(*sorted(best), strict=True), color="#888888", linewidth=0.9, linestyle=":", zorder=1)
        axis.set(xlabel="clean accuracy (%)", ylabel=title, title=f"ε = {eps_text(eps)}")
        axis.title.set_fontsize(10)
        axis.margins(0.08)
    shared_legend(made, axes[0])
    return made


def _error_curves(results: Sequence[Result], style: Mapping[str, Style]) -> Figure:
    """Draw error under PGD and verified error against the test radius."""
    made, axes = figure(2, width=3.9, height=3.4)
    several = len({(r.method, r.eps_train) for r in results}) > len({r.method for r in results})
    kinds = ((axes[0], "error under PGD (%)", lambda r: r.pgd_accuracy), (axes[1], "verified error (%)", _certified))
    for axis, title, read in kinds:
        curves: dict[tuple[str, str, float | None], dict[float, list[float]]] = {}
        names: dict[tuple[str, str, float | None], str] = {}
        for r in results:
            key = (r.method, r.model, r.eps_train)
            curves.setdefault(key, {}).setdefault(r.eps_test, []).append(100 * (1 - read(r)))
            names[key] = _label(r, several)
        order: dict[str, int] = {}
        for key, curve in curves.items():
            colour, marker, _ = style[key[0]]
            order[key[0]] = number = order.get(key[0], -1) + 1  # the radii of one method differ by their lines
            x = sorted(curve)
            y = [fmean(curve[eps]) for eps in x]
            axis.plot(
                x, y, label=names[key], color=colour, marker=marker, linestyle=LINES[number % 4], markersize=4.5,
                linewidth=1.3, alpha=1 - 0.2 * (number % 4),
            )  # fmt: skip
        axis.set(xlabel="test ε (pixel units)", ylabel=title, ylim=(0, 101))
    shared_legend(made, axes[0])
    return made


def _curves(
    logs: Sequence[Log], style: Mapping[str, Style], what: Sequence[tuple[str, str, float]], *, log: bool = False
) -> Figure:
    """Draw what metrics say epoch by epoch, one plot for each; a thin line for each cell."""
    made, axes = figure(len(what), width=4.2, height=3.2)
    for axis, (key, title, factor) in zip(axes, what, strict=True):
        named: set[str] = set()
        for about, epochs in logs:
            known = [(e["epoch"], factor * e[key]) for e in epochs if e.get(key) is not None]
            points = [point for point in known if point[1] > 0 or not log]
            if points:
                colour, _, dash = style[about["method"]]
                label = None if about["method"] in named else about["method"]
                named.add(about["method"])
                x, y = zip(*points, strict=True)
                axis.plot(x, y, color=colour, linestyle=dash, linewidth=1.0, alpha=0.75, label=label)
        axis.set(xlabel="epoch", ylabel=title, yscale="log" if log else "linear")
    shared_legend(made, axes[0])
    return made
