"""Study `cascade`: networks in sequence, each trained on what those before it do not certify (Wong et al. 2018).

An image goes to the first stage that certifies its own prediction there, and to the last one where none does. The
robust error counts images whose stage is wrong or does not certify, as in the paper. That is NOT a certificate against
an attacker who faces the whole cascade: a perturbed image may fall out of the first stage's certificate and into a
later stage that gets it wrong. So nothing of this fills a column called certified.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from etb_plugin.bounds import Box, margin_spec, prepare_lower
from etb_plugin.data import Dataset, Split
from etb_plugin.files import once
from etb_plugin.objectives import get_method
from etb_plugin.report.plots import figure, line
from etb_plugin.studies.registry import Case, Claim, Parameters, Row, Study, register_study
from etb_plugin.studies.trained_networks import dataset, trained


def cases(parameters: Parameters) -> list[Case]:
    """One for each stage, in order: a stage's training images depend on those before it."""
    return [{"stage": stage} for stage in range(1, parameters["stages"] + 1)]


def measure(case: Case, parameters: Parameters, folder: Path) -> Row:
    """Return the errors of the cascade up to this stage, and how many images the stage was trained on.

    Training ends where every training image is certified: the stage then has no images and changes nothing.
    """
    data = dataset(parameters)
    left = _left(data, parameters, folder, case["stage"])
    chosen, done = torch.zeros_like(data.test.labels), torch.zeros_like(data.test.labels, dtype=torch.bool)
    for stage in range(1, case["stage"] + 1):
        predicted, certified = _on_test(data, parameters, folder, stage)
        chosen, done = torch.where(done, chosen, predicted), done | certified
    right = chosen == data.test.labels
    return {
        "training_images": len(left),
        "error": 1 - right.double().mean().item(),
        "robust_error": 1 - (right & done).double().mean().item(),
    }


def _left(data: Dataset, parameters: Parameters, folder: Path, stage: int) -> list[int]:
    """Return the training images that no stage before `stage` certifies to be of their own class."""
    if stage == 1:
        return list(range(len(data.train)))

    def find() -> list[int]:
        before = torch.tensor(_left(data, parameters, folder, stage - 1))
        network = _stage(data, parameters, folder, stage - 1)
        some = Split(data.train.images[before], data.train.labels[before])
        predicted, certified = _predictions(network, some, data, parameters)
        found: list[int] = before[~(certified & (predicted == some.labels))].tolist()
        return found

    left: list[int] = once(folder / "left" / f"{stage}.json", find)
    return left


def _stage(data: Dataset, parameters: Parameters, folder: Path, stage: int) -> nn.Module:
    """Return the network of a stage; the last one that had images to train on where it has none."""
    left = torch.tensor(_left(data, parameters, folder, stage), dtype=torch.long)
    if not len(left):
        return _stage(data, parameters, folder, stage - 1)
    own = replace(data, train=Split(data.train.images[left], data.train.labels[left]))
    return trained(get_method(parameters["method"]), own, parameters, folder, seed=parameters["seed"] + stage - 1)


def _on_test(data: Dataset, parameters: Parameters, folder: Path, stage: int) -> tuple[Tensor, Tensor]:
    """Return `_predictions` of a stage on the test images. Every later stage asks for them again."""

    def find() -> list[list[int]]:
        network = _stage(data, parameters, folder, stage)
        return [values.tolist() for values in _predictions(network, data.test, data, parameters)]

    predicted, certified = (torch.tensor(values) for values in once(folder / "test" / f"{stage}.json", find))
    return predicted, certified


@torch.no_grad()
def _predictions(network: nn.Module, split: Split, data: Dataset, parameters: Parameters) -> tuple[Tensor, Tensor]:
    """Return what the network says of each image, and whether it certifies that."""
    bounded = prepare_lower(parameters["certify"], network, data.input_shape)
    predicted, certified = [], []
    for images, _ in split.batches(25):
        labels = network(images).argmax(1)
        margins = bounded(Box.around(images, parameters["eps_train"]), margin_spec(labels, data.classes)).lower
        predicted.append(labels)
        certified.append((margins > 0).all(1))
    return torch.cat(predicted), torch.cat(certified)


def claims(rows: Sequence[Row], parameters: Parameters) -> list[Claim]:
    """Return robust and clean error after each stage."""
    source = (
        f"Wong et al. 2018, section 3.3; {parameters['method']}, {parameters['model']} on {parameters['dataset']} at "
        f"{parameters['eps_train']:g}"
    )
    return [
        Claim(
            f"{r['stage']} stages (the last trained on {r['training_images']:,} images): robust error; error (%)",
            source,
            "robust error falls, error may rise" if r["stage"] > 1 else "-",
            f"{100 * r['robust_error']:.1f}; {100 * r['error']:.1f}",
        )
        for r in rows
    ]


def draw(rows: Sequence[Row], parameters: Parameters) -> Figure:
    """Draw both errors against the number of stages."""
    made, (axis,) = figure(1)
    stages = [r["stage"] for r in rows]
    line(axis, 0, stages, [100 * r["robust_error"] for r in rows], "robust error (no proof for the cascade)")
    line(axis, 1, stages, [100 * r["error"] for r in rows], "error")
    axis.set(xlabel="stages", ylabel="test images (%)", ylim=(0, None))
    axis.set_xticks(stages)
    axis.legend(frameon=False, fontsize=8)
    return made


_SIZES = {"stages": 5, "seed": 0, "data_dir": None}

register_study(
    Study(
        "cascade",
        "How far do networks in sequence, each for what the others leave, bring the robust error down?",
        "Wong et al. 2018 (scaling), section 3.3",
        quick={
            **_SIZES,
            "dataset": "digits",
            "model": "tiny",
            "method": "ibp",
            "certify": "crown",
            "eps_train": 0.1,
            "epochs": 40,
            "batch_size": 100,
            "train_limit": None,
            "images": None,
        },
        full={
            **_SIZES,
            "dataset": "mnist",
            "model": "wk-small",
            "method": "dual",
            "certify": "dual",
            "eps_train": 0.1,
            "epochs": 100,
            "batch_size": 50,
            "train_limit": None,
            "images": None,
        },
        cases=cases,
        measure=measure,
        claims=claims,
        draw=draw,
    )
)
