"""The picture of a benchmark of bounds: what each costs against how tight it is."""

from collections.abc import Sequence
from pathlib import Path

from matplotlib.ticker import NullFormatter

from etb_plugin.bench import BoundCost
from etb_plugin.report.plots import COLOURS, MARKERS, figure, save_figure


def save_costs(found: Sequence[BoundCost], path: Path) -> None:
    """Write the plot to `path`.png and .pdf, a part for each network: width relative to IBP's against forward passes,
    on logarithmic axes. Bounds that are not sound have open markers."""
    models = list(dict.fromkeys(cost.model for cost in found))
    names = list(dict.fromkeys(cost.bound for cost in found))
    made, axes = figure(len(models))
    for axis, model in zip(axes, models, strict=True):
        for cost in (cost for cost in found if cost.model == model):
            number, name = names.index(cost.bound), cost.bound if cost.sound else f"{cost.bound} (no proof)"
            colour = COLOURS[number % 6]
            axis.plot(
                cost.ratio, cost.ratio_to_ibp, MARKERS[number % 6], color=colour, markersize=7,
                markerfacecolor=colour if cost.sound else "none",
            )  # fmt: skip
            axis.annotate(name, (cost.ratio, cost.ratio_to_ibp), (6, 6), textcoords="offset points", fontsize=8)
        axis.set_xscale("log")
        axis.set_yscale("log")
        axis.yaxis.set_major_formatter("{x:g}")
        axis.yaxis.set_minor_formatter(NullFormatter())
        axis.margins(0.25)
        axis.set_title(model, fontsize=10)
        axis.set_xlabel("time, in forward passes")
        axis.set_ylabel("width of margins, IBP's = 1")
    save_figure(made, path)
