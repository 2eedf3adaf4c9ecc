"""Gradient ascent over what relaxations choose."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

_FIRST, _SECOND, _TINY = 0.9, 0.999, 1e-8
"""How much of the moments of gradients is kept, and what is added to a deviation."""


@dataclass(frozen=True)
class Moved:
    """What a search moves, between which limits, and how fast beside others."""

    value: Tensor
    least: Tensor
    most: Tensor
    pace: float = 1.0


@dataclass
class Ascent:
    """Adam (Kingma and Ba 2015, algorithm 1), upward and between limits.

    By hand, as torch's own takes a second at its first step for imports, which a short verification is not worth.
    """

    moved: Sequence[Moved]
    rate: float
    decay: float
    """What the rate is multiplied by after each step."""
    _moments: list[tuple[Tensor, Tensor]] = field(init=False)
    _steps: int = field(init=False, default=0)

    def __post_init__(self) -> None:
        self._moments = [(torch.zeros_like(one.value), torch.zeros_like(one.value)) for one in self.moved]

    @torch.no_grad()
    def step(self, gradients: Sequence[Tensor | None]) -> None:
        """Move what has a gradient."""
        self._steps += 1
        unbiased = 1 - _FIRST**self._steps, (1 - _SECOND**self._steps) ** 0.5
        for one, gradient, (first, second) in zip(self.moved, gradients, self._moments, strict=True):
            if gradient is None:
                continue
            first.lerp_(gradient, 1 - _FIRST)
            second.mul_(_SECOND).addcmul_(gradient, gradient, value=1 - _SECOND)
            deviation = second.sqrt().div_(unbiased[1]).add_(_TINY)
            one.value.addcdiv_(first, deviation, value=self.rate * one.pace / unbiased[0]).clamp_(one.least, one.most)
        self.rate *= self.decay
