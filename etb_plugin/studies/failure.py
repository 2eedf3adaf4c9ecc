"""Study `failure`: where the expected interval stops being narrower than IBP's (appendix E)."""

import math
from collections.abc import Sequence
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import nn

from etb_plugin.bounds import Box, bound
from etb_plugin.report.plots import figure, line
from etb_plugin.studies.registry import Case, Claim, Parameters, Row, Study, register_study


def cases(parameters: Parameters) -> list[Case]:
    """The example with its weights 1000 and -999 replaced by s and -(s - 1)."""
    return [{"scale": scale, "n": n} for n in parameters["n"] for scale in parameters["scale"]]


@torch.no_grad()
def measure(case: Case, parameters: Parameters, folder: Path) -> Row:
    """Return both intervals of the example at this scale."""
    n, scale = case["n"], case["scale"]
    first, last = nn.Linear(n, n).double(), nn.Linear(n, 1).double()
    first.weight.copy_(scale * torch.eye(n))
    first.bias.fill_(1 - scale)
    last.weight.fill_(-10)
    last.bias.zero_()
    network = nn.Sequential(first, nn.ReLU(), last)
    box = Box(-torch.ones(1, n).double(), torch.ones(1, n).double())
    expected, ibp = bound("expected", network, box), bound("ibp", network, box)
    return {
        "expected": [expected.lower.item(), expected.upper.item()],
        "ibp": [ibp.lower.item(), ibp.upper.item()],
        "ratio": (expected.width / ibp.width).item(),
    }


def claims(rows: Sequence[Row], parameters: Parameters) -> list[Claim]:
    """Return the example's intervals, and from which scale on the expected one is wider."""
    found = [r for r in rows if r["scale"] == 1000]
    wider = min((r["scale"] for r in rows if r["ratio"] > 1 + 1e-9), default=math.inf)
    return [
        *(
            Claim(
                f"Appendix E at its scale of 1000, n = {r['n']}: expected; IBP",
                "Alsubaihi et al. 2019, appendix E",
                f"[{-10 * r['n']}, {19990 * r['n']}]; [{-10 * r['n']}, 0]",
                f"[{r['expected'][0]:g}, {r['expected'][1]:g}]; [{r['ibp'][0]:g}, {r['ibp'][1]:g}]",
            )
            for r in found
        ),
        Claim(
            "The smallest scale measured at which the expected interval is the wider one",
            "derived: the widths are 20 s n and 10 n min(1, 2 s)",
            "any s > 0.5",
            f"{wider:g}",
        ),
    ]


def draw(rows: Sequence[Row], parameters: Parameters) -> Figure:
    """Draw the ratio of the widths against the scale of the weights."""
    made, (axis,) = figure(1)
    for i, n in enumerate(parameters["n"]):
        chosen = [r for r in rows if r["n"] == n]
        line(axis, i, [r["scale"] for r in chosen], [r["ratio"] for r in chosen], f"n = {n}")
    axis.axhline(1, color="black", linewidth=0.8)
    axis.axvline(1000, color="black", linewidth=0.8, linestyle=":")
    axis.annotate("appendix E", (1000, 1.3), rotation=90, ha="right", fontsize=8)
    axis.set(
        xlabel="scale s of the first layer's weights", ylabel="width of expected / IBP", xscale="log", yscale="log"
    )
    axis.legend(frameon=False)
    return made


_SCALES = [0.1, 0.2, 0.5, 0.6, 1.0, 2.0, 5.0, 10.0, 30.0, 100.0, 300.0, 1000.0]

register_study(
    Study(
        "failure",
        "Where does the expected interval stop being narrower than IBP's?",
        "Alsubaihi et al. 2019, appendix E",
        quick={"scale": _SCALES, "n": [1, 10]},
        full={"scale": _SCALES, "n": [1, 10, 100, 1000]},
        cases=cases,
        measure=measure,
        claims=claims,
        draw=draw,
    )
)
