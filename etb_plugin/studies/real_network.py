"""Study `real-network`: how much narrower than IBP's the expected interval is on a trained network (table 1)."""

from collections.abc import Sequence
from pathlib import Path

import torch
from matplotlib.figure import Figure

from etb_plugin.bounds import Box, prepare
from etb_plugin.objectives import get_method
from etb_plugin.report.plots import figure, line
from etb_plugin.studies.registry import Case, Claim, Parameters, Row, Study, register_study
from etb_plugin.studies.trained_networks import dataset, trained

_TABLE = {0.01: (644.322, 17.391), 0.02: (1381.980, 15.270), 0.03: (2255.397, 14.555)}
"""Table 1 by eps: the widths' difference and ratio."""


def cases(parameters: Parameters) -> list[Case]:
    """One for each eps."""
    return [{"eps": eps} for eps in parameters["eps"]]


@torch.no_grad()
def measure(case: Case, parameters: Parameters, folder: Path) -> Row:
    """Return difference and ratio of the widths of all logits, their means over the images, and the clean accuracy.

    The ratio of the widths is taken image by image, of their means over the logits.
    """
    data = dataset(parameters)
    with torch.enable_grad():
        network = trained(get_method("nominal"), data, parameters, folder, seed=parameters["seed"])
    images, labels = next(data.test.batches(len(data.test)))
    box = Box.around(images, case["eps"])
    expected, ibp = (prepare(name, network, data.input_shape)(box).width for name in ("expected", "ibp"))
    return {
        "accuracy": (network(images).argmax(1) == labels).double().mean().item(),
        "difference": (ibp - expected).mean().item(),
        "ratio": (ibp.mean(1) / expected.mean(1)).mean().item(),
        "gamma": None,  # the true range takes the exact verifier
    }


def claims(rows: Sequence[Row], parameters: Parameters) -> list[Claim]:
    """Return table 1 beside the figures found."""
    return [
        Claim(
            f"eps {r['eps']:g}: IBP's width minus and over the expected one (accuracy {r['accuracy']:.1%})",
            f"Alsubaihi et al. 2019, table 1; {parameters['model']} on {parameters['dataset']}",
            "{:.0f}; {:.1f}".format(*_TABLE[r["eps"]]) if r["eps"] in _TABLE else "-",
            f"{r['difference']:.0f}; {r['ratio']:.1f}",
        )
        for r in rows
    ]


def draw(rows: Sequence[Row], parameters: Parameters) -> Figure:
    """Draw the ratio against eps, with the paper's."""
    made, (axis,) = figure(1)
    line(axis, 0, [r["eps"] for r in rows], [r["ratio"] for r in rows], "measured")
    line(axis, 1, list(_TABLE), [ratio for _, ratio in _TABLE.values()], "table 1")
    axis.set(xlabel="ε (pixel units)", ylabel="width of IBP / expected", ylim=(0, None))
    axis.legend(frameon=False)
    return made


_SIZES = {"dataset": "mnist", "model": "small", "eps": [0.01, 0.02, 0.03], "eps_train": 0.0, "images": 100, "seed": 0}

register_study(
    Study(
        "real-network",
        "How much narrower than IBP's interval is the expected one on a network trained on MNIST?",
        "Alsubaihi et al. 2019, table 1",
        quick={**_SIZES, "epochs": 5, "train_limit": 10_000, "data_dir": None},
        full={**_SIZES, "epochs": 20, "train_limit": None, "data_dir": None},
        cases=cases,
        measure=measure,
        claims=claims,
        draw=draw,
    )
)
