"""Rounding: bounds that hold for the real numbers, and not for floating-point sums alone.

Within `rigorous` every walk takes off what rounding may have added. A sum of n products in any order is off by at most
gamma_n = n u / (1 - n u) times the sum of the products' sizes (Higham 2002, section 3.1), and no value of the network
is larger than its *size*, which an interval walk bounds. So a row a that passes an affine map y = W x + b is off by at
most gamma |a| (|W| size(x) + |b|), one product with a value that is known for all rows; likewise at an activation and
at the input. All in float64, on a CPU: elsewhere convolutions may be summed in ways that this does not cover. What is
bounded is the network with its weights as they are stored, and the box whose ends are the numbers given.
"""

import contextlib
from collections.abc import Iterator, Sequence
from contextvars import ContextVar
from typing import NamedTuple

import torch
from torch import Tensor

from etb_plugin.errors import ConfigError
from etb_plugin.graph.rows import Rows

_rigorous: ContextVar[bool] = ContextVar("rigorous", default=False)

_FIXED = 64
"""Operations that a step takes beside its sum: slopes, chords, constants, ends from centre and radius."""
TINY = 1e-290
"""What is added to a size, so that sums of numbers near the least ones are covered too."""


@contextlib.contextmanager
def rigorous(wanted: bool = True) -> Iterator[None]:
    """Within the context, where that is `wanted`, bounds hold in real arithmetic: `ibp`, `crown-ibp`, `crown` and
    `alpha-crown`, of boxes, in float64 on a CPU. Raises ConfigError for others as they are called."""
    token = _rigorous.set(wanted or are_rigorous())
    try:
        yield
    finally:
        _rigorous.reset(token)


def are_rigorous() -> bool:
    """Whether bounds have to hold in real arithmetic."""
    return _rigorous.get()


def check_rigorous(like: Tensor, *, takes: bool = True) -> None:
    """Raise ConfigError where a bound with values `like` cannot be rigorous, and has to be."""
    if are_rigorous() and not (takes and like.dtype == torch.float64 and like.device.type == "cpu"):
        raise ConfigError("rigorous bounds are ibp, crown-ibp, crown and alpha-crown of boxes, in float64 on a CPU")


def gamma(*counts: int) -> float:
    """Return twice a bound of gamma_n for sums as long as all `counts` together: it covers its own rounding too."""
    return 2 * (sum(counts) + _FIXED) * torch.finfo(torch.float64).eps


class Sizes(NamedTuple):
    """Bounds of every node's value, and of what its operation adds up, both [batch or 1, *features]."""

    values: Sequence[Tensor]
    made: Sequence[Tensor]


class Slack:
    """What rounding may have added to rows on one way back: `total` [groups or 1, number]."""

    def __init__(self, sizes: Sizes) -> None:
        self._sizes, self._made = sizes
        self.total: Tensor | float = 0.0

    @torch.no_grad()
    def pass_node(self, i: int, arriving: Rows, leaving: Sequence[Rows], inputs: Sequence[int]) -> None:
        """Take note of rows that pass node `i`, from its output to its inputs."""
        made = self._made[i]
        factor = gamma(len(self._sizes), made[0].numel(), *(self._sizes[j][0].numel() for j in inputs))
        self._add(factor, arriving, made)
        for rows, j in zip(leaving, inputs, strict=True):
            self._add(factor, rows, self._sizes[j])

    @torch.no_grad()
    def reach(self, i: int, rows: Rows) -> None:
        """Take note of rows whose values over the range of node `i` are taken: the input, or another one."""
        size = self._sizes[i]
        self._add(gamma(size[0].numel(), len(self._sizes)), rows, size)

    def _add(self, factor: float, rows: Rows, size: Tensor) -> None:
        rows = rows.with_values(rows.values.detach().abs())
        self.total = self.total + factor * rows.dot(size)
