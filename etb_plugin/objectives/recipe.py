"""Recipes: a method's default numbers. Durations are shares of all training steps, so that short runs ramp too."""

from dataclasses import dataclass
from typing import Literal

from etb_plugin.errors import ConfigError


@dataclass(frozen=True)
class Ramp:
    """A number that waits at `start` for the share `wait` of training, and moves linearly to `end` over `length`."""

    start: float
    end: float
    wait: float = 0.0
    length: float = 0.0

    def __post_init__(self) -> None:
        if not (self.wait >= 0 and self.length >= 0 and self.wait + self.length <= 1):
            raise ConfigError(f"a ramp waits and moves within the shares 0 to 1; got {self.wait} and {self.length}")

    def at(self, progress: float) -> float:
        """Return the value after the share `progress` of all steps."""
        if self.settled(progress):
            return self.end
        if progress <= self.wait:
            return self.start
        return self.start + (self.end - self.start) * (progress - self.wait) / self.length

    def settled(self, progress: float) -> bool:
        """Whether `end` is reached."""
        return progress >= self.wait + self.length


@dataclass(frozen=True)
class Recipe:
    """Defaults of a method. `source` says where they come from.

    `eps` is a factor of the training eps; `kappa` and `mix` are the objective's; the learning rate falls tenfold at
    each of the shares `decay_at`. A batch is worked through in parts of `micro_batch` images, whose gradients add up
    to the batch's: less memory, and on a CPU faster, where an objective's rows outgrow the caches. Batch norm sees
    the parts.
    """

    source: str
    optimizer: Literal["adam", "sgd"] = "adam"
    learning_rate: float = 1e-3
    momentum: float = 0.0
    weight_decay: float = 0.0
    decay_at: tuple[float, ...] = ()
    eps: Ramp = Ramp(1.0, 1.0)
    kappa: Ramp = Ramp(1.0, 1.0)
    mix: Ramp = Ramp(0.0, 0.0)
    micro_batch: int | None = None
