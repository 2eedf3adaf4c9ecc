"""Study `toy-2d`: where a network of two inputs draws its boundary, trained to be right at points or in boxes."""

from collections.abc import Sequence
from pathlib import Path

import torch
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from etb_plugin.bounds import Box, bound, margin_spec
from etb_plugin.objectives import get_method
from etb_plugin.report.plots import COLOURS, figure
from etb_plugin.studies.registry import Case, Claim, Parameters, Row, Study, register_study
from etb_plugin.studies.toy_points import toy_points
from etb_plugin.studies.trained_networks import trained

_SIDE = 80
"""Points a side of the picture; boxes are searched for mistakes with as many a side again."""


def cases(parameters: Parameters) -> list[Case]:
    """One for each method."""
    return [{"method": method} for method in parameters["methods"]]


def measure(case: Case, parameters: Parameters, folder: Path) -> Row:
    """Return the network's margin on a grid of the square, and which boxes hold a mistake or are certified."""
    data = toy_points(parameters["points"], parameters["positive"], parameters["apart"], parameters["seed"])
    network = trained(get_method(case["method"]), data, parameters, folder, seed=parameters["seed"])
    images, labels = data.test.images, data.test.labels
    ticks = torch.linspace(0, 1, _SIDE)
    square = torch.cartesian_prod(ticks, ticks)[:, :, None, None]
    box = Box.around(images, parameters["eps_train"])
    with torch.no_grad():
        logits = network(square)
        inside = box.lower + (box.upper - box.lower) * square.unsqueeze(1)
        predicted = network(inside.flatten(0, 1)).argmax(1).view(len(square), -1)
        certified = bound(parameters["certify"], network, box, margin_spec(labels, 2)).lower[:, 0] > 0
        right = network(images).argmax(1) == labels
    return {
        "points": images.flatten(1).tolist(),
        "labels": labels.tolist(),
        "right": right.tolist(),
        "broken": (predicted != labels).any(0).tolist(),
        "certified": certified.tolist(),
        "margin": [round(value, 4) for value in (logits[:, 1] - logits[:, 0]).tolist()],
    }


def claims(rows: Sequence[Row], parameters: Parameters) -> list[Claim]:
    """Return how many boxes each network gets wholly right."""
    published = {"nominal": "some boxes of both colours", "dual": "every box of one colour"}
    return [
        Claim(
            f"{r['method']}: points right; boxes without a mistake on a grid; certified by {parameters['certify']}",
            "Wong and Kolter's README, 2D toy example",
            published.get(r["method"], "-"),
            f"{sum(r['right'])}; {len(r['broken']) - sum(r['broken'])}; {sum(r['certified'])} of {len(r['points'])}",
        )
        for r in rows
    ]


def draw(rows: Sequence[Row], parameters: Parameters) -> Figure:
    """Draw the square in two tones, points and boxes; boxes that hold a mistake are dashed."""
    made, axes = figure(len(rows), width=2.8, height=3.0)
    eps = parameters["eps_train"]
    ticks = torch.linspace(0, 1, _SIDE).tolist()
    for axis, row in zip(axes, rows, strict=True):
        margin = torch.tensor(row["margin"]).view(_SIDE, _SIDE).T  # rows are the second input
        axis.contourf(ticks, ticks, (margin > 0).float(), levels=[-0.5, 0.5, 1.5], colors=["#c9d6e2", "#f6dcc4"])
        axis.contour(ticks, ticks, margin, levels=[0.0], colors="black", linewidths=0.8)
        for (x, y), label, broken in zip(row["points"], row["labels"], row["broken"], strict=True):
            colour, marker = (COLOURS[1], "s") if label else (COLOURS[0], "o")
            axis.plot(x, y, marker=marker, color=colour, markersize=4)
            axis.add_patch(
                Rectangle(
                    (x - eps, y - eps),
                    2 * eps,
                    2 * eps,
                    fill=False,
                    edgecolor=colour,
                    linewidth=1.2,
                    linestyle=":" if broken else "-",
                )
            )
        kept = len(row["broken"]) - sum(row["broken"])
        axis.set(
            xlim=(0, 1), ylim=(0, 1), aspect="equal", title=f"{row['method']}: {kept} of {len(row['points'])} boxes"
        )
        axis.grid(False)
        axis.tick_params(labelsize=7)
    made.supxlabel("first input", fontsize=9)
    made.supylabel("second input", fontsize=9)
    return made


_SIZES = {
    "methods": ["nominal", "dual", "ibp", "expected"],
    "model": "mlp-100x3",
    "points": 12,
    "batch_size": 12,
    "positive": 6,
    "apart": 0.2,
    "eps_train": 0.08,
    "certify": "crown",
    "seed": 0,
}

register_study(
    Study(
        "toy-2d",
        "Where do standard and robust training draw the boundary between points of a square?",
        "Wong and Kolter 2018, README of convex_adversarial",
        quick={**_SIZES, "epochs": 50},
        full={**_SIZES, "epochs": 200},
        cases=cases,
        measure=measure,
        claims=claims,
        draw=draw,
    )
)
