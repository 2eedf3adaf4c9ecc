"""Study `coverage`: the share of the true range that the expected interval covers (figure 1)."""

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

import torch
from matplotlib.figure import Figure

from etb_plugin.report.plots import COLOURS, figure, line
from etb_plugin.studies.random_networks import gaussian_box, gaussian_network, ranges
from etb_plugin.studies.registry import Case, Claim, Parameters, Row, Study, register_study

_SOURCE = "Alsubaihi et al. 2019"
_CENTRES = {"gamma": "the formula's centre", "recentred": "the code's"}


def cases(parameters: Parameters) -> list[Case]:
    """Figure 1a: a hidden layer of k units on n inputs. Figure 1b: `layers` affine layers, n units in each."""
    wide = [{"figure": "1a", "n": n, "k": k} for k in parameters["k"] for n in parameters["n"]]
    deep = [{"figure": "1b", "n": n, "layers": layers} for n in parameters["deep_n"] for layers in parameters["layers"]]
    return [*wide, *deep]


def measure(case: Case, parameters: Parameters, folder: Path) -> Row:
    """Return Gamma over random networks (mean, standard error, minimum, share of 1), and the mean slack of the two ends
    relative to the mean true width; and mean Gamma around the network's own output, as the authors' code has it.

    Networks that are constant on their box have no range to cover: they are counted, and left out."""
    generator = torch.Generator().manual_seed(parameters["seed"])
    n = case["n"]
    widths = [n, case["k"], 1] if case["figure"] == "1a" else [n] * case["layers"] + [1]
    networks, boxes = [], []
    for _ in range(parameters["runs"]):
        networks.append(gaussian_network(widths, generator))
        boxes.append(gaussian_box((n,), parameters["eps"], generator))
    shares, recentred, slack, width = [], [], torch.zeros(2, dtype=torch.float64), 0.0
    for found in ranges(networks, boxes, parameters["samples"]):
        if not found.true.width.item():
            continue
        shares.append(found.gamma[0].item())
        recentred.append(found.recentred_gamma[0].item())
        slack += found.slack[:, 0]
        width += found.true.width.item()
    values = torch.tensor(shares, dtype=torch.float64)
    return {
        "gamma": values.mean().item(),
        "gamma_error": (values.std() / len(values) ** 0.5).item(),
        "gamma_min": values.min().item(),
        "recentred": fmean(recentred),
        "whole": (values > 1 - 1e-9).double().mean().item(),
        "slack": (slack / width).tolist(),
        "constant": parameters["runs"] - len(shares),
    }


def claims(rows: Sequence[Row], parameters: Parameters) -> list[Claim]:
    """Return the two statements of section 4 with the figures found."""
    wide = [r for r in rows if r["figure"] == "1a"]
    large = [r for r in wide if r["n"] >= 15]
    largest = max(parameters["n"])
    deep = {n: [r for r in rows if r["figure"] == "1b" and r["n"] == n] for n in parameters["deep_n"]}
    return [
        *(
            Claim(
                f"Gamma at n >= 15, k up to {max(parameters['k'])}, {centre}: the least mean",
                f"{_SOURCE}, figure 1a and section 4",
                "1 (a super set)",
                f"{min(r[key] for r in large):.4f}" if large else "n >= 15 not measured",
            )
            for key, centre in _CENTRES.items()
        ),
        Claim(
            "The ends lie outside the true ones in expectation: the least mean slack, relative to the true width",
            f"{_SOURCE}, theorem 1",
            "at least 0 for large n",
            f"{min(min(r['slack']) for r in wide if r['n'] >= largest):+.4f} at n = {largest}",
        ),
        *(
            Claim(
                f"Gamma in deeper networks grows with n, {centre}: mean over depths",
                f"{_SOURCE}, figure 1b",
                "n = 20 better than n = 10",
                ", ".join(f"n = {n}: {fmean(r[key] for r in own):.4f}" for n, own in deep.items()),
            )
            for key, centre in _CENTRES.items()
        ),
    ]


def draw(rows: Sequence[Row], parameters: Parameters) -> Figure:
    """Draw Gamma against n for each k, and against the depth for each n."""
    made, (left, right) = figure(2)
    for i, k in enumerate(parameters["k"]):
        chosen = [r for r in rows if r["figure"] == "1a" and r["k"] == k]
        line(left, i, [r["n"] for r in chosen], [r["gamma"] for r in chosen], f"k = {k}")
        left.plot([r["n"] for r in chosen], [r["recentred"] for r in chosen], "--", color=COLOURS[i], linewidth=1)
    for i, n in enumerate(parameters["deep_n"]):
        chosen = [r for r in rows if r["figure"] == "1b" and r["n"] == n]
        line(right, i, [r["layers"] for r in chosen], [r["gamma"] for r in chosen], f"n = k = {n}")
        right.plot([r["layers"] for r in chosen], [r["recentred"] for r in chosen], "--", color=COLOURS[i], linewidth=1)
    left.set(xlabel="input dimension n", ylabel="share Γ of the true range covered", title="two layers, k hidden units")
    right.set(xlabel="affine layers", title="deeper, blockwise masks")
    for axis in (left, right):
        axis.axhline(1, color="black", linewidth=0.8)
        axis.plot([], [], "--", color="black", linewidth=1, label="around f(centre)")
        low, high = axis.get_ylim()
        axis.set_ylim(low - 0.4 * (high - low), high)  # room for the legend below all lines
        axis.legend(frameon=False, loc="lower center", ncols=2)
    return made


register_study(
    Study(
        "coverage",
        "How much of the true range does the expected interval cover, against n, k and depth?",
        f"{_SOURCE}, figure 1",
        quick={
            "n": [2, 5, 10, 15],
            "k": [10, 100, 1000],
            "deep_n": [10, 15],
            "layers": [2, 4, 6, 8],
            "eps": 0.1,
            "runs": 30,
            "samples": 2000,
            "seed": 0,
        },
        full={
            "n": [2, 5, 10, 15, 20],
            "k": [10, 50, 100, 500, 1000],
            "deep_n": [10, 20],
            "layers": [2, 3, 4, 5, 6, 7, 8, 9, 10],
            "eps": 0.1,
            "runs": 1000,
            "samples": 1_000_000,
            "seed": 0,
        },
        cases=cases,
        measure=measure,
        claims=claims,
        draw=draw,
    )
)
