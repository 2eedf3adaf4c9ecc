"""Study `ibp-ablation`: what schedule, elision and cross-entropy are worth in IBP training (table 5)."""

from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

from matplotlib.figure import Figure

from etb_plugin.attacks import Pgd
from etb_plugin.evaluation import Exam, evaluate
from etb_plugin.objectives import get_method
from etb_plugin.report.plots import COLOURS, figure
from etb_plugin.studies.registry import Case, Claim, Parameters, Row, Study, register_study
from etb_plugin.studies.trained_networks import dataset, trained

_VARIANTS: dict[str, dict[str, Any]] = {
    "no schedule": {"eps_ramp": 1, "kappa": 0.5},
    "softplus": {"loss": "softplus", "elision": False},
    "softplus, elision": {"loss": "softplus"},
    "cross-entropy": {"elision": False},
    "cross-entropy, elision": {},
}
_TABLE = {
    "no schedule": "no training",
    "softplus": "30.09 (28.63 to 32.03)",
    "softplus, elision": "26.21 (24.99 to 28.49)",
    "cross-entropy": "25.67 (24.04 to 26.71)",
    "cross-entropy, elision": "24.94 (23.10 to 26.63)",
}
"""Table 5, small on MNIST at 0.4, per cent: median verified error, and the 25th and 75th percentiles, of ten runs."""


def cases(parameters: Parameters) -> list[Case]:
    """One for each variant and seed."""
    return [{"variant": variant, "seed": seed} for variant in _VARIANTS for seed in parameters["seeds"]]


def measure(case: Case, parameters: Parameters, folder: Path) -> Row:
    """Return clean error and the error that IBP verifies, at the training eps."""
    data = dataset(parameters)
    schedule = {name: {"wait": parameters["wait"], "length": parameters["length"]} for name in ("eps_ramp", "kappa")}
    changes = {"decay_at": parameters["decay_at"], **schedule, **_VARIANTS[case["variant"]]}
    network = trained(get_method("ibp").changed(changes), data, parameters, folder, seed=case["seed"])
    eps = parameters["eps_train"]
    found = evaluate(network, data.test, data.classes, Exam((eps,), Pgd(1), ("ibp",), case["seed"]), eps)
    return {"clean": 1 - found.clean_accuracy, "verified": 1 - found.certified_accuracy["ibp"]}


def claims(rows: Sequence[Row], parameters: Parameters) -> list[Claim]:
    """Return the medians over seeds beside table 5's."""
    p = parameters
    size = f"{p['model']} on {p['dataset']} at {p['eps_train']:g}, {len(p['seeds'])} runs"
    made = []
    for variant, published in _TABLE.items():
        errors = [100 * r["verified"] for r in rows if r["variant"] == variant]
        made.append(
            Claim(
                f"{variant}: error verified by IBP, %, median (least to greatest here)",
                f"Gowal et al. 2019, table 5 (small on MNIST at 0.4); here {size}",
                published,
                f"{median(errors):.2f} ({min(errors):.2f} to {max(errors):.2f})",
            )
        )
    return made


def draw(rows: Sequence[Row], parameters: Parameters) -> Figure:
    """Draw every run's verified error, a row for each variant, medians as bars."""
    made, (axis,) = figure(1, width=5.2, height=2.8)
    for place, variant in enumerate(_VARIANTS):
        errors = [100 * r["verified"] for r in rows if r["variant"] == variant]
        axis.barh(place, median(errors), color=COLOURS[4], height=0.6)
        axis.plot(errors, [place] * len(errors), "o", color=COLOURS[0], markersize=4)
    axis.set_yticks(range(len(_VARIANTS)), list(_VARIANTS))
    axis.invert_yaxis()
    axis.set(xlabel=f"error verified by IBP at ε = {parameters['eps_train']:g} (%); bar: median", xlim=(0, 100))
    return made


register_study(
    Study(
        "ibp-ablation",
        "What are the schedule, elision of the last layer and cross-entropy worth in IBP training?",
        "Gowal et al. 2019, table 5",
        quick={
            "dataset": "digits",
            "model": "tiny",
            "eps_train": 0.1,
            "epochs": 20,
            "wait": 0.05,
            "length": 0.5,
            "decay_at": [0.8, 0.9],
            "seeds": [0, 1, 2],
            "train_limit": None,
            "images": None,
            "data_dir": None,
        },
        full={
            "dataset": "mnist",
            "model": "small",
            "eps_train": 0.4,
            "epochs": 100,
            "wait": "2000 steps",
            "length": "10000 steps",
            "decay_at": ["15000 steps", "25000 steps"],
            "seeds": list(range(10)),
            "train_limit": None,
            "images": None,
            "data_dir": None,
        },
        cases=cases,
        measure=measure,
        claims=claims,
        draw=draw,
    )
)
