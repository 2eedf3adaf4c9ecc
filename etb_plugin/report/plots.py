"""What every plot shares: size, type, colours that differ for the colour-blind and in grey, and how it is saved."""

import io
from pathlib import Path

from matplotlib import rcParams
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from etb_plugin.files import write_file

COLOURS = ("#0b3c5d", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00")
"""Okabe and Ito's, the first darkened; used with markers and line styles, so that grey prints can be read."""
MARKERS = ("o", "s", "^", "D", "v", "P")
LINES = ("-", "--", "-.", ":", "-", "--")


def figure(columns: int = 1, rows: int = 1, *, width: float = 4.2, height: float = 3.2) -> tuple[Figure, list[Axes]]:
    """Return a figure with a grid of plots, row by row."""
    made = Figure(figsize=(width * columns, height * rows), layout="constrained")
    FigureCanvasAgg(made)
    axes = [made.add_subplot(rows, columns, i + 1) for i in range(rows * columns)]
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(True, color="#dddddd", linewidth=0.6)
        axis.set_axisbelow(True)
    return made, axes


def line(axis: Axes, number: int, x: list[float], y: list[float], label: str) -> None:
    """Draw the series `number` of a plot."""
    colour, marker, dash = (kind[number % 6] for kind in (COLOURS, MARKERS, LINES))
    axis.plot(x, y, label=label, color=colour, marker=marker, linestyle=dash, markersize=4.5, linewidth=1.4)


def shared_legend(made: Figure, axis: Axes) -> None:
    """Put the legend of `axis`, whose series all plots of the figure share, to the right of them all, on paper of its
    own: long names take nothing from the plots."""
    legend = made.legend(*axis.get_legend_handles_labels(), loc="outside right upper", frameon=False)
    width, height = made.get_size_inches()
    made.set_size_inches(width + legend.get_window_extent().width / made.dpi, height)


def save_figure(made: Figure, path: Path) -> None:
    """Write `path`.png (200 dots an inch) and `path`.pdf, each whole or not at all."""
    for ending, options in (("png", {"dpi": 200}), ("pdf", {"metadata": {"CreationDate": None}})):
        buffer = io.BytesIO()
        made.savefig(buffer, format=ending, **options)
        made.set_layout_engine(None)  # it is laid out: not once more for each of the other forms
        write_file(path.with_suffix(f".{ending}"), buffer.getvalue())


rcParams["pdf.fonttype"] = 42  # text stays text in the PDF
