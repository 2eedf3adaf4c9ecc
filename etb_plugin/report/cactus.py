"""The competition's picture: how many instances are decided within how much time each."""

from collections.abc import Sequence
from pathlib import Path

from matplotlib.ticker import MaxNLocator, NullFormatter

from etb_plugin.report.plots import figure, line, save_figure
from etb_plugin.verification.instances import Answered


def save_cactus(answers: Sequence[Answered], path: Path) -> None:
    """Write the plot to `path`.png and .pdf: instances decided, the quickest first, against seconds on a log axis."""
    made, (axis,) = figure()
    for number, word in enumerate(("unsat", "sat")):
        seconds = sorted(answer.seconds for answer in answers if answer.word == word)
        if seconds:
            line(axis, number, [float(i + 1) for i in range(len(seconds))], seconds, f"{word} ({len(seconds)})")
    axis.set_yscale("log")
    axis.set_ylim(1, max(10.0, 1.5 * max(answer.seconds for answer in answers)))
    axis.yaxis.set_major_formatter("{x:g}")
    axis.yaxis.set_minor_formatter(NullFormatter())
    axis.set_xlim(0, len(answers) + 0.5)
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.set_xlabel(f"instances decided, of {len(answers)}")
    axis.set_ylabel("seconds, start-up included")
    if axis.lines:
        axis.legend(frameon=False)
    save_figure(made, path)
