"""Study `masks` (ours): the kinds of masks compared, on trained networks and as training objectives.

Gradient masking would flatter a method under PGD, so that every trained network is also put to examples that break
other networks, to random corners, and to the Square attack, which takes no gradients (`square_queries`; the extra
[attacks]): an image that stands under PGD and falls to those is counted.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import mean

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from etb_plugin.attacks import Pgd, pgd
from etb_plugin.bounds import Box, margin_spec, prepare
from etb_plugin.bounds.masks import MASKS
from etb_plugin.data import Dataset, pixels
from etb_plugin.errors import ConfigError
from etb_plugin.evaluation.calibration import covered, reached
from etb_plugin.graph.tracing import trace
from etb_plugin.objectives import Method, get_method
from etb_plugin.report.plots import COLOURS, MARKERS, figure, line
from etb_plugin.results.networks import untrained
from etb_plugin.studies.registry import Case, Claim, Parameters, Row, Study, register_study
from etb_plugin.studies.trained_networks import dataset, trained
from etb_plugin.studies.violations import violation


def cases(parameters: Parameters) -> list[Case]:
    """`bound`: a kind of masks on a network. `train`: an objective, kappa and seed."""
    bounded = [
        {"part": "bound", "network": network, "masks": masks}
        for network in parameters["networks"]
        for masks in parameters["masks"]
    ]
    references = [
        {"part": "train", "objective": name, "kappa": 1.0, "seed": seed}
        for name in ("nominal", "pgd")
        for seed in parameters["seeds"]
    ]
    objectives = [
        {"part": "train", "objective": masks, "kappa": kappa, "seed": seed}
        for masks in parameters["train_masks"]
        for kappa in parameters["kappas"]
        for seed in parameters["seeds"]
    ]
    return [*bounded, *references, *objectives]


def measure(case: Case, parameters: Parameters, folder: Path) -> Row:
    """Return the figures of one case."""
    data = dataset(parameters)
    return (_bounded if case["part"] == "bound" else _trained)(case, data, parameters, folder)


def _bounded(case: Case, data: Dataset, parameters: Parameters, folder: Path) -> Row:
    """Share of units on in each layer; width relative to IBP's, Gamma and violations of margins at the training eps."""
    seed = parameters["seeds"][0]
    if case["network"] == "untrained":
        network = untrained(data, parameters["model"], seed)
    else:
        network = trained(get_method(case["network"]), data, parameters, folder, seed=seed)
    some = slice(parameters["bounded_images"])
    images, labels = pixels(data.test.images[some]), data.test.labels[some]
    box, spec = Box.around(images, parameters["eps_train"]), margin_spec(labels, data.classes)
    attack, generator = Pgd(parameters["pgd_steps"]), torch.Generator().manual_seed(seed)
    low, high = reached(network, box, spec, attack, generator, samples=parameters["samples"], seed=seed)
    with torch.no_grad():
        interval = prepare("expected", network, data.input_shape, masks=case["masks"])(box, spec)
        graph = trace(network, torch.Size(data.input_shape))
        points = MASKS[case["masks"]](graph, box, 50, seed)
        on = [graph.activations[i].piece(*points[i])[0].mean().item() for i in points]
        ibp = prepare("ibp", network, data.input_shape)(box, spec)
    return {
        "on": on,
        "ratio": (interval.width.mean() / ibp.width.mean()).item(),
        "gamma": covered(interval, low, high).mean().item(),
        **violation(interval, low, high),
    }


def _trained(case: Case, data: Dataset, parameters: Parameters, folder: Path) -> Row:
    """Clean accuracy; at each eps that under PGD, and the share that stands there and falls to transfer or corners."""
    network = trained(_method(case, parameters), data, parameters, folder, seed=case["seed"])
    others = [
        trained(get_method(name), data, parameters, folder, seed=case["seed"])
        for name in ("nominal", "pgd")
        if name != case["objective"]
    ]
    attack = Pgd(parameters["pgd_steps"], parameters["pgd_restarts"])
    accuracy, fallen = [], []
    for eps in parameters["eps"]:
        stands = falls = 0
        for images, labels in data.test.batches(100):
            box = Box.around(images, eps)
            _, broken = pgd(network, box, labels, attack, torch.Generator().manual_seed(case["seed"]))
            elsewhere = _broken_by_others(network, others, box, labels, attack, parameters["corners"], case["seed"])
            if parameters["square_queries"]:
                elsewhere |= _broken_by_square(network, images, labels, eps, parameters["square_queries"], case["seed"])
            stands += int((~broken).sum())
            falls += int((~broken & elsewhere).sum())
        accuracy.append(stands / len(data.test))
        fallen.append(falls / len(data.test))
    with torch.no_grad():
        right = sum(int((network(x).argmax(1) == y).sum()) for x, y in data.test.batches(500))
    return {"clean": right / len(data.test), "pgd": accuracy, "fallen": fallen}


def _method(case: Case, parameters: Parameters) -> Method:
    name = case["objective"]
    if name in ("nominal", "pgd"):
        return get_method(name)
    kappa = case["kappa"]
    method = get_method("expected").changed({"masks": name, "rows": parameters["rows"], "kappa": kappa})
    return replace(method, name=f"{name}-kappa{kappa:g}", summary="")


@torch.no_grad()
def _broken_by_others(
    network: nn.Module, others: list[nn.Module], box: Box, labels: Tensor, attack: Pgd, corners: int, seed: int
) -> Tensor:
    """Return which images fall to PGD's examples against `others`, or to random corners, [batch]."""
    generator = torch.Generator().manual_seed(seed)
    broken = torch.zeros(len(labels), dtype=torch.bool)
    for other in others:
        points, _ = pgd(other, box, labels, attack, generator)
        broken |= network(points).argmax(1) != labels
    for _ in range(corners):
        side = torch.rand(box.lower.shape, generator=generator) < 0.5
        broken |= network(torch.where(side, box.lower, box.upper)).argmax(1) != labels
    return broken


def _broken_by_square(
    network: nn.Module, images: Tensor, labels: Tensor, eps: float, queries: int, seed: int
) -> Tensor:
    """Return which images the gradient-free Square attack breaks (Andriushchenko et al. 2020, by ART), [batch]."""
    try:
        from art.attacks.evasion import SquareAttack
        from art.estimators.classification import PyTorchClassifier
    except ImportError as error:
        raise ConfigError("square_queries needs the extra [attacks]: pip install 'etb_plugin[attacks]'") from error
    classes = network(images[:1]).shape[1]
    shape = tuple(images.shape[1:])
    model = PyTorchClassifier(network, nn.CrossEntropyLoss(), shape, classes, clip_values=(0.0, 1.0), device_type="cpu")
    before = np.random.get_state()  # ART draws from numpy's global generator
    np.random.seed(seed)
    try:
        attack = SquareAttack(model, norm=np.inf, max_iter=queries, eps=eps, nb_restarts=1, verbose=False)
        attacked = torch.from_numpy(attack.generate(images.numpy(), labels.numpy()))
    finally:
        np.random.set_state(before)
    with torch.no_grad():
        return network(attacked).argmax(1) != labels


def _runs(rows: Sequence[Row], objective: str) -> dict[float, list[Row]]:
    """Return the trainings by one objective, by kappa."""
    found: dict[float, list[Row]] = {}
    for row in rows:
        if row["part"] == "train" and row["objective"] == objective:
            found.setdefault(row["kappa"], []).append(row)
    return found


def claims(rows: Sequence[Row], parameters: Parameters) -> list[Claim]:
    """Return each objective's accuracies, means over seeds, each kappa by itself."""
    source = (
        f"ours; {parameters['model']} on {parameters['dataset']}, trained at {parameters['eps_train']:g}, "
        f"rows {parameters['rows']}, {len(parameters['seeds'])} seeds, {parameters['images']} images, "
        f"PGD {parameters['pgd_steps']} x {parameters['pgd_restarts']}, both losses"
    )
    radii = " / ".join(f"{eps:g}" for eps in parameters["eps"])
    made = []
    for objective in ("nominal", "pgd", *parameters["train_masks"]):
        for kappa, runs in _runs(rows, objective).items():
            by_eps = [[r["pgd"][i] for r in runs] for i in range(len(parameters["eps"]))]
            figures = " / ".join(f"{100 * mean(v):.1f} [{100 * min(v):.1f}, {100 * max(v):.1f}]" for v in by_eps)
            fallen = max(max(r["fallen"]) for r in runs)
            label = objective if objective in ("nominal", "pgd") else f"masks {objective}, kappa {kappa:g}"
            made.append(
                Claim(
                    f"{label}: clean; PGD accuracy at {radii}, mean [range]; most that stood and fell to other attacks",
                    source,
                    "-",
                    f"{100 * mean(r['clean'] for r in runs):.1f}; {figures}; {100 * fallen:.1f}",
                )
            )
    return made


def draw(rows: Sequence[Row], parameters: Parameters) -> Figure:
    """Draw the share of units on, PGD accuracy against eps at kappa 1, and clean against PGD accuracy."""
    made, (left, middle, right) = figure(3)
    for i, masks in enumerate(parameters["masks"]):
        (row,) = [r for r in rows if r["part"] == "bound" and r["network"] == "untrained" and r["masks"] == masks]
        line(left, i, list(range(1, len(row["on"]) + 1)), [100 * share for share in row["on"]], masks)
    at = min(range(len(parameters["eps"])), key=lambda i: abs(parameters["eps"][i] - parameters["eps_train"]))
    for i, objective in enumerate(("nominal", "pgd", *parameters["train_masks"])):
        by_kappa = _runs(rows, objective)
        nearest = min(by_kappa, key=lambda kappa: abs(kappa - 1))
        course = [100 * mean(r["pgd"][j] for r in by_kappa[nearest]) for j in range(len(parameters["eps"]))]
        line(middle, i, parameters["eps"], course, objective)
        for runs in by_kappa.values():
            right.scatter(
                [100 * r["clean"] for r in runs],
                [100 * r["pgd"][at] for r in runs],
                color=COLOURS[i],
                marker=MARKERS[i],
                s=22,
                label=objective if runs is next(iter(by_kappa.values())) else None,
            )
    left.set(xlabel="hidden layer", ylabel="units on (%)", title="masks of an untrained network", ylim=(-4, 104))
    left.set_xticks(range(1, len(rows[0]["on"]) + 1))
    middle.set(xlabel="test ε (pixel units)", ylabel="PGD accuracy (%)", title="trained with each, κ nearest 1")
    right.set(
        xlabel="clean accuracy (%)",
        ylabel=f"PGD accuracy at ε = {parameters['eps'][at]:g} (%)",
        title="every training",
    )
    for axis in (left, middle, right):
        axis.legend(frameon=False, fontsize=8)
    return made


_SIZES = {
    "masks": ["ibp", "blockwise", "sketch", "slope", "center"],
    "networks": ["untrained", "nominal", "pgd", "ibp", "expected"],
    "eps_train": 0.1,
    "samples": 500,
    "corners": 100,
    "rows": "all",
    "square_queries": 0,
    "data_dir": None,
}

register_study(
    Study(
        "masks",
        "Which masks are tight, which cover, and which train the best networks?",
        "ours",
        quick={
            **_SIZES,
            "dataset": "digits",
            "model": "tiny",
            "epochs": 20,
            "train_limit": None,
            "train_masks": ["ibp", "slope", "center"],
            "eps": [0.05, 0.1, 0.2],
            "kappas": [1.0],
            "seeds": [0, 1],
            "images": 200,
            "bounded_images": 25,
            "pgd_steps": 20,
            "pgd_restarts": 1,
        },
        full={
            **_SIZES,
            "dataset": "mnist",
            "model": "small",
            "epochs": 3,
            "train_limit": 30_000,
            "train_masks": ["ibp", "sketch", "slope", "center"],
            "eps": [0.1, 0.2, 0.3],
            "kappas": [0.5, 1.0, 2.0, 5.0],
            "seeds": [0, 1, 2],
            "images": 1000,
            "bounded_images": 100,
            "pgd_steps": 200,
            "pgd_restarts": 10,
            "square_queries": 1000,
        },
        cases=cases,
        measure=measure,
        claims=claims,
        draw=draw,
    )
)
