"""The loop: one for every method, on any device, resumable after every epoch and wherever it is asked to stop."""

import copy
import json
import math
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from etb_plugin.data import Batches, Dataset, middle
from etb_plugin.errors import Stopped, tell
from etb_plugin.files import write_file
from etb_plugin.networks import initialize_for_ibp, measure_statistics
from etb_plugin.networks.checkpoints import save_weights
from etb_plugin.objectives import Method, Point, Run, get_method
from etb_plugin.precision import repeatable
from etb_plugin.shown import Shown
from etb_plugin.training.averaging import Average
from etb_plugin.training.capture import TakeStep, as_taken
from etb_plugin.training.cost import PeakMemory, StepTimer
from etb_plugin.training.diagnosis import Diagnosis
from etb_plugin.training.estimates import Estimate
from etb_plugin.training.optimizers import optimizer_of, set_rate
from etb_plugin.training.schedule import Schedule
from etb_plugin.training.state import Partial, State, forget_before, read_state
from etb_plugin.training.step import Step, Sums
from etb_plugin.training.team import Team

_WATCH_EVERY = 0.25
"""Seconds between two looks at the loss: each look waits for the device."""
_TEAM_WATCH_EVERY = 20
"""Batches between two looks of several processes, which have to look together."""
_TRUST = 5.0
"""Seconds of steps that count as much as the estimate made before: the first step of a process is slow."""
_PROBE_STEPS, _PROBE_SECONDS = 30, 5.0


@dataclass(frozen=True)
class Settings:
    """One run's own numbers. `eps` in pixel units; a `learning_rate` of None is the recipe's.

    `compile` has torch compile the network's own passes, those of attacks included; bounds walk the layers one by one
    and stay as they are. `capture` lets steps on a GPU be replayed as CUDA graphs.
    """

    eps: float
    epochs: int
    batch_size: int = 100
    learning_rate: float | None = None
    seed: int = 0
    compile: bool = False
    capture: bool = True


@dataclass(frozen=True)
class Epoch:
    """Means over one epoch (`gradient_norm`, l2 over all weights, before any cut), the schedule at its last step, what
    `Diagnosis` says at its end, and its duration."""

    epoch: int
    loss: float
    clean_loss: float
    robust_loss: float
    accuracy: float
    gradient_norm: float
    eps: float
    kappa: float
    mix: float
    learning_rate: float
    seconds: float
    step_ms: float
    unstable: float | None = None
    width: float | None = None
    certified_accuracy: float | None = None
    pgd_accuracy: float | None = None


@dataclass(frozen=True)
class Progress:
    """Where a run stands: `step` of `steps`, means since the epoch began, and the time left: at first as the run's
    `cost` has it, then at this epoch's pace, other phases of the schedule taking longer or shorter as the cost says."""

    epoch: int
    step: int
    steps: int
    loss: float
    accuracy: float
    eps: float
    images_per_second: float
    seconds_left: float


@dataclass(frozen=True)
class Training(Shown):
    """A run's epochs, and what it cost.

    `nominal_step_ms` is the median nominal step of the same network and batch size, timed just before the run.
    """

    epochs: tuple[Epoch, ...]
    nominal_step_ms: float
    peak_memory_mib: float

    def rows(self) -> list[dict[str, Any]]:
        """Return a row for each epoch."""
        return [asdict(epoch) for epoch in self.epochs]

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


@torch.inference_mode(False)
@torch.enable_grad()
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
    cost: Estimate | None = None,
) -> Training:
    """Train `network` in place, on the device that it and `data` are on, and leave it in eval mode.

    With a `folder` every epoch leaves there state.pt, last.safetensors and best.safetensors (the epoch with the
    lowest mean loss among those at the final eps and kappa; the test images have no say), and a run that finds a
    state.pt goes on from it, to the same bits as if it had never stopped; metrics.jsonl has a line for each epoch.
    Where `watch` raises Stopped, which it may after any batch, state.pt is written first. `about` is kept with the
    weights. `after_epoch` may look at the network before the epoch is saved, and leaves it as it was. `cost` tells how
    much longer other phases of the schedule take than the one at hand, for the time that is left. Equal seeds give
    equal runs; torch's own generators are left as they were. Where torchrun started several processes, they train the
    network together (`team`), and the first one writes. Raises TrainingError, naming epoch and batch, where the loss is
    not finite, and CheckpointError for a state.pt that cannot be read.
    """
    team = Team.current()
    device = data.train.images.device
    generator = torch.Generator(device).manual_seed(settings.seed)
    batches = Batches.of(data, settings.batch_size, generator)
    schedule = schedule_of(method, data, settings)
    cost = cost or Estimate((0,), (1.0,), schedule.run.steps, 0.0)
    loss = method.prepare(network, data.input_shape, data.classes)
    diagnosis = Diagnosis(network, data, settings.eps, settings.epochs, len(batches))
    state = State(network, optimizer_of(method.recipe, network.parameters(), schedule.learning_rate), generator)
    writes = folder if team.leads else None
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []), repeatable():
        torch.manual_seed(settings.seed)
        kept = team.shared(None if writes is None else read_state(writes / "state.pt", tell))
        if kept is not None:
            state.load(kept, f"{folder}/state.pt")
        else:
            if method.recipe.initialization == "ibp":
                initialize_for_ibp(network)
            state.costs["nominal_step_ms"] = _nominal_step_ms(network, data, settings)
        memory = PeakMemory(device)
        network.train()
        sums = Sums(device, team)
        take_step = as_taken(Step(state, loss, method.recipe, sums, team), settings.batch_size, settings.capture)
        if settings.compile:
            network.compile()
        while len(state.epochs) < settings.epochs:
            try:
                epoch = _epoch(state, take_step, sums, batches, schedule, cost, settings.seed, team, watch)
            except Stopped:
                if writes is not None:
                    state.save(writes / "state.pt")
                raise
            _after_epoch(state, data, schedule, settings.batch_size)
            epoch = replace(epoch, **diagnosis.look(epoch.epoch, epoch.eps))
            settled = [e["loss"] for e in state.epochs if schedule.settled(int(e["epoch"]))]
            is_best = schedule.settled(epoch.epoch) and epoch.loss < min(settled, default=math.inf)
            state.epochs.append(asdict(epoch))
            if team.leads:
                after_epoch(epoch)
            state.costs["peak_memory_mib"] = max(memory.mib(), state.costs.get("peak_memory_mib", 0.0))
            if writes is not None:
                _save(writes, state, {**(about or {}), "epoch": epoch.epoch}, is_best)
            done, pace = len(state.epochs) * len(batches), len(data.train) / epoch.seconds
            left = cost.left(done) * epoch.seconds / (cost.left(done - len(batches)) - cost.left(done))
            watch(Progress(epoch.epoch, done, schedule.run.steps, epoch.loss, epoch.accuracy, epoch.eps, pace, left))
    if writes is not None:
        forget_before(writes / "state.pt")
    if state.average is not None:
        network.load_state_dict(state.average.network.state_dict())
    network.eval()
    network._compiled_call_impl = None
    return Training(tuple(Epoch(**e) for e in state.epochs), **state.costs)  # type: ignore[arg-type]


def _after_epoch(state: State, data: Dataset, schedule: Schedule, batch_size: int) -> None:
    """Measure batch norm's statistics over all training images, and average the weights, where the recipe says so."""
    recipe = schedule.recipe

    def images() -> Iterator[Tensor]:
        return (middle(x, data.source.crop) for x, _ in data.train.batches(batch_size))

    if recipe.precise_bn:
        measure_statistics(state.network, images())
    if recipe.swa_from is not None and schedule.reached(recipe.swa_from, len(state.epochs) + 1):
        state.average = state.average or Average.of(state.network)
        state.average.add(state.network)
        measure_statistics(state.average.network, images())


def _save(folder: Path, state: State, about: Mapping[str, Any], is_best: bool) -> None:
    """Write what a finished epoch leaves, the state last: a run goes on from it."""
    for name in ("last", "best") if is_best else ("last",):
        save_weights(state.result, folder / f"{name}.safetensors", about)
    write_file(folder / "metrics.jsonl", "".join(json.dumps(e) + "\n" for e in state.epochs))
    state.save(folder / "state.pt")


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """Return what a run's folder logs of each epoch; nothing where none has ended."""
    file = folder / "metrics.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def check_training(network: nn.Module, method: Method, data: Dataset, settings: Settings) -> None:
    """Raise UnsupportedLayer or ConfigError for what `train` cannot do, before it begins."""
    Team.current().check(network)
    method.prepare(network, data.input_shape, data.classes)
    schedule_of(method, data, settings)


def schedule_of(method: Method, data: Dataset, settings: Settings) -> Schedule:
    """Return a run's schedule. Raises ConfigError where its recipe is longer than the run."""
    rate = settings.learning_rate or method.recipe.learning_rate
    batches = -(-len(data.train) // settings.batch_size)
    return Schedule(method.recipe, settings.eps, rate, Run(settings.epochs, batches))


def _epoch(
    state: State,
    take_step: TakeStep,
    sums: Sums,
    batches: Batches,
    schedule: Schedule,
    cost: Estimate,
    seed: int,
    team: Team,
    watch: Callable[[Progress], None],
) -> Epoch:
    """Run one epoch, or the rest of one. Sums stay on the device; only a look at them, a few times a second, waits
    for it."""
    partial = state.partial = state.partial or Partial(batches.order())
    number, step = len(state.epochs) + 1, len(state.epochs) * len(batches) + partial.batches
    device = batches.split.labels.device
    sums.begin(number, partial)
    timer = StepTimer(device)
    begun = time.perf_counter() - partial.seconds
    looked = time.perf_counter()
    for images, labels in batches.cut(partial.order, partial.batches):
        point, rate = schedule.point(step), schedule.rate(step)
        set_rate(state.optimizer, rate)
        take_step(images, labels, point, team.generator(state.generator, seed, step))
        timer.lap()
        sums.batches += 1
        sums.images += len(labels)
        step += 1
        now = time.perf_counter()
        # Not behind the last batch: an epoch is stopped in the middle, or finished.
        due = now - looked >= _WATCH_EVERY if team.size == 1 else sums.batches % _TEAM_WATCH_EVERY == 0
        if due and sums.batches < len(batches):
            looked = now
            mean, _, _, accuracy, _ = sums.read()
            expected = cost.left(step - sums.batches) - cost.left(step)
            left = cost.left(step) * (now - begun + _TRUST) / (expected + _TRUST)
            images_per_second = sums.images / (now - begun)
            report = Progress(
                number, step, schedule.run.steps, mean, accuracy, float(point.eps), images_per_second, left
            )
            stopped = _told(watch, report, team, device)
            if stopped is not None:
                sums.keep(partial, now - begun)
                raise stopped
    mean, clean, robust, accuracy, gradient_norm = sums.read()
    seconds = time.perf_counter() - begun
    step_ms = timer.median_ms()
    state.partial = None
    schedule_now = (float(point.eps), float(point.kappa), float(point.mix), rate)
    return Epoch(number, mean, clean, robust, accuracy, gradient_norm, *schedule_now, seconds, step_ms)


def _told(watch: Callable[[Progress], None], report: Progress, team: Team, device: torch.device) -> Stopped | None:
    """Tell `watch`, and return why to stop, if it is so. Where one of the team is stopped, all are."""
    stopped = None
    try:
        watch(report)
    except Stopped as error:
        stopped = error
    return stopped or Stopped(signal.SIGTERM) if team.any(stopped is not None, device) else None


def _nominal_step_ms(network: nn.Module, data: Dataset, settings: Settings) -> float:
    """Return the median nominal step on a copy of the network, the yardstick of `step_ms`."""
    device = data.train.images.device
    generator = torch.Generator(device).manual_seed(settings.seed)
    batches = Batches.of(data, settings.batch_size, generator)
    trial, nominal = copy.deepcopy(network).train(), get_method("nominal")
    rate = nominal.recipe.learning_rate
    step = Step.of(trial, nominal, data.input_shape, data.classes, rate, generator)
    take_step = as_taken(step, settings.batch_size, settings.capture)
    begun, done, timer = time.perf_counter(), 0, StepTimer(device)
    while done < _PROBE_STEPS and (done < 5 or time.perf_counter() - begun < _PROBE_SECONDS):
        for images, labels in batches:
            take_step(images, labels, Point(0.0, 1.0), generator)
            timer.lap()
            done += 1
            if done >= _PROBE_STEPS:
                break
    return timer.median_ms()
