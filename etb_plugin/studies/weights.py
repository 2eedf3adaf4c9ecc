"""Study `weights`: are trained weights normal, with and without l2 regularisation (appendix F)?"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from scipy import stats
from torch import nn

from etb_plugin.objectives import get_method
from etb_plugin.report.plots import COLOURS, figure
from etb_plugin.studies.registry import Case, Claim, Parameters, Row, Study, register_study
from etb_plugin.studies.trained_networks import dataset, trained

_BINS = 60


def cases(parameters: Parameters) -> list[Case]:
    """One for each strength of the regularisation."""
    return [{"l2": l2} for l2 in parameters["l2"]]


def measure(case: Case, parameters: Parameters, folder: Path) -> Row:
    """Return each layer's histogram, mean and deviation, excess kurtosis, and distance from the fitted normal.

    The distance is Kolmogorov and Smirnov's: the largest difference of the two distribution functions. Excess kurtosis
    is 0 for a normal variable and -1.2 for a uniform one.
    """
    data = dataset(parameters)
    network = trained(
        get_method("nominal").changed({"weight_decay": case["l2"]}), data, parameters, folder, seed=parameters["seed"]
    )
    layers = []
    for name, layer in network.named_modules():
        if isinstance(layer, nn.Linear | nn.Conv2d):
            values = layer.weight.detach().double().flatten().numpy()
            mean, deviation = float(values.mean()), float(values.std())
            counts, edges = np.histogram(values, _BINS, (mean - 5 * deviation, mean + 5 * deviation), density=True)
            layers.append(
                {
                    "name": f"{name} {type(layer).__name__}",
                    "mean": mean,
                    "deviation": deviation,
                    "kurtosis": float(stats.kurtosis(values)),
                    "distance": float(stats.kstest(values, stats.norm(mean, deviation).cdf).statistic),
                    "density": counts.tolist(),
                    "edges": edges.tolist(),
                }
            )
    return {"layers": layers}


def claims(rows: Sequence[Row], parameters: Parameters) -> list[Claim]:
    """Return the distances and kurtoses of all layers."""
    return [
        Claim(
            f"Weights look normal, l2 = {r['l2']:g}: distance from a normal, excess kurtosis, layer by layer",
            f"Alsubaihi et al. 2019, appendix F; {parameters['model']} on {parameters['dataset']}",
            "resembles a normal (histograms; no figure)",
            "; ".join(f"{layer['distance']:.3f}, {layer['kurtosis']:+.1f}" for layer in r["layers"]),
        )
        for r in rows
    ]


def draw(rows: Sequence[Row], parameters: Parameters) -> Figure:
    """Draw the histogram of each layer with the fitted normal, a row for each strength."""
    columns = len(rows[0]["layers"])
    made, axes = figure(columns, len(rows), width=2.6, height=2.2)
    for axis, (row, layer) in zip(axes, [(r, layer) for r in rows for layer in r["layers"]], strict=True):
        edges = np.array(layer["edges"])
        axis.stairs(layer["density"], edges, fill=True, color=COLOURS[4])
        x = np.linspace(edges[0], edges[-1], 200)
        axis.plot(x, stats.norm.pdf(x, layer["mean"], layer["deviation"]), color=COLOURS[1], linewidth=1.2)
        axis.set_title(f"{layer['name']}, l2 = {row['l2']:g}", fontsize=8)
        axis.tick_params(labelsize=7)
    made.supxlabel("weight", fontsize=9)
    made.supylabel("density; line: normal of equal mean and deviation", fontsize=9)
    return made


_SIZES = {"l2": [0.0, 5e-4], "eps_train": 0.0, "images": 100, "seed": 0, "data_dir": None}

register_study(
    Study(
        "weights",
        "Are the weights of trained networks normal, with and without l2 regularisation?",
        "Alsubaihi et al. 2019, appendix F",
        quick={**_SIZES, "dataset": "digits", "model": "tiny", "epochs": 20, "train_limit": None},
        full={**_SIZES, "dataset": "mnist", "model": "small", "epochs": 20, "train_limit": None},
        cases=cases,
        measure=measure,
        claims=claims,
        draw=draw,
    )
)
