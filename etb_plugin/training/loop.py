"""The loop: one for every method, on any device, resumable after every epoch and wherever it is asked to stop."""

import copy
import json
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import nn

from etb_plugin.data import Batches, Dataset
from etb_plugin.errors import Stopped, TrainingError
from etb_plugin.networks.checkpoints import save_weights
from etb_plugin.objectives import Loss, Losses, Method, Point, Recipe, Run
from etb_plugin.objectives.nominal import Nominal
from etb_plugin.runs import write_file
from etb_plugin.training.cost import PeakMemory, StepTimer
from etb_plugin.training.schedule import Schedule
from etb_plugin.training.state import Partial, State

_WATCH_EVERY = 0.25
"""Seconds between two looks at the loss: each look waits for the device."""
_PROBE_STEPS, _PROBE_SECONDS = 30, 5.0


@dataclass(frozen=True)
class Settings:
    """One run's own numbers. `eps` in pixel units; a `learning_rate` of None is the recipe's."""

    eps: float
    epochs: int
    batch_size: int = 100
    learning_rate: float | None = None
    seed: int = 0


@dataclass(frozen=True)
class Epoch:
    """Means over one epoch, eps and kappa at its last step, and its duration."""

    epoch: int
    loss: float
    clean_loss: float
    robust_loss: float
    accuracy: float
    eps: float
    kappa: float
    learning_rate: float
    seconds: float
    step_ms: float


@dataclass(frozen=True)
class Progress:
    """Where a run stands: `step` of `steps`, means since the epoch began, and the time left at this epoch's pace."""

    epoch: int
    step: int
    steps: int
    loss: float
    accuracy: float
    eps: float
    images_per_second: float
    seconds_left: float


@dataclass(frozen=True)
class Training:
    """A run's epochs, and what it cost.

    `nominal_step_ms` is the median nominal step of the same network and batch size, timed just before the run.
    """

    epochs: tuple[Epoch, ...]
    nominal_step_ms: float
    peak_memory_mib: float

    @property
    def train_seconds(self) -> float:
        """The duration of all epochs, those before an interruption included."""
        return sum(epoch.seconds for epoch in self.epochs)

    @property
    def seconds_per_epoch(self) -> float:
        """The median duration of an epoch."""
        return median(epoch.seconds for epoch in self.epochs)

    @property
    def step_ms(self) -> float:
        """The median over epochs of the median step."""
        return median(epoch.step_ms for epoch in self.epochs)


def train(
    network: nn.Module,
    method: Method,
    data: Dataset,
    settings: Settings,
    *,
    folder: Path | None = None,
    about: Mapping[str, Any] | None = None,
    watch: Callable[[Progress], None] = lambda _: None,
    after_epoch: Callable[[Epoch], None] = lambda _: None,
) -> Training:
    """Train `network` in place, on the device that it and `data` are on, and leave it in eval mode.

    With a `folder` every epoch leaves there state.pt, last.safetensors and best.safetensors (the epoch with the
    lowest mean loss among those at the final eps and kappa; the test images have no say), and a run that finds a
    state.pt goes on from it, to the same bits as if it had never stopped; metrics.jsonl has a line for each epoch.
    Where `watch` raises Stopped, which it may after any batch, state.pt is written first. `about` is kept with the
    weights. `after_epoch` may look at the network before the epoch is saved, and leaves it as it was. Equal seeds give
    equal runs; torch's own generators are left as they were. Raises TrainingError, naming epoch and batch, where the
    loss is not finite, and CheckpointError for a state.pt that cannot be read.
    """
    device = data.train.images.device
    generator = torch.Generator(device).manual_seed(settings.seed)
    batches = Batches(data.train, settings.batch_size, generator, data.source.crop_padding, data.source.flip)
    schedule = _schedule(method, settings, len(batches))
    loss = method.objective.prepare(network, data.input_shape, data.classes)
    state = State(network, _optimizer(network, method.recipe, schedule.learning_rate), generator)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(settings.seed)
        if folder is not None and (folder / "state.pt").exists():
            state.load(folder / "state.pt")
        else:
            state.costs["nominal_step_ms"] = _nominal_step_ms(network, data, settings)
        memory = PeakMemory(device)
        network.train()
        while len(state.epochs) < settings.epochs:
            try:
                epoch = _epoch(state, loss, batches, schedule, method.recipe.micro_batch, watch)
            except Stopped:
                if folder is not None:
                    state.save(folder / "state.pt")
                raise
            settled = [e["loss"] for e in state.epochs if schedule.settled(int(e["epoch"]))]
            is_best = schedule.settled(epoch.epoch) and epoch.loss < min(settled, default=math.inf)
            state.epochs.append(asdict(epoch))
            after_epoch(epoch)
            state.costs["peak_memory_mib"] = max(memory.mib(), state.costs.get("peak_memory_mib", 0.0))
            if folder is not None:
                for name in ("last", "best") if is_best else ("last",):
                    save_weights(network, folder / f"{name}.safetensors", {**(about or {}), "epoch": epoch.epoch})
                write_file(folder / "metrics.jsonl", "".join(json.dumps(e) + "\n" for e in state.epochs))
                state.save(folder / "state.pt")
            done, left = len(state.epochs) * len(batches), (settings.epochs - len(state.epochs)) * epoch.seconds
            pace = len(data.train) / epoch.seconds
            watch(Progress(epoch.epoch, done, schedule.run.steps, epoch.loss, epoch.accuracy, epoch.eps, pace, left))
    network.eval()
    return Training(tuple(Epoch(**e) for e in state.epochs), **state.costs)  # type: ignore[arg-type]


def check_training(network: nn.Module, method: Method, data: Dataset, settings: Settings) -> None:
    """Raise UnsupportedLayer or ConfigError where `train` would, before it begins."""
    method.objective.prepare(network, data.input_shape, data.classes)
    _schedule(method, settings, -(-len(data.train) // settings.batch_size))


def _schedule(method: Method, settings: Settings, batches: int) -> Schedule:
    rate = settings.learning_rate or method.recipe.learning_rate
    return Schedule(method.recipe, settings.eps, rate, Run(settings.epochs, batches))


def _epoch(
    state: State,
    loss: Loss,
    batches: Batches,
    schedule: Schedule,
    micro_batch: int | None,
    watch: Callable[[Progress], None],
) -> Epoch:
    """Run one epoch, or the rest of one. Sums stay on the device; only a look at them, a few times a second, waits
    for it."""
    partial = state.partial = state.partial or Partial(batches.order())
    number, step = len(state.epochs) + 1, len(state.epochs) * len(batches) + partial.batches
    sums = _Sums(number, batches.split.labels.device, partial)
    timer = StepTimer(batches.split.labels.device)
    begun = time.perf_counter() - partial.seconds
    looked = time.perf_counter()
    for images, labels in batches.cut(partial.order, partial.batches):
        point, rate = schedule.point(step), schedule.rate(step)
        for group in state.optimizer.param_groups:
            group["lr"] = rate
        state.optimizer.zero_grad(set_to_none=True)
        size = micro_batch or len(labels)
        for part, part_labels in zip(images.split(size), labels.split(size), strict=True):
            losses = loss(part, part_labels, point, state.generator)
            (losses.total * (len(part) / len(images))).backward()
            sums.add(losses, len(part))
        state.optimizer.step()
        timer.lap()
        sums.batches += 1
        step += 1
        now = time.perf_counter()
        # Not behind the last batch: an epoch is stopped in the middle, or finished.
        if now - looked >= _WATCH_EVERY and sums.batches < len(batches):
            looked = now
            mean, _, _, accuracy = sums.read()
            sums.keep(partial, now - begun)
            pace = (now - begun) / sums.batches
            left = pace * (schedule.run.steps - step)
            images_per_second = sums.images / (now - begun)
            watch(Progress(number, step, schedule.run.steps, mean, accuracy, point.eps, images_per_second, left))
    mean, clean, robust, accuracy = sums.read()
    seconds = time.perf_counter() - begun
    step_ms = timer.median_ms()
    state.partial = None
    return Epoch(number, mean, clean, robust, accuracy, point.eps, point.kappa, rate, seconds, step_ms)


class _Sums:
    """Running sums of an epoch, on the device, and the first batch whose loss is not finite."""

    def __init__(self, epoch: int, device: torch.device, partial: Partial) -> None:
        self.images, self.batches = partial.images, partial.batches  # finished ones
        self._epoch = epoch
        self._sums = torch.tensor(partial.sums, dtype=torch.float64, device=device)
        self._first_bad = torch.full((), -1, device=device)

    def add(self, losses: Losses, count: int) -> None:
        total = losses.total.detach()
        bad = (self._first_bad < 0) & ~total.isfinite()
        self._first_bad = torch.where(bad, self.batches + 1, self._first_bad)
        # The losses are means over the batch; `correct` is a count already.
        self._sums += torch.stack(
            [total * count, losses.clean * count, losses.robust * count, losses.correct.to(total.dtype)]
        )
        self.images += count

    def keep(self, partial: Partial, seconds: float) -> None:
        """Write where the epoch stands into `partial`."""
        partial.batches, partial.images, partial.seconds = self.batches, self.images, seconds
        partial.sums = tuple(self._sums.tolist())

    def read(self) -> tuple[float, float, float, float]:
        """Return the mean loss, its clean and robust parts, and the accuracy. Waits for the device."""
        first_bad = int(self._first_bad)
        if first_bad >= 0:
            raise TrainingError(
                f"the loss is not finite in epoch {self._epoch}, batch {first_bad}; "
                f"try a lower learning rate (--lr) or a smaller eps"
            )
        total, clean, robust, correct = (self._sums / self.images).tolist()
        return total, clean, robust, correct


def _optimizer(network: nn.Module, recipe: Recipe, rate: float) -> torch.optim.Optimizer:
    if recipe.optimizer == "sgd":
        return torch.optim.SGD(network.parameters(), rate, recipe.momentum, weight_decay=recipe.weight_decay)
    return torch.optim.Adam(network.parameters(), rate, weight_decay=recipe.weight_decay)


def _nominal_step_ms(network: nn.Module, data: Dataset, settings: Settings) -> float:
    """Return the median nominal step on a copy of the network, the yardstick of `step_ms`."""
    device = data.train.images.device
    generator = torch.Generator(device).manual_seed(settings.seed)
    batches = Batches(data.train, settings.batch_size, generator, data.source.crop_padding, data.source.flip)
    trial = copy.deepcopy(network).train()
    optimizer = torch.optim.Adam(trial.parameters())
    loss = Nominal().prepare(trial, data.input_shape, data.classes)
    begun, done, timer = time.perf_counter(), 0, StepTimer(device)
    while done < _PROBE_STEPS and (done < 5 or time.perf_counter() - begun < _PROBE_SECONDS):
        for images, labels in batches:
            optimizer.zero_grad(set_to_none=True)
            loss(images, labels, Point(0.0, 1.0), generator).total.backward()
            optimizer.step()
            timer.lap()
            done += 1
            if done >= _PROBE_STEPS:
                break
    return timer.median_ms()
