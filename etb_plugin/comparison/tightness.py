"""Tightness: how wide each bound's intervals are on a batch, what they cost, and what calibration they need."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from etb_plugin.attacks import Pgd
from etb_plugin.bounds import Box, PreparedBound, get_bound, margin_spec, prepare
from etb_plugin.data import Dataset
from etb_plugin.errors import ConfigError
from etb_plugin.evaluation.calibration import Calibration, calibrate
from etb_plugin.experiment import Evaluated
from etb_plugin.networks import before_softmax
from etb_plugin.registry import named_options
from etb_plugin.results.networks import restore


@dataclass(frozen=True)
class Tightness:
    """One bound on one batch: the mean width of its margins, that width relative to IBP's, the share of images
    whose margins are all positive, and the time of the batch."""

    name: str
    sound: bool
    width: float
    ratio_to_ibp: float
    positive: float
    milliseconds: float


def compare_bounds(
    path: Path, names: Sequence[str], request: Evaluated
) -> Iterator[tuple[dict[str, Any], float, list[Tightness]]]:
    """Yield, for each network in `path` and each test eps, what is known of the network, eps, and each bound's row.

    The batch is the first `request.test_limit` test images. A name is "name" or "name:option=value:...". Raises
    ConfigError, DataError, CheckpointError or UnsupportedLayer before the first row where something cannot work.
    """
    data, networks = restore(path, request)
    images, labels = next(data.test.batches(len(data.test)))
    prepared = [_prepared(["ibp", *names], trained.network, data.input_shape) for trained in networks]
    for trained, bounds in zip(networks, prepared, strict=True):
        about = trained.about
        for eps in _radii(request, about, data):
            box, spec = Box.around(images, eps), margin_spec(labels, data.classes, images.dtype)
            reference = bounds["ibp"](box, spec).width.mean()
            yield about, eps, [_measured(name, bounds[name], box, spec, reference) for name in names]


def calibrate_bounds(
    path: Path, names: Sequence[str], request: Evaluated, alpha: float
) -> Iterator[tuple[dict[str, Any], float, dict[str, Calibration]]]:
    """Yield, for each network in `path` and each test eps, the calibration of every bound in `names`.

    The first half of `request.test_limit` test images calibrates, the second half checks. Raises like
    `compare_bounds`, and ConfigError for a bound that takes no scale.
    """
    for name in names:
        if "scale" not in get_bound(name.partition(":")[0]).options:
            raise ConfigError(f"bound {name!r} has no scale to calibrate; expected has")
    data, networks = restore(path, request)
    attack = Pgd(request.pgd_steps, request.pgd_restarts)
    for trained in networks:
        prepared = _prepared(names, trained.network, data.input_shape)
        for eps in _radii(request, trained.about, data):
            found = {
                name: calibrate(bound, trained.network, data, eps, alpha, attack=attack, seed=request.seed)
                for name, bound in prepared.items()
            }
            yield trained.about, eps, found


def _radii(request: Evaluated, about: dict[str, Any], data: Dataset) -> tuple[float, ...]:
    """Return the test radii: those asked for, or the training one. A radius of 0 would have no widths to compare."""
    return request.eps_test or (about["eps"] or data.source.default_eps,)


def _prepared(names: Sequence[str], network: nn.Module, input_shape: tuple[int, ...]) -> dict[str, PreparedBound]:
    prepared, network = {}, before_softmax(network, input_shape)
    for text in names:
        name, values = named_options(text)
        prepared[text] = prepare(name, network, input_shape, **values)
    return prepared


@torch.no_grad()
def _measured(name: str, bound: PreparedBound, box: Box, spec: Tensor, reference: Tensor) -> Tightness:
    bound(box, spec)  # the first call also pays for set-up
    begun = _now(spec.device)
    interval = bound(box, spec)
    seconds = _now(spec.device) - begun
    width, positive = interval.width.mean(), (interval.lower > 0).all(1).double().mean()
    return Tightness(name, interval.sound, float(width), float(width / reference), float(positive), 1000 * seconds)


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
