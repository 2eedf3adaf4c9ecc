"""Epochs of training as a run has them, shuffling, augmentation, measuring and saving included, beside nominal ones."""

import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from statistics import median

import torch

from etb_plugin.bench.steps import SHAPES
from etb_plugin.data import Dataset, Split, sources
from etb_plugin.objectives import Method, get_method
from etb_plugin.objectives.recipe import Ramp
from etb_plugin.results.networks import untrained
from etb_plugin.training import Settings, train

_EPOCHS = 4
_TESTED = 100


@dataclass(frozen=True)
class EpochCost:
    """A method's epochs, from one end to the next, so that what is saved and measured between two counts: seconds
    (median, least, most), the median of nominal epochs just before, and the run's peak memory in MiB."""

    method: str
    model: str
    dataset: str
    images: int
    batch_size: int
    median_seconds: float
    least_seconds: float
    most_seconds: float
    nominal_seconds: float
    mib: float

    @property
    def ratio(self) -> float:
        """How many nominal epochs one of the method's takes."""
        return self.median_seconds / self.nominal_seconds


def measure_epochs(
    wanted: Mapping[str, Method], model: str, dataset: str, eps: float, images: int, batch_size: int, device: str
) -> Iterator[EpochCost]:
    """Yield what an epoch of so many random images costs by each method at the end of its schedule, eps in pixel units.
    Raises UnsupportedLayer for a method that cannot take the network."""
    data = _random_images(dataset, images, device)
    for name, method in wanted.items():
        nominal, _ = _trained(get_method("nominal"), model, data, eps, batch_size, device)
        seconds, mib = _trained(method, model, data, eps, batch_size, device)
        yield EpochCost(
            name, model, dataset, images, batch_size, median(seconds), min(seconds), max(seconds), median(nominal), mib
        )


def _random_images(name: str, count: int, device: str) -> Dataset:
    generator = torch.Generator(device).manual_seed(0)

    def split(number: int) -> Split:
        images = torch.randint(256, (number, *SHAPES[name]), generator=generator, device=device).to(torch.uint8)
        return Split(images, torch.randint(10, (number,), generator=generator, device=device))

    return Dataset(name, split(count), split(_TESTED), classes=10, source=sources()[name])


def _trained(
    method: Method, model: str, data: Dataset, eps: float, batch_size: int, device: str
) -> tuple[list[float], float]:
    """Return the seconds of each epoch, and the peak memory, of a run that begins where its schedule ends."""
    recipe = method.recipe
    eps_ramp, kappa, mix = (Ramp(ramp.end, ramp.end) for ramp in (recipe.eps_ramp, recipe.kappa, recipe.mix))
    at_end = replace(recipe, eps_ramp=eps_ramp, kappa=kappa, mix=mix, decay_at=(), swa_from=None)
    method = replace(method, recipe=at_end)
    network = untrained(data, model, 0, method.pair).to(device)
    ends_at: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        settings = Settings(eps, _EPOCHS, batch_size, learning_rate=1e-5)
        run = train(
            network,
            method,
            data,
            settings,
            folder=Path(folder),
            after_epoch=lambda _: ends_at.append(time.perf_counter()),
        )
    return [after - before for before, after in pairwise(ends_at)], run.peak_memory_mib
