"""Study `depth`: how much narrower than IBP's the expected interval is in deep networks (figure 3)."""

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

import torch
from matplotlib.figure import Figure

from etb_plugin.bounds import bound
from etb_plugin.report.plots import figure, line, shared_legend
from etb_plugin.studies.random_networks import gaussian_box, gaussian_convolutions, gaussian_network
from etb_plugin.studies.registry import Case, Claim, Parameters, Row, Study, register_study


def cases(parameters: Parameters) -> list[Case]:
    """Fully connected networks with blockwise masks, convolutional ones with IBP's (section 4), by depth and eps."""
    return [
        {"network": network, "layers": layers, "eps": eps}
        for network in ("fc", "conv")
        for eps in parameters["eps"]
        for layers in parameters["layers"]
    ]


@torch.no_grad()
def measure(case: Case, parameters: Parameters, folder: Path) -> Row:
    """Return the mean width of both intervals, and the mean of their ratio and difference over networks."""
    generator = torch.Generator().manual_seed(parameters["seed"])
    ratios, differences = [], []
    for _ in range(parameters["runs"]):
        if case["network"] == "fc":
            units = parameters["units"]
            network, shape = gaussian_network([units] * case["layers"] + [1], generator), (units,)
        else:
            size = parameters["conv_size"]
            network = gaussian_convolutions(parameters["conv_channels"], size, case["layers"], generator)
            shape = (3, size, size)  # type: ignore[assignment]
        box = gaussian_box(shape, case["eps"], generator)
        masks = "blockwise" if case["network"] == "fc" else "ibp"
        expected, ibp = bound("expected", network, box, masks=masks).width, bound("ibp", network, box).width
        ratios.append((ibp / expected).mean().item())
        differences.append((ibp - expected).mean().item())
    return {"ratio": fmean(ratios), "difference": fmean(differences)}


def claims(rows: Sequence[Row], parameters: Parameters) -> list[Claim]:
    """Return the statement of section 4 about ten layers with the figures found."""
    deepest = max(r["layers"] for r in rows)
    found = [r for r in rows if r["layers"] == deepest and r["network"] == "fc"]
    best = max(found, key=lambda r: r["ratio"])
    return [
        Claim(
            f"IBP's width over the expected one, fully connected, {deepest} layers, n = k = {parameters['units']}",
            "Alsubaihi et al. 2019, figure 3b and section 4",
            "more than 1e6 (10 layers, n = k = 500)",
            f"{best['ratio']:.3g} (eps {best['eps']:g}); over eps: " + ", ".join(f"{r['ratio']:.3g}" for r in found),
        )
    ]


def draw(rows: Sequence[Row], parameters: Parameters) -> Figure:
    """Draw difference and ratio against depth, both kinds of networks, on logarithmic axes as the paper's."""
    made, axes = figure(2, 2)
    for row, network in enumerate(("fc", "conv")):
        for i, eps in enumerate(parameters["eps"]):
            chosen = [r for r in rows if r["network"] == network and r["eps"] == eps]
            for axis, key in zip(axes[2 * row : 2 * row + 2], ("difference", "ratio"), strict=True):
                line(axis, i, [r["layers"] for r in chosen], [r[key] for r in chosen], f"ε = {eps:g}")
        name = f"fully connected, n = k = {parameters['units']}" if network == "fc" else "convolutional"
        axes[2 * row].set(ylabel="width of IBP minus expected", title=name, yscale="log")
        axes[2 * row + 1].set(ylabel="width of IBP / expected", title=name, yscale="log")
    for axis in axes:
        axis.set_xlabel("affine layers")
    shared_legend(made, axes[0])
    return made


register_study(
    Study(
        "depth",
        "How much narrower than IBP's interval is the expected one in deep networks?",
        "Alsubaihi et al. 2019, figure 3",
        quick={
            "layers": [2, 4, 6, 8, 10],
            "eps": [0.01, 0.1, 1.0],
            "units": 200,
            "conv_channels": 8,
            "conv_size": 12,
            "runs": 3,
            "seed": 0,
        },
        full={
            "layers": [2, 3, 4, 5, 6, 7, 8, 9, 10],
            "eps": [0.01, 0.1, 0.5, 1.0],
            "units": 500,
            "conv_channels": 32,
            "conv_size": 32,
            "runs": 10,
            "seed": 0,
        },
        cases=cases,
        measure=measure,
        claims=claims,
        draw=draw,
    )
)
