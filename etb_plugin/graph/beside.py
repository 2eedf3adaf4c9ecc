"""A ReLU beside another one, of a network that is built like another and nearly the same.

What the second gives is what the first gives and a difference, which is bounded by how far the inputs lie apart. Where
the networks are nearly the same that is next to nothing, though each by itself may be anything (ReluDiff, Paulsen et
al. 2020, and NeuroDiff, Paulsen et al. 2020).
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from etb_plugin.graph.activations import Curved, chord, crown_slope


class ReluBeside(nn.Module):
    """(relu(u), u, v) -> relu(v), by the first and a difference."""

    def forward(self, first: Tensor, u: Tensor, v: Tensor) -> Tensor:
        """Return relu(v), but for rounding."""
        return first + (F.relu(v) - F.relu(u))


class ReluDifference(Curved):
    """relu(u + d) - relu(u): [batch, *features, 2] of u and d -> [batch, *features].

    Planes below and above are of two kinds, and what is between two is sound too: by the size of d, as the function
    lies between d and 0; and by lines of both ReLUs.
    """

    joins = True

    def forward(self, z: Tensor) -> Tensor:
        u, d = z.unbind(-1)
        return F.relu(u + d) - F.relu(u)

    def range(self, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        # It rises with d; with u it rises where d is positive, and falls where d is negative.
        (a, c), (b, e) = low.unbind(-1), high.unbind(-1)
        corners = torch.stack([torch.where(c >= 0, a, b), c], -1), torch.stack([torch.where(e >= 0, b, a), e], -1)
        rounding = self._rounding(low, high)
        return self.forward(corners[0]) - rounding, self.forward(corners[1]) + rounding

    def undecided(self, low: Tensor, high: Tensor) -> Tensor:
        on, off = _decided(low, high)
        return (high > low) & ~(on | off).unsqueeze(-1)

    def piece(self, z: Tensor, deviation: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        u, d = z.unbind(-1)
        after, before = (u + d >= 0).to(z.dtype), (u >= 0).to(z.dtype)
        return torch.stack([after - before, after], -1), None

    def moments(self, mean: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
        slope, _ = self.piece(mean)
        return self.forward(mean), (slope.square() * variance).sum(-1)

    def chosen(self, share: Tensor, low: Tensor, high: Tensor, sign: int) -> tuple[Tensor, Tensor]:
        (one, first), (other, second) = self._planes(low, high, sign)
        slope = torch.lerp(one, other, share.unsqueeze(-1))
        return slope, torch.lerp(first, second, share) - sign * self._rounding(low, high)

    def usual(self, low: Tensor, high: Tensor, sign: int) -> Tensor:
        """The plane that is nearer to the function in the middle."""
        middle = (low + high) / 2
        one, other = ((slope * middle).sum(-1) + at_zero for slope, at_zero in self._planes(low, high, sign))
        return (sign * (other - one) > 0).to(low.dtype)

    def parallel(self, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        on, off = _decided(low, high)
        share = torch.where(on, 1.0, torch.where(off, 0.0, 0.5)).to(low.dtype)
        most = torch.maximum(low[..., 1].abs(), high[..., 1].abs()) / 2
        reach = torch.where(on | off, torch.zeros_like(most), most) + self._rounding(low, high)
        least, greatest = self.range(low, high)  # which is all there is to know of a point
        below, above = least - share * high[..., 1], greatest - share * low[..., 1]
        slope = torch.stack([torch.zeros_like(share), share], -1)
        return slope, torch.maximum(below, -reach), torch.minimum(above, reach)

    def _planes(self, low: Tensor, high: Tensor, sign: int) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
        """Return slopes and values at 0 of the planes by size and by both ReLUs."""
        (a, c), (b, e) = low.unbind(-1), high.unbind(-1)
        rise, of_size = chord(c, e)
        if sign > 0:
            rise = 1 - rise  # min(d, 0) is d - max(d, 0)
            after, (before, at_zero) = crown_slope(a + c, b + e), chord(a, b)
        else:
            (after, at_zero), before = chord(a + c, b + e), crown_slope(a, b)
        by_size = torch.stack([torch.zeros_like(rise), rise], -1), -sign * of_size
        return by_size, (torch.stack([after - before, after], -1), -sign * at_zero)

    def _rounding(self, low: Tensor, high: Tensor) -> Tensor:
        return 16 * torch.finfo(low.dtype).eps * torch.maximum(low.abs(), high.abs()).sum(-1).detach()


def _decided(low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """Return where both ReLUs are on, and where both are off."""
    (a, c), (b, e) = low.unbind(-1), high.unbind(-1)
    return (a >= 0) & (a + c >= 0), (b <= 0) & (b + e <= 0)
