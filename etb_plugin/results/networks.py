"""Networks from disk: those of a run, or anyone's weights for a named architecture."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from torch import nn

from etb_plugin import networks
from etb_plugin.data import Dataset, load
from etb_plugin.errors import CheckpointError, ConfigError
from etb_plugin.experiment import Evaluated, resolve_device
from etb_plugin.files import in_zoo
from etb_plugin.networks.checkpoints import load_weights, read_weights
from etb_plugin.networks.onnx import read_onnx


@dataclass(frozen=True)
class Trained:
    """A network in eval mode, and what is known about it: `describe`'s keys."""

    network: nn.Module
    about: dict[str, Any]


class _About(BaseModel):
    """The keys of `describe`, and those that a comparison adds, as far as they are read."""

    model_config = ConfigDict(extra="allow")

    method: str
    model: str
    dataset: str
    eps: float | None
    seed: int | None
    input_shape: tuple[int, ...]
    classes: int
    normalization: tuple[tuple[float, ...], tuple[float, ...]] | None
    pair: bool = False
    changes: dict[str, Any] = {}


def describe(method: str, model: str, dataset: str, eps: float, seed: int, data: Dataset) -> dict[str, Any]:
    """Return what is written beside trained weights, so that they can be used without any flag."""
    return {
        "method": method,
        "model": model,
        "dataset": dataset,
        "eps": eps,
        "seed": seed,
        "input_shape": data.input_shape,
        "classes": data.classes,
        "normalization": data.source.normalization,
    }


def untrained(data: Dataset, model: str, seed: int, pair: bool = False) -> nn.Module:
    """Return a new network for `data`, or a pair of them whose second one has the seed after, in eval mode."""

    def one(seed: int) -> nn.Module:
        shape, statistics = data.input_shape, data.source.normalization
        return networks.build(model, shape, data.classes, normalization=statistics, seed=seed).eval()

    return networks.Pair(one(seed), one(seed + 1)).eval() if pair else one(seed)


def restore(path: Path, request: Evaluated, *, cascades: bool = False) -> tuple[Dataset, list[Trained]]:
    """Return the networks in `path`, a file of weights, a run folder, an ONNX file or zoo:NAME, in eval mode, and their
    data.

    Our files say which architecture and data set they are for. Others need `model` and `dataset` (an ONNX file needs
    no model), and their network sees pixels in [0, 1], not normalised. A file of several networks is a cascade, for
    callers that take `cascades`. Raises CheckpointError where there are no weights or they do not fit, and ConfigError
    where architecture, data set or device is not known.
    """
    device, model = resolve_device(request.device), request.model
    if path.suffix == ".onnx":
        return _restore_onnx(path, request, device)
    files = _files(path)
    contents = [_read(file) for file in files]
    dataset = request.dataset or contents[0][1].get("dataset")
    dataset, data = _data(path, dataset, request, device)
    trained = []
    for file, (parts, known) in zip(files, contents, strict=True):
        about = known or _unknown(file, model, dataset, data)
        if model is not None and about["model"] != model:
            raise ConfigError(f"{file} holds a network {about['model']!r}, and --model says {model!r}")
        _check_fit(file, about["input_shape"], about["classes"], dataset, data)
        seen = replace(data, source=replace(data.source, normalization=about["normalization"]))
        several = [untrained(seen, about["model"], 0, about.get("pair", False)) for _ in parts]
        for network, weights in zip(several, parts, strict=True):
            load_weights(network, weights, file)
        if len(several) > 1 and not cascades:
            raise ConfigError(f"{file} holds a cascade of {len(several)} networks, which only etb verify takes")
        network = several[0] if len(several) == 1 else networks.NetworkCascade(several).eval()
        for which, member in networks.members(network).items():
            own = {"dataset": dataset, "method": about["method"] + which}
            trained.append(Trained(member.to(device), about | own))
    return data, sorted(trained, key=_order)


def _read(file: Path) -> tuple[list[dict[str, torch.Tensor]], dict[str, Any]]:
    """Return the weights of a file, and what it says about them, checked; nothing where it is not ours."""
    weights, about = read_weights(file)
    if not about:
        return weights, about
    try:
        return weights, _About.model_validate(about).model_dump(exclude_unset=True)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise CheckpointError(f"{file} says of its weights, at {where}: {first['msg'].lower()}") from error


def _restore_onnx(path: Path, request: Evaluated, device: str) -> tuple[Dataset, list[Trained]]:
    if request.model is not None:
        raise ConfigError(f"{path} holds its own architecture: leave --model out")
    network, shape = read_onnx(path)
    dataset, data = _data(path, request.dataset, request, device)
    _check_fit(path, shape, network(torch.zeros(1, *shape)).shape[1], dataset, data)
    return data, [Trained(network.to(device), _unknown(path, "onnx", dataset, data))]


def _data(path: Path, dataset: str | None, request: Evaluated, device: str) -> tuple[str, Dataset]:
    """Return the data set's name, checked to be known, and the data set."""
    if dataset is None:
        raise ConfigError(f"{path} does not say which data set it is for: name one by --dataset")
    return dataset, load(dataset, data_dir=request.data_dir, test_limit=request.test_limit, device=device)


def _check_fit(file: Path, shape: tuple[int, ...], classes: int, dataset: str, data: Dataset) -> None:
    if (shape, classes) != (data.input_shape, data.classes):
        raise CheckpointError(
            f"{file} is for images {list(shape)} and {classes} classes; "
            f"{dataset} has {list(data.input_shape)} and {data.classes}"
        )


def _files(path: Path) -> list[Path]:
    path = in_zoo(path)
    if not path.is_dir():
        return [path]
    files = sorted([*path.glob("cells/*/last.safetensors"), *path.glob("last.safetensors")])
    if not files:
        raise CheckpointError(f"{path} holds no weights (cells/*/last.safetensors)")
    return files


def _order(trained: Trained) -> tuple[str, str, float, int]:
    about = trained.about
    return about["method"], about["model"], about["eps"] or 0.0, about["seed"] or 0


def _unknown(file: Path, model: str | None, dataset: str, data: Dataset) -> dict[str, Any]:
    """Return what is known of weights that are not ours."""
    if model is None:
        raise ConfigError(f"{file} does not say which architecture it is for: name one by --model")
    about = describe(file.stem, model, dataset, 0.0, 0, data)
    return about | {"eps": None, "seed": None, "normalization": None}
