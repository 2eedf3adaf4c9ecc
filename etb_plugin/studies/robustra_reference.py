"""Study `robustra-reference`: what a reference model does to a model, and a pair in training (Lin et al. 2019)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.nn import functional as F

from etb_plugin.attacks import Pgd, pgd
from etb_plugin.bounds import Box, bound, margin_spec
from etb_plugin.bounds.dual import prepare_linear
from etb_plugin.data import Dataset
from etb_plugin.files import read_json, write_json
from etb_plugin.networks import Pair, evaluating, members
from etb_plugin.objectives import Loss, Losses, Method, Objective, Point, get_method
from etb_plugin.objectives.robustra import Margins, chosen_eta, slope
from etb_plugin.report.plots import figure, line
from etb_plugin.studies.registry import Case, Claim, Parameters, Row, Study, register_study
from etb_plugin.studies.trained_networks import dataset, trained
from etb_plugin.training import Epoch


@dataclass(frozen=True)
class AwayFrom(Objective):
    """l_f + weight |cos(d l_f / d x, d l_g / d x)|: cross-entropy, and input gradients unlike those of `reference`
    (section 4)."""

    reference: nn.Module
    weight: float
    bound: str | None = None

    def prepare(self, network: nn.Module, input_shape: tuple[int, ...], classes: int) -> Loss:
        def loss(images: Tensor, labels: Tensor, point: Point, generator: torch.Generator) -> Losses:
            x = images.detach().requires_grad_()
            logits = network(x)
            each = F.cross_entropy(logits, labels, reduction="none")
            (ours,) = torch.autograd.grad(each.sum(), x, create_graph=True)
            (theirs,) = torch.autograd.grad(F.cross_entropy(self.reference(x), labels, reduction="sum"), x)
            overlap = F.cosine_similarity(ours.flatten(1), theirs.flatten(1)).abs().mean()
            clean = each.mean()
            correct = (logits.argmax(1) == labels).sum()
            return Losses(clean + self.weight * overlap, clean.detach(), overlap.detach(), correct)

        return loss


def cases(parameters: Parameters) -> list[Case]:
    """Figure 1, and figures 3 and 4."""
    return [{"part": "overlap"}, {"part": "pair"}]


def measure(case: Case, parameters: Parameters, folder: Path) -> Row:
    """Return the figures of every epoch of one part."""
    data, kept = dataset(parameters), folder / "epochs" / case["part"]
    look, train = (_attacked, _overlap) if case["part"] == "overlap" else (_paired, _pair)

    def after(network: nn.Module, epoch: Epoch) -> None:
        with evaluating(network):
            write_json(kept / f"{epoch.epoch}.json", look(network, data, parameters, epoch.eps))

    train(data, parameters, folder, after)
    epochs = parameters["overlap_epochs" if case["part"] == "overlap" else "epochs"]
    return {"epochs": [read_json(kept / f"{epoch}.json") for epoch in range(1, epochs + 1)]}


def _overlap(data: Dataset, parameters: Parameters, folder: Path, after: Any) -> None:
    """Train g nominally, and then f away from it, both for `overlap_epochs`; `after` sees the pair of f and the final
    g."""
    own = {**parameters, "epochs": parameters["overlap_epochs"]}
    g = trained(get_method("nominal"), data, own, folder, seed=parameters["seed"] + 1)
    method = Method("away-from", "", AwayFrom(g, parameters["weight"]), get_method("nominal").recipe)
    trained(method, data, own, folder, seed=parameters["seed"], after_epoch=lambda f, e: after(Pair(f, g), e))


def _pair(data: Dataset, parameters: Parameters, folder: Path, after: Any) -> None:
    method = get_method("robustra").changed({"projections": parameters["projections"]})
    trained(method, data, parameters, folder, seed=parameters["seed"], after_epoch=after)


def _attacked(pair: nn.Module, data: Dataset, parameters: Parameters, eps: float) -> dict[str, float]:
    """Return PGD's error against f and g, and that of each one's attacks on the other."""
    images, labels = next(data.test.batches(len(data.test)))
    box, attack = Box.around(images, parameters["eps_train"]), Pgd(parameters["pgd_steps"], losses=("cross-entropy",))
    points, error = {}, {}
    for which, network in members(pair).items():
        points[which], broken = pgd(network, box, labels, attack, torch.Generator().manual_seed(0))
        error[which.strip()] = broken.double().mean().item()
    with torch.no_grad():
        for source, target in ((" f", " g"), (" g", " f")):
            wrong = members(pair)[target](points[source]).argmax(1) != labels
            error[f"{source.strip()} on {target.strip()}"] = wrong.double().mean().item()
    return error


@torch.no_grad()
def _paired(pair: nn.Module, data: Dataset, parameters: Parameters, eps: float) -> dict[str, float]:
    """Return both networks' LP error (the exact dual) and clean error at the final eps, and at this epoch's eps the
    mean t that is chosen and the shares of constraints that are tight, loose and infeasible at t = 0."""
    found: dict[str, float] = {}
    images, labels = next(data.test.batches(parameters["bounded_images"]))
    spec = margin_spec(labels, data.classes)
    final, now = Box.around(images, parameters["eps_train"]), Box.around(images, eps)
    linear = {}
    for which, network in members(pair).items():
        certified = (bound("dual", network, final, spec, lower_only=True).lower > 0).all(1)
        found[f"LP error{which}"] = 1 - certified.double().mean().item()
        found[f"clean error{which}"] = (network(images).argmax(1) != labels).double().mean().item()
        linear[which] = Margins(*prepare_linear(network, torch.Size(data.input_shape))(now, spec))
    for own, other in ((" f", " g"), (" g", " f")):
        mine, reference = linear[own], linear[other]
        eta = chosen_eta(mine.coefficients, reference.coefficients)
        found[f"t{own}"] = slope(mine, reference, now, eta).mean().item()
        least, greatest = (slope(mine, reference, now, torch.full_like(eta, end)) for end in (0.0, float("inf")))
        shares = {"infeasible": greatest <= 0, "tight": (least < 0) & (greatest > 0), "loose": least >= 0}
        for name, share in shares.items():
            found[f"{name}{own}"] = share.double().mean().item()
    return found


def claims(rows: Sequence[Row], parameters: Parameters) -> list[Claim]:
    """Return the ends of the curves beside what the paper says of its own."""
    overlap, pair = (row["epochs"] for row in rows)
    p, last, first = parameters, pair[-1], pair[0]
    source = f"Lin et al. 2019, figure {{}}; here {p['model']} on {p['dataset']} at {p['eps_train']:g}"
    return [
        Claim(
            "PGD error of f, trained away from g's gradients only; of g; transfer g to f (%)",
            source.format("1 (MNIST at 0.1)"),
            "below 20; rising with training; falling",
            f"{100 * overlap[-1]['f']:.1f}; {100 * overlap[-1]['g']:.1f}; {100 * overlap[-1]['g on f']:.1f}",
        ),
        Claim(
            "LP error of f; of g, after the last epoch (%)",
            source.format("3 (MNIST at 0.3)"),
            "31.42 for one of them (table 2), g slightly below f",
            f"{100 * last['LP error f']:.1f}; {100 * last['LP error g']:.1f}",
        ),
        Claim(
            "chosen t, first and last epoch, mean of both",
            source.format("4a"),
            "small at first, about -3 when eps is reached, then falling",
            f"{fmean((first['t f'], first['t g'])):.2f}; {fmean((last['t f'], last['t g'])):.2f}",
        ),
        Claim(
            "at t = 0, loose in the first epoch; infeasible in the last (%)",
            source.format("4b"),
            "almost all; almost all",
            f"{100 * fmean((first['loose f'], first['loose g'])):.0f}; "
            f"{100 * fmean((last['infeasible f'], last['infeasible g'])):.0f}",
        ),
    ]


def draw(rows: Sequence[Row], parameters: Parameters) -> Figure:
    """Draw figures 1, 3, 4a and 4b."""
    overlap, pair = (row["epochs"] for row in rows)
    made, (one, three, left, right) = figure(2, 2)

    def curves(axis: Any, epochs: Sequence[Mapping[str, float]], names: Mapping[str, str], factor: float = 100) -> None:
        for number, (name, label) in enumerate(names.items()):
            line(axis, number, list(range(1, len(epochs) + 1)), [factor * epoch[name] for epoch in epochs], label)
        axis.set_xlabel("epoch")
        axis.legend(frameon=False, fontsize=8)

    curves(one, overlap, {"f": "f", "g": "g (final)", "g on f": "g's attacks on f", "f on g": "f's attacks on g"})
    one.set(ylabel="PGD error (%)", ylim=(0, 102), title=f"f trained away from g, ε = {parameters['eps_train']:g}")
    names = {f"{kind}{which}": f"{kind}{which}" for kind in ("LP error", "clean error") for which in (" f", " g")}
    curves(three, pair, names)
    three.set(ylabel="error (%)", ylim=(0, 102), title="a pair in training")
    curves(left, pair, {"t f": "f", "t g": "g"}, 1)
    left.set(ylabel="chosen t (logits)", title="mean t")
    curves(right, pair, {f"{name} f": name for name in ("tight", "loose", "infeasible")})
    right.set(ylabel="share of constraints of f (%)", ylim=(-2, 102), title="if t were 0")
    return made


_SIZES = {"weight": 0.1, "seed": 0, "pgd_steps": 40, "data_dir": None}

register_study(
    Study(
        "robustra-reference",
        "Does staying away from a reference's gradients make a model robust, and how does a Robustra pair train?",
        "Lin et al. 2019, figures 1, 3 and 4",
        quick={
            **_SIZES,
            "dataset": "digits",
            "model": "mlp-50x2",
            "eps_train": 0.05,
            "overlap_epochs": 20,
            "epochs": 12,
            "projections": None,
            "train_limit": 400,
            "images": 200,
            "bounded_images": 100,
        },
        full={
            **_SIZES,
            "dataset": "mnist",
            "model": "wk-small",
            "eps_train": 0.3,
            "overlap_epochs": 100,
            "epochs": 100,
            "projections": None,
            "train_limit": None,
            "images": None,
            "bounded_images": 10_000,
        },
        cases=cases,
        measure=measure,
        claims=claims,
        draw=draw,
    )
)
