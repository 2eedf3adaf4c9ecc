"""Study `real-network`: the expected interval on a trained network, against IBP's and against the true range (table 1).

Table 1's Gamma is the share of the true range that the expected interval covers. The true range lies between what an
attack reaches and what the bound `outer` proves, so Gamma is known up to an interval, image by image and logit by
logit. Every form of the expected bound in `forms` is measured; the widths are those of the first.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import nn

from etb_plugin.attacks import Pgd
from etb_plugin.bounds import Box, Interval, prepare
from etb_plugin.bounds.types import identity_rows
from etb_plugin.data import Dataset
from etb_plugin.evaluation.calibration import covered_between, reached
from etb_plugin.objectives import get_method
from etb_plugin.registry import named_options
from etb_plugin.report.plots import COLOURS, figure, line
from etb_plugin.studies.registry import Case, Claim, Parameters, Row, Study, register_study
from etb_plugin.studies.trained_networks import dataset, trained

_TABLE = {0.01: (644.322, 17.391, 1.0, 1.0), 0.02: (1381.980, 15.270, 1.0, 1.0), 0.03: (2255.397, 14.555, 0.97, 0.635)}
"""Table 1 by eps: the widths' difference and ratio, and Gamma's mean and minimum (its maximum is 1 everywhere)."""


def cases(parameters: Parameters) -> list[Case]:
    """One for each eps."""
    return [{"eps": eps} for eps in parameters["eps"]]


@torch.no_grad()
def measure(case: Case, parameters: Parameters, folder: Path) -> Row:
    """Return difference and ratio of the widths of all logits, their means over the images, the clean accuracy, and for
    each form mean, minimum and maximum of Gamma over all images and logits, each between two ends.

    The ratio of the widths is taken image by image, of their means over the logits. `outside` is the share of logits
    whose attacked range leaves the expected interval: Gamma is below 1 there whatever the true range is.
    """
    data = dataset(parameters)
    with torch.enable_grad():
        network = trained(get_method("nominal"), data, parameters, folder, seed=parameters["seed"])
    images, labels = next(data.test.batches(len(data.test)))
    box = Box.around(images, case["eps"])
    ibp, outer, *expected = (
        _interval(text, network, data, box) for text in ("ibp", parameters["outer"], *parameters["forms"])
    )
    attack = Pgd(parameters["pgd_steps"], parameters["pgd_restarts"])
    generator, spec = (
        torch.Generator().manual_seed(parameters["seed"]),
        identity_rows(box.lower, data.classes).expand(len(box), -1, -1),
    )
    with torch.enable_grad():
        low, high = reached(network, box, spec, attack, generator, samples=100, seed=parameters["seed"])
    # Where the attack found the end itself, float32 may put it a hair beyond what is proved.
    inner = Interval(torch.maximum(low, outer.lower), torch.minimum(high, outer.upper), sound=False)
    width = expected[0].width
    return {
        "accuracy": (network(images).argmax(1) == labels).double().mean().item(),
        "difference": (ibp.width - width).mean().item(),
        "ratio": (ibp.width.mean(1) / width.mean(1)).mean().item(),
        "attacked_share": (inner.width.mean() / outer.width.mean()).item(),
        "coverage": {
            form: _coverage(interval, inner, outer)
            for form, interval in zip(parameters["forms"], expected, strict=True)
        },
    }


def _interval(text: str, network: nn.Module, data: Dataset, box: Box) -> Interval:
    """Return the logits' interval by the bound `text`, some images at a time."""
    name, options = named_options(text)
    prepared = prepare(name, network, data.input_shape, **options)
    parts = [prepared(box[some]) for some in torch.arange(len(box)).split(25)]
    return Interval(torch.cat([p.lower for p in parts]), torch.cat([p.upper for p in parts]), sound=prepared.sound)


def _coverage(interval: Interval, inner: Interval, outer: Interval) -> dict[str, Any]:
    ends = covered_between(interval, inner, outer)
    leaves = (inner.lower < interval.lower) | (inner.upper > interval.upper)
    return {
        "mean": [end.mean().item() for end in ends],
        "min": [end.min().item() for end in ends],
        "max": [end.max().item() for end in ends],
        "outside": leaves.double().mean().item(),
    }


def claims(rows: Sequence[Row], parameters: Parameters) -> list[Claim]:
    """Return table 1 beside the figures found."""
    source = f"Alsubaihi et al. 2019, table 1; {parameters['model']} on {parameters['dataset']}"
    found = []
    for r in rows:
        difference, ratio, mean, least = _TABLE.get(r["eps"], (None,) * 4)
        known = difference is not None
        found.append(
            Claim(
                f"eps {r['eps']:g}: IBP's width minus and over the expected one (accuracy {r['accuracy']:.1%})",
                source,
                f"{difference:.0f}; {ratio:.1f}" if known else "-",
                f"{r['difference']:.0f}; {r['ratio']:.1f}",
            )
        )
        found += [
            Claim(
                f"eps {r['eps']:g}, {form}: mean and minimum of Gamma, the share of the true range inside "
                f"(attacked logits leave it on {c['outside']:.0%})",
                f"{source}; true range between PGD and {parameters['outer']}",
                f"{mean:g}; {least:g}" if known else "-",
                "; ".join(_between(c[key]) for key in ("mean", "min")),
            )
            for form, c in r["coverage"].items()
        ]
    return found


def _between(ends: Sequence[float]) -> str:
    low, high = (f"{end:.3f}" for end in ends)
    return low if low == high else f"{low} to {high}"


def draw(rows: Sequence[Row], parameters: Parameters) -> Figure:
    """Draw ratio and mean Gamma against eps, with the paper's."""
    made, (left, right) = figure(2)
    eps = [r["eps"] for r in rows]
    line(left, 0, eps, [r["ratio"] for r in rows], "measured")
    line(left, 1, list(_TABLE), [row[1] for row in _TABLE.values()], "table 1")
    left.set(ylabel="width of IBP / expected")
    for number, form in enumerate(parameters["forms"]):
        least, most = ([r["coverage"][form]["mean"][end] for r in rows] for end in (0, 1))
        right.fill_between(eps, least, most, color=COLOURS[number % 6], alpha=0.2, linewidth=0)
        line(right, number, eps, most, form)
    line(right, len(parameters["forms"]), list(_TABLE), [row[2] for row in _TABLE.values()], "table 1")
    right.set(ylabel="Γ, mean (shaded: not known)")
    for axis in (left, right):
        axis.set(xlabel="ε (pixel units)", ylim=(0, None))
        axis.legend(frameon=False, loc="lower left", fontsize=8)
    return made


_SIZES = {
    **{"dataset": "mnist", "model": "small", "eps": [0.01, 0.02, 0.03], "eps_train": 0.0, "images": 100, "seed": 0},
    **{"pgd_steps": 40, "pgd_restarts": 1, "data_dir": None},
    "forms": ["expected", "expected:center=network", "expected:masks=blockwise", "expected:masks=center"],
}

register_study(
    Study(
        "real-network",
        "How much narrower than IBP's interval is the expected one on a network trained on MNIST?",
        "Alsubaihi et al. 2019, table 1",
        quick={**_SIZES, "epochs": 5, "train_limit": 10_000, "outer": "crown"},
        full={**_SIZES, "epochs": 20, "train_limit": None, "outer": "alpha-crown"},
        cases=cases,
        measure=measure,
        claims=claims,
        draw=draw,
    )
)
