"""Study `violations` (ours): how often, and how far, a network leaves its expected interval."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from etb_plugin.attacks import Pgd
from etb_plugin.bounds import Box, Interval, margin_spec, prepare
from etb_plugin.data import Dataset
from etb_plugin.evaluation.calibration import ROUNDING, factors, reached
from etb_plugin.files import read_json, write_json
from etb_plugin.networks import evaluating
from etb_plugin.objectives import get_method
from etb_plugin.report.plots import figure, line, shared_legend
from etb_plugin.studies.registry import Case, Claim, Parameters, Row, Study, register_study
from etb_plugin.studies.trained_networks import dataset, trained
from etb_plugin.training import Epoch


def violation(interval: Interval, low: Tensor, high: Tensor) -> dict[str, float]:
    """Return the shares of images and of margins that leave the interval, and the median factor that would cover.

    The factor multiplies the interval's radius; an image's is the largest of its margins.
    """
    factor = factors(interval, low, high)
    outside = factor > 1 + ROUNDING
    return {
        "images": outside.any(1).double().mean().item(),
        "margins": outside.double().mean().item(),
        "factor": factor.amax(1).median().item(),
    }


def cases(parameters: Parameters) -> list[Case]:
    """One for each method."""
    return [{"method": method} for method in parameters["methods"]]


def measure(case: Case, parameters: Parameters, folder: Path) -> Row:
    """Return the violations after some epochs of one training, at every eps."""
    data, kept = dataset(parameters), folder / "epochs" / case["method"]
    epochs = sorted({1, *range(parameters["every"], parameters["epochs"], parameters["every"]), parameters["epochs"]})

    def look(network: nn.Module, epoch: Epoch) -> None:
        if epoch.epoch in epochs:
            with evaluating(network):
                write_json(kept / f"{epoch.epoch}.json", _looked(network, data, epoch.epoch, parameters))

    trained(get_method(case["method"]), data, parameters, folder, seed=parameters["seed"], after_epoch=look)
    return {"points": [point for epoch in epochs for point in read_json(kept / f"{epoch}.json")]}


@torch.no_grad()
def _looked(network: nn.Module, data: Dataset, epoch: int, parameters: Parameters) -> list[dict[str, Any]]:
    images, labels = next(data.test.batches(len(data.test)))
    spec = margin_spec(labels, data.classes)
    found = []
    for eps in parameters["eps"]:
        box = Box.around(images, eps)
        seed, attack = parameters["seed"], Pgd(parameters["pgd_steps"])
        generator = torch.Generator().manual_seed(seed)
        low, high = reached(network, box, spec, attack, generator, samples=parameters["samples"], seed=seed)
        interval = prepare("expected", network, data.input_shape, masks=parameters["masks"])(box, spec)
        found.append({"epoch": epoch, "eps": eps, **violation(interval, low, high)})
    return found


def claims(rows: Sequence[Row], parameters: Parameters) -> list[Claim]:
    """Return the violations at the end of each training."""
    made = []
    for row in rows:
        last = [p for p in row["points"] if p["epoch"] == parameters["epochs"]]
        made.append(
            Claim(
                f"{row['method']}: images with a margin outside the expected interval, by eps (median covering factor)",
                f"ours; {parameters['model']} on {parameters['dataset']}, trained at {parameters['eps_train']:g}, "
                f"masks {parameters['masks']}",
                "-",
                "; ".join(f"{p['eps']:g}: {p['images']:.0%} ({p['factor']:.2f})" for p in last),
            )
        )
    return made


def draw(rows: Sequence[Row], parameters: Parameters) -> Figure:
    """Draw the share of images against eps at the end, and against the epoch at the training eps."""
    made, (left, right) = figure(2)
    nearest = min(parameters["eps"], key=lambda eps: abs(eps - parameters["eps_train"]))
    for i, row in enumerate(rows):
        last = [p for p in row["points"] if p["epoch"] == parameters["epochs"]]
        course = [p for p in row["points"] if p["eps"] == nearest]
        line(left, i, [p["eps"] for p in last], [100 * p["images"] for p in last], row["method"])
        line(right, i, [p["epoch"] for p in course], [100 * p["images"] for p in course], row["method"])
    left.set(
        xlabel="ε (pixel units)", ylabel="images outside their interval (%)", title="after training", ylim=(-4, 104)
    )
    right.set(xlabel="epoch", title=f"during training, ε = {nearest:g}", ylim=(-4, 104))
    shared_legend(made, left)
    return made


_SIZES = {
    "methods": ["nominal", "pgd", "ibp", "expected"],
    "masks": "ibp",
    "eps": [0.005, 0.01, 0.02, 0.05, 0.1, 0.2],
    "eps_train": 0.1,
    "pgd_steps": 20,
    "samples": 500,
    "seed": 0,
    "data_dir": None,
}

register_study(
    Study(
        "violations",
        "How often does an attacked or sampled output leave the expected interval, and by how much?",
        "ours",
        quick={
            **_SIZES,
            "dataset": "digits",
            "model": "tiny",
            "epochs": 20,
            "every": 5,
            "train_limit": None,
            "images": 50,
        },
        full={
            **_SIZES,
            "dataset": "mnist",
            "model": "small",
            "epochs": 20,
            "every": 2,
            "train_limit": None,
            "images": 200,
        },
        cases=cases,
        measure=measure,
        claims=claims,
        draw=draw,
    )
)
