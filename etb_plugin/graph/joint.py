"""Functions of several values: the elements along the last axis of their input, and planes below and above them."""

import torch
from torch import Tensor

from etb_plugin.graph.activations import Curved, extremes

_LOST = 200.0
"""How far below the largest of several values the exponential of another is nothing beside its own."""


class Product(Curved):
    """The product of two values: [batch, *features, 2] -> [batch, *features].

    On a rectangle it lies between two planes below and two above (McCormick 1976), each of which touches it at three
    corners; whatever is between the two is sound too.
    """

    joins = True

    def forward(self, z: Tensor) -> Tensor:
        return z[..., 0] * z[..., 1]

    def range(self, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        (a, b), (c, d) = low.unbind(-1), high.unbind(-1)
        return extremes(a * b, a * d, c * b, c * d)

    def piece(self, z: Tensor, deviation: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        return z.flip(-1), -self.forward(z)

    def moments(self, mean: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
        square = mean.square()
        spread = self.forward(square + variance) - self.forward(square)
        return self.forward(mean), spread  # of independent factors

    def chosen(self, share: Tensor, low: Tensor, high: Tensor, sign: int) -> tuple[Tensor, Tensor]:
        one, other = self._planes(low, high, sign)
        slope = torch.lerp(one.flip(-1), other.flip(-1), share.unsqueeze(-1))
        intercept = -torch.lerp(self.forward(one), self.forward(other), share)
        return slope, intercept - sign * self._rounding(low, high)

    def usual(self, low: Tensor, high: Tensor, sign: int) -> Tensor:
        """The plane that touches the product where it is least, or greatest, on the rectangle."""
        one, other = (self.forward(corner) for corner in self._planes(low, high, sign))
        return (sign * (one - other) > 0).to(low.dtype)

    def parallel(self, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        center, radius = (low + high) / 2, (high - low) / 2
        middle, off = -self.forward(center), self.forward(radius) + self._rounding(low, high)
        return center.flip(-1), middle - off, middle + off

    def _planes(self, low: Tensor, high: Tensor, sign: int) -> tuple[Tensor, Tensor]:
        """Return the corners (x, y) of the two planes x y' + y x' - x y in (x', y'): where two edges meet that both lie
        in the plane."""
        if sign > 0:
            return low, high
        turned = torch.stack([low[..., 0], high[..., 1]], -1)
        return turned, torch.stack([high[..., 0], low[..., 1]], -1)

    def _rounding(self, low: Tensor, high: Tensor) -> Tensor:
        return 8 * torch.finfo(low.dtype).eps * self.forward(torch.maximum(low.abs(), high.abs())).detach()


class LogSumExp(Curved):
    """log sum exp of n values, but those that are `hidden` [*features, n]: [batch, *features, n] -> [batch, *features].

    It is convex, so each tangent plane lies below it. Above it lies log t + (sum of chords) / t - 1 for every t > 0,
    the chords being those of the exponentials, since a logarithm lies below its tangents; t is their sum in the middle.
    """

    joins = True

    def __init__(self, hidden: Tensor | None = None) -> None:
        self.hidden = hidden

    def forward(self, z: Tensor) -> Tensor:
        return self._seen(z).logsumexp(-1)

    def range(self, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        return self.forward(low), self.forward(high)

    def piece(self, z: Tensor, deviation: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        slope = self._zero(self._seen(z).softmax(-1))
        return slope, self.forward(z) - (slope * z).sum(-1)

    def moments(self, mean: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
        return self.forward(mean), (self.piece(mean)[0].square() * variance).sum(-1)

    def chosen(self, share: Tensor, low: Tensor, high: Tensor, sign: int) -> tuple[Tensor, Tensor]:
        low, high = self._seen(low), self._seen(high)
        if sign > 0:
            slope, intercept = self.piece(torch.lerp(low, high, share.unsqueeze(-1)))
            assert intercept is not None
        else:
            slope, intercept = self._above(low, high)
            slope, intercept = slope.expand(*torch.broadcast_shapes(slope.shape[:-1], share.shape), -1), intercept
        return slope, intercept - sign * self._rounding(low, high)

    def parallel(self, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        low, high = self._seen(low), self._seen(high)
        slope, below = self.line(low, high, 1)
        steep, above = self.line(low, high, -1)
        farthest = torch.maximum((steep - slope) * low, (steep - slope) * high).sum(-1)
        return slope, below, above + farthest + self._rounding(low, high)

    def _above(self, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        largest = high.amax(-1, keepdim=True).detach()
        first, last = (low - largest).exp(), (high - largest).exp()  # at most 1, and the last of one value is that
        run = high - low
        flat = run <= torch.finfo(low.dtype).eps * (low.abs() + high.abs())
        chord = torch.where(flat, last, (last - first) / torch.where(flat, 1.0, run))
        # Through the upper end, and above the lower one too, whatever rounding made of the chord.
        chord, at_zero = self._zero(chord), self._zero(torch.maximum(last - chord * high, first - chord * low))
        total = (chord * (low + high) / 2 + at_zero).sum(-1, keepdim=True)
        intercept = total.log() + (at_zero / total).sum(-1, keepdim=True) - 1 + largest
        return chord / total, intercept[..., 0]

    def _seen(self, z: Tensor) -> Tensor:
        """Return values of which those that are hidden are nothing beside the largest of the others."""
        if self.hidden is None:
            return z
        nothing = z.detach().masked_fill(self.hidden, -torch.inf).amax(-1, keepdim=True) - _LOST
        return torch.where(self.hidden, nothing, z)

    def _zero(self, slope: Tensor) -> Tensor:
        return slope if self.hidden is None else slope.masked_fill(self.hidden, 0.0)

    def _rounding(self, low: Tensor, high: Tensor) -> Tensor:
        n = low.shape[-1]
        size = torch.maximum(low.abs(), high.abs()).detach()
        lost = high < low.amax(-1, keepdim=True) - _LOST  # nothing of it is added
        return 8 * n * torch.finfo(low.dtype).eps * (size.masked_fill(lost, 0.0).amax(-1) + 1)
