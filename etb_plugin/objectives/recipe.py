"""Recipes: a method's default numbers, and the small pieces that schedules are made of.

A *span* is a piece of training: a share of the whole run (0.5), "10 epochs" or "2000 steps". Our own recipes are
written in shares, so that short runs ramp too; the papers' are in steps and epochs.
"""

import re
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, ConfigDict

from etb_plugin.errors import ConfigError

Span = float | str

_SPAN = re.compile(r"(\d+(?:\.\d+)?) (steps?|epochs?)")


@dataclass(frozen=True)
class Run:
    """How long a run is: `epochs` epochs of `batches` steps."""

    epochs: int
    batches: int

    @property
    def steps(self) -> int:
        """The number of steps of the whole run."""
        return self.epochs * self.batches

    def share(self, span: Span) -> float:
        """Return the share of the run that `span` is; more than 1 where it is longer than the run."""
        if not isinstance(span, str):
            return span
        amount, unit = _parsed(span)
        return amount * (self.batches if unit.startswith("epoch") else 1) / self.steps


@dataclass(frozen=True)
class Ramp:
    """A number that waits at `start` for the span `wait`, and moves to `end` over `length`: in a line, or `smooth`, as
    a fourth power over the first quarter and in the line that touches it from there on (Xu et al. 2020)."""

    start: float
    end: float
    wait: Span = 0.0
    length: Span = 0.0
    form: Literal["linear", "smooth"] = "linear"
    __pydantic_config__ = ConfigDict(extra="forbid")

    def __post_init__(self) -> None:
        spans = [span for span in (self.wait, self.length) if not isinstance(span, str)]
        if not (all(span >= 0 for span in spans) and sum(spans) <= 1):
            raise ConfigError(f"a ramp waits and moves within the shares 0 to 1; got {self.wait} and {self.length}")
        for span in {self.wait, self.length} - set(spans):
            _parsed(str(span))

    def at(self, step: int, run: Run) -> float:
        """Return the value at `step`, counted from 0."""
        progress, wait, length = step / run.steps, run.share(self.wait), run.share(self.length)
        if progress >= wait + length:
            return self.end
        if progress <= wait:
            return self.start
        share = (progress - wait) / length
        return self.start + (self.end - self.start) * (_smooth(share) if self.form == "smooth" else share)

    def settled_at(self, run: Run) -> float:
        """Return the share of the run after which `end` holds."""
        return run.share(self.wait) + run.share(self.length)


def _smooth(share: float) -> float:
    bent, power = 0.25, 4
    height = bent / (bent + power * (1 - bent))  # of the curve where the line begins, which ends at 1
    if share < bent:
        return height * (share / bent) ** power
    return height + (1 - height) * (share - bent) / (1 - bent)


def _ramp(value: Any) -> Any:
    """Let a plain number stand for a ramp that stays there."""
    return Ramp(value, value) if isinstance(value, int | float) and not isinstance(value, bool) else value


def _parsed(span: str) -> tuple[float, str]:
    match = _SPAN.fullmatch(span)
    if match is None:
        raise ConfigError(f"{span!r} is no length of training; write 2000 steps, 10 epochs, or a share such as 0.5")
    return float(match[1]), match[2]


RampOrNumber = Annotated[Ramp, BeforeValidator(_ramp)]


@dataclass(frozen=True)
class Recipe:
    """Defaults of a method. `source` says where they come from.

    `eps_ramp` is a factor of the training eps; `kappa` and `mix` are the objective's; the learning rate is multiplied
    by `decay` after each of the spans `decay_at`; gradients longer than `gradient_clip` (l2, all weights together) are
    cut to it; weights begin as torch draws them, or as `networks.initialize_for_ibp` does.

    A batch is worked through in parts of `micro_batch` images, whose gradients add up to the batch's: less memory, and
    on a CPU faster, where an objective's rows outgrow the caches. Batch norm then normalises all passes by the whole
    batch's statistics.

    `robust_weight` w, where given, holds throughout in place of kappa: (1 - w) clean + w robust. `l1` weighs the sum of
    all weights' sizes, and `regulariser` the terms of Shi et al. 2021 (`objectives/regularisers.py`, `tolerance` their
    tau), fading as the radius grows. Bounds and attacks within a step normalise by the statistics of the clean batch,
    or with `bn` "running" by batch norm's running ones; with `precise_bn` these are measured anew over all training
    images after each epoch. From the span `swa_from` on, the mean of the weights after each epoch is what is kept and
    tested.
    """

    source: str
    optimizer: Literal["adam", "sgd"] = "adam"
    learning_rate: float = 1e-3
    momentum: float = 0.0
    weight_decay: float = 0.0
    decay_at: tuple[Span, ...] = ()
    decay: float = 0.1
    gradient_clip: float | None = None
    initialization: Literal["torch", "ibp"] = "torch"
    eps_ramp: RampOrNumber = Ramp(1.0, 1.0)
    kappa: RampOrNumber = Ramp(1.0, 1.0)
    mix: RampOrNumber = Ramp(0.0, 0.0)
    micro_batch: int | None = None
    robust_weight: float | None = None
    l1: float = 0.0
    regulariser: float = 0.0
    tolerance: float = 0.5
    bn: Literal["running", "clean"] = "clean"
    precise_bn: bool = False
    swa_from: Span | None = None

    def __post_init__(self) -> None:
        if self.robust_weight is not None and not 0 <= self.robust_weight <= 1:
            raise ConfigError(f"robust_weight is a share from 0 to 1; got {self.robust_weight}")
        for name in ("l1", "regulariser"):
            if not getattr(self, name) >= 0:
                raise ConfigError(f"{name} is a weight from 0 on; got {getattr(self, name)}")
        if isinstance(self.swa_from, str):
            _parsed(self.swa_from)
