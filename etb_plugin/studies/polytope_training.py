"""Study `polytope-training`: a network's outputs around one point and IBP's box, while IBP trains it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import nn

from etb_plugin.bounds import Box, bound
from etb_plugin.data import Dataset
from etb_plugin.files import read_json, write_json
from etb_plugin.networks import evaluating
from etb_plugin.objectives import get_method
from etb_plugin.report.plots import COLOURS, figure, shared_legend
from etb_plugin.results.networks import untrained
from etb_plugin.studies.registry import Case, Claim, Parameters, Row, Study, register_study
from etb_plugin.studies.toy_points import REPEATS, toy_points
from etb_plugin.studies.trained_networks import trained
from etb_plugin.training import Epoch


def cases(parameters: Parameters) -> list[Case]:
    """One for each training step that is looked at."""
    return [{"step": step} for step in parameters["steps"]]


def measure(case: Case, parameters: Parameters, folder: Path) -> Row:
    """Return sampled outputs, IBP's box, and its sides relative to the sampled range's. One training for all steps."""
    kept = folder / "steps" / f"{case['step']}.json"
    if not kept.exists():
        data = toy_points(parameters["points"], parameters["positive"], parameters["apart"], parameters["seed"])

        def look(network: nn.Module, epoch: Epoch) -> None:
            step = epoch.epoch * REPEATS
            if step in parameters["steps"]:
                with evaluating(network):
                    write_json(folder / "steps" / f"{step}.json", _looked(network, data, parameters))

        start = untrained(data, parameters["model"], parameters["seed"])
        write_json(folder / "steps" / "0.json", _looked(start, data, parameters))
        trained(get_method("ibp"), data, parameters, folder, seed=parameters["seed"], after_epoch=look)
    return dict(read_json(kept))


@torch.no_grad()
def _looked(network: nn.Module, data: Dataset, parameters: Parameters) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(parameters["seed"])
    box = Box.around(data.test.images[:1], parameters["eps_train"])
    shape = (parameters["samples"], *box.lower.shape[1:])
    outputs = network(box.lower + (box.upper - box.lower) * torch.rand(shape, generator=generator))
    interval = bound("ibp", network, box)
    right = network(data.test.images).argmax(1) == data.test.labels
    ratio = interval.width[0] / (outputs.amax(0) - outputs.amin(0))
    return {
        "points": [[round(value, 5) for value in point] for point in outputs[: parameters["shown"]].tolist()],
        "ibp": [interval.lower[0].tolist(), interval.upper[0].tolist()],
        "ratio": ratio.tolist(),
        "right": int(right.sum()),
    }


def claims(rows: Sequence[Row], parameters: Parameters) -> list[Claim]:
    """Return how wide IBP's box is, relative to what is reached, as training goes on."""
    return [
        Claim(
            f"step {r['step']}: sides of IBP's box / sampled range; points right",
            "Gowal et al. 2019, figure 4",
            "very loose" if r["step"] == 0 else "tighter with training",
            " and ".join(f"{ratio:.3g}" for ratio in r["ratio"]) + f"; {r['right']} of {parameters['points']}",
        )
        for r in rows
    ]


def draw(rows: Sequence[Row], parameters: Parameters) -> Figure:
    """Draw the sampled outputs and IBP's box at each step."""
    made, axes = figure(len(rows), width=2.8, height=2.8)
    for axis, row in zip(axes, rows, strict=True):
        x, y = zip(*row["points"], strict=True)
        axis.scatter(x, y, s=2, color=COLOURS[0], alpha=0.4, linewidths=0, rasterized=True, label="sampled")
        (left, bottom), (right, top) = row["ibp"]
        axis.add_patch(
            Rectangle(
                (left, bottom), right - left, top - bottom, fill=False, color=COLOURS[1], linewidth=1.4, label="IBP"
            )
        )
        axis.margins(0.15)
        axis.set_title(f"step {row['step']}", fontsize=9)
        axis.tick_params(labelsize=7)
    shared_legend(made, axes[0])
    made.supxlabel("first logit", fontsize=9)
    made.supylabel("second logit", fontsize=9)
    return made


# The paper keeps points 0.08 apart, the radius itself: boxes of two classes may then meet, and IBP trains a constant.
_SIZES = {
    "model": "mlp-100x3",
    "points": 13,
    "batch_size": 13,
    "positive": 5,
    "apart": 0.17,
    "eps_train": 0.08,
    "steps": [0, 200, 800],
    "epochs": 40,
    "seed": 0,
}

register_study(
    Study(
        "polytope-training",
        "Does IBP's box close around what a network reaches, while IBP trains it?",
        "Gowal et al. 2019, figure 4",
        quick={**_SIZES, "samples": 2000, "shown": 500},
        full={**_SIZES, "samples": 100_000, "shown": 2000},
        cases=cases,
        measure=measure,
        claims=claims,
        draw=draw,
    )
)
