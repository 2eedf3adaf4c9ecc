"""Study `tightness`: how much narrower than IBP's the expected interval is on two layers (figure 2)."""

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from statistics import fmean

import torch
from matplotlib.figure import Figure

from etb_plugin.bounds import bound
from etb_plugin.report.plots import figure, line, shared_legend
from etb_plugin.studies.random_networks import gaussian_box, gaussian_network
from etb_plugin.studies.registry import Case, Claim, Parameters, Row, Study, register_study


def cases(parameters: Parameters) -> list[Case]:
    """Vary k at the fixed n (figures 2a and 2b), and n at the fixed k (figures 2c and 2d)."""
    return [
        {"vary": vary, "n": n, "k": k, "eps": eps}
        for eps in parameters["eps"]
        for vary, ns, ks in (
            ("k", [parameters["fixed_n"]], parameters["k"]),
            ("n", parameters["n"], [parameters["fixed_k"]]),
        )
        for n in ns
        for k in ks
    ]


@torch.no_grad()
def measure(case: Case, parameters: Parameters, folder: Path) -> Row:
    """Return the mean over networks of the widths' ratio and difference."""
    generator = torch.Generator().manual_seed(parameters["seed"])
    ratios, differences = [], []
    for _ in range(parameters["runs"]):
        network = gaussian_network([case["n"], case["k"], 1], generator)
        box = gaussian_box((case["n"],), case["eps"], generator)
        expected, ibp = (bound(name, network, box).width.item() for name in ("expected", "ibp"))
        ratios.append(ibp / expected)
        differences.append(ibp - expected)
    return {"ratio": fmean(ratios), "difference": fmean(differences)}


def claims(rows: Sequence[Row], parameters: Parameters) -> list[Claim]:
    """Return whether the difference grows along every curve."""
    found = []
    for vary, figures in (("k", "2a and 2b"), ("n", "2c and 2d")):
        curves = [[r for r in rows if r["vary"] == vary and r["eps"] == eps] for eps in parameters["eps"]]
        growing = sum(all(a["difference"] < b["difference"] for a, b in pairwise(curve)) for curve in curves)
        ends = ", ".join(f"eps {c[0]['eps']:g}: {c[0]['ratio']:.3g} to {c[-1]['ratio']:.3g}" for c in curves)
        found.append(
            Claim(
                f"Narrower than IBP, the more so the larger {vary}: difference grows all along; ratio",
                f"Alsubaihi et al. 2019, figures {figures}",
                "for all eps",
                f"{growing} of {len(curves)} eps; {ends}",
            )
        )
    return found


def draw(rows: Sequence[Row], parameters: Parameters) -> Figure:
    """Draw difference and ratio against k and against n."""
    made, axes = figure(2, 2)
    fixed = {"k": f"n = {parameters['fixed_n']}", "n": f"k = {parameters['fixed_k']}"}
    for row, (vary, label) in enumerate((("k", "hidden units k"), ("n", "input dimension n"))):
        for i, eps in enumerate(parameters["eps"]):
            chosen = [r for r in rows if r["vary"] == vary and r["eps"] == eps]
            for axis, key in zip(axes[2 * row : 2 * row + 2], ("difference", "ratio"), strict=True):
                line(axis, i, [r[vary] for r in chosen], [r[key] for r in chosen], f"ε = {eps:g}")
        axes[2 * row].set(
            xlabel=label, ylabel="width of IBP minus expected", title=fixed[vary], xscale="log", yscale="log"
        )
        axes[2 * row + 1].set(xlabel=label, ylabel="width of IBP / expected", title=fixed[vary], xscale="log")
    shared_legend(made, axes[0])
    return made


register_study(
    Study(
        "tightness",
        "How much narrower than IBP's interval is the expected one on two layers, against k, n and eps?",
        "Alsubaihi et al. 2019, figure 2",
        quick={
            "k": [10, 100, 1000],
            "n": [10, 100, 1000],
            "fixed_n": 100,
            "fixed_k": 100,
            "eps": [0.01, 0.1, 0.5, 1.0],
            "runs": 30,
            "seed": 0,
        },
        full={
            "k": [10, 32, 100, 316, 1000, 3162],
            "n": [10, 32, 100, 316, 1000, 3162],
            "fixed_n": 100,
            "fixed_k": 100,
            "eps": [0.01, 0.1, 0.5, 1.0],
            "runs": 1000,
            "seed": 0,
        },
        cases=cases,
        measure=measure,
        claims=claims,
        draw=draw,
    )
)
