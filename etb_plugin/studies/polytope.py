"""Study `polytope`: outputs of networks with two of them, and the expected box (figures 4, 7-9, tables 2-4)."""

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

import torch
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from etb_plugin.report.plots import COLOURS, figure
from etb_plugin.studies.random_networks import gaussian_box, gaussian_network, ranges
from etb_plugin.studies.registry import Case, Claim, Parameters, Row, Study, register_study

_TABLES = {
    (2, 0.05): ("table 2", 27.58),
    (2, 0.1): ("table 2", 58.82),
    (2, 0.25): ("table 2", 135.02),
    (10, 0.05): ("table 3", 69.8),
    (10, 0.1): ("table 3", 105.99),
    (10, 0.25): ("table 3", 353.24),
    (20, 0.05): ("table 4", 91.38),
    (20, 0.1): ("table 4", 182.42),
    (20, 0.25): ("table 4", 453.41),
}
"""The mean width of the layerwise (IBP) intervals printed there, over both outputs and five networks, by n and eps."""


def cases(parameters: Parameters) -> list[Case]:
    """One network for each n, eps and number."""
    return [
        {"n": n, "eps": eps, "network": number}
        for n in parameters["n"]
        for eps in parameters["eps"]
        for number in range(parameters["networks"])
    ]


@torch.no_grad()
def measure(case: Case, parameters: Parameters, folder: Path) -> Row:
    """Return sampled outputs, the boxes, and Gamma of both outputs by the formula's centre and by the code's."""
    generator = torch.Generator().manual_seed(parameters["seed"] + case["network"])
    n, width = case["n"], parameters["width"]
    network = gaussian_network([n, width, width, width, width, 2], generator)
    box = gaussian_box((n,), case["eps"], generator)
    (found,) = ranges([network], [box], parameters["samples"])
    points = box.lower + 2 * box.radius * torch.rand((parameters["shown"], n), generator=generator, dtype=torch.float64)
    return {
        "points": [[round(value, 5) for value in point] for point in network(points).tolist()],
        "expected": [found.expected.lower[0].tolist(), found.expected.upper[0].tolist()],
        "ibp": [found.ibp.lower[0].tolist(), found.ibp.upper[0].tolist()],
        "recentred": [found.recentred.lower[0].tolist(), found.recentred.upper[0].tolist()],
        "gamma": found.gamma.tolist(),
        "recentred_gamma": found.recentred_gamma.tolist(),
        "ratio": (found.ibp.width / found.expected.width)[0].tolist(),
    }


def claims(rows: Sequence[Row], parameters: Parameters) -> list[Claim]:
    """Return IBP's mean width beside the tables', and how much of the sampled range the expected box covers."""
    made = []
    for n in parameters["n"]:
        for eps in parameters["eps"]:
            chosen = [r for r in rows if r["n"] == n and r["eps"] == eps]
            table, published = _TABLES.get((n, eps), ("no table", None))
            widths = [high - low for r in chosen for low, high in zip(*r["ibp"], strict=True)]
            gammas = [fmean(g for r in chosen for g in r[key]) for key in ("gamma", "recentred_gamma")]
            ratio = [q for r in chosen for q in r["ratio"]]
            made.append(
                Claim(
                    f"n = {n}, eps = {eps:g}: IBP's mean width; IBP / expected; Gamma, around the code's centre",
                    f"Alsubaihi et al. 2019, {table}",
                    "-" if published is None else f"{published:g}; -; {'nearly 1' if n >= 20 else '-'}",
                    f"{fmean(widths):.4g}; {fmean(ratio):.3g}; {gammas[0]:.3f}, {gammas[1]:.3f}",
                )
            )
    return made


def draw(rows: Sequence[Row], parameters: Parameters) -> Figure:
    """Draw the sampled outputs and the expected box of each network of the largest n, a row for each eps."""
    n = max(parameters["n"])
    made, axes = figure(parameters["networks"], len(parameters["eps"]), width=2.6, height=2.4)
    chosen = [r for r in rows if r["n"] == n]
    for axis, row in zip(axes, chosen, strict=True):
        x, y = zip(*row["points"], strict=True)
        axis.scatter(x, y, s=1.5, color=COLOURS[0], alpha=0.4, linewidths=0, rasterized=True)
        for key, style in (("expected", "-"), ("recentred", "--")):
            (left, bottom), (right, top) = row[key]
            size = right - left, top - bottom
            axis.add_patch(Rectangle((left, bottom), *size, fill=False, color=COLOURS[1], linestyle=style))
        axis.margins(0.1)
        (ibp_left, ibp_bottom), (ibp_right, ibp_top) = row["ibp"]
        axis.set_title(
            f"ε = {row['eps']:g}; IBP [{ibp_left:.3g}, {ibp_right:.3g}]\nby [{ibp_bottom:.3g}, {ibp_top:.3g}]",
            fontsize=7,
        )
        axis.tick_params(labelsize=7)
    layers = "-".join([str(parameters["width"])] * 4)
    made.suptitle(f"{n}-{layers}-2: sampled outputs, the expected box, and (dashed) around f(centre)", fontsize=9)
    made.supxlabel("first output", fontsize=8)
    made.supylabel("second output", fontsize=8)
    return made


register_study(
    Study(
        "polytope",
        "What does a network with two outputs reach, and how does the expected box lie around it?",
        "Alsubaihi et al. 2019, figures 4 and 7-9, tables 2-4",
        quick={
            "n": [2, 10, 20],
            "eps": [0.05, 0.1, 0.25],
            "networks": 3,
            "width": 100,
            "samples": 5000,
            "shown": 500,
            "seed": 0,
        },
        full={
            "n": [2, 10, 20],
            "eps": [0.05, 0.1, 0.25],
            "networks": 5,
            "width": 100,
            "samples": 1_000_000,
            "shown": 2000,
            "seed": 0,
        },
        cases=cases,
        measure=measure,
        claims=claims,
        draw=draw,
    )
)
