"""Input regions: boxes, and l2 and l1 balls."""

import math
import warnings
from collections.abc import Callable
from dataclasses import InitVar, dataclass
from typing import Literal

import torch
from torch import Tensor

from etb_plugin.errors import ConfigError


@dataclass(frozen=True)
class Box:
    """The input region of a batch: every x with lower <= x <= upper, elementwise.

    `lower` and `upper` are [batch, *input], in pixel units. Raises ConfigError where shapes differ, where
    lower exceeds upper, or where either is NaN.
    """

    lower: Tensor
    upper: Tensor
    # `around` makes ordered corners by construction; checking their values would wait for the device.
    ordered: InitVar[bool] = False

    def __post_init__(self, ordered: bool) -> None:
        if self.lower.shape != self.upper.shape or self.lower.ndim < 2:
            raise ConfigError(
                f"a box needs lower and upper of one shape [batch, *input]; "
                f"got {list(self.lower.shape)} and {list(self.upper.shape)}"
            )
        if not ordered and not bool((self.lower <= self.upper).all()):
            raise ConfigError("a box needs lower <= upper in every element, and no NaN")

    @classmethod
    def around(cls, images: Tensor, eps: float | Tensor, clip: tuple[float, float] | None = (0.0, 1.0)) -> "Box":
        """Return the box of radius `eps` (pixel units, 0 to 1) around `images` [batch, *input].

        The box is cut to the range `clip`; `clip=None` leaves it whole. Raises ConfigError for an eps that
        is negative or not finite; a scalar on the device is not looked at. Warns of images beyond the range, which are
        not in their boxes; on a device these are not looked at either.
        """
        if not isinstance(eps, Tensor) and not (math.isfinite(eps) and eps >= 0):
            raise ConfigError(f"eps is {eps}; it must be finite and not negative, in pixel units (0 to 1)")
        lower, upper = images - eps, images + eps
        if clip is not None:
            if images.is_cpu and type(images) is Tensor and images.numel():  # no fake tensor, whose values nobody knows
                _warn_beyond(images, clip)
            lower, upper = lower.clamp(*clip), upper.clamp(*clip)
        return cls(lower, upper, ordered=True)

    @property
    def shape(self) -> torch.Size:
        """The shape of one input, without the batch."""
        return self.lower.shape[1:]

    @property
    def center(self) -> Tensor:
        """The middle of the box, [batch, *input]. A clipped box's centre is not the image."""
        return (self.lower + self.upper) / 2

    @property
    def radius(self) -> Tensor:
        """Half the width of the box in each element, [batch, *input]."""
        return (self.upper - self.lower) / 2

    def deviation(self, rows: Tensor) -> Tensor:
        """Return |rows| r, how far linear functions go to either side of their centre, [batch, rows].

        Shapes: rows [batch or 1, rows, *input].
        """
        return (rows.flatten(2).abs() @ self.radius.flatten(1).unsqueeze(2)).squeeze(2)

    @property
    def variance(self) -> Tensor:
        """The variance of each element of a point drawn uniformly, [batch, *input]."""
        return self.radius.square() / 3

    def nearest(self, points: Tensor) -> Tensor:
        """Return the points of the box that are nearest to `points`, [batch, *input]."""
        return points.clamp(self.lower, self.upper)

    def drawn(self, generator: torch.Generator) -> Tensor:
        """Draw a point of each box, evenly, [batch, *input]."""
        like = self.lower
        shares = torch.rand(like.shape, generator=generator, dtype=like.dtype, device=like.device)
        return like + (self.upper - like) * shares

    def mapped(self, increasing: Callable[[Tensor], Tensor]) -> "Box":
        """Return the image of the box under an elementwise increasing map, such as normalisation."""
        return Box(increasing(self.lower), increasing(self.upper), ordered=True)

    def __len__(self) -> int:
        return len(self.lower)

    def __getitem__(self, index: slice | Tensor) -> "Box":
        return Box(self.lower[index], self.upper[index], ordered=True)


def _warn_beyond(images: Tensor, clip: tuple[float, float]) -> None:
    least, most = (float(end) for end in images.detach().aminmax())
    slack = 1e-4 * (clip[1] - clip[0])
    if least < clip[0] - slack or most > clip[1] + slack:
        warnings.warn(
            f"images from {least:.4g} to {most:.4g} do not lie in their boxes, cut to {clip[0]:g} to {clip[1]:g}: "
            f"put a normalisation into the network, or give Box.around the images' own clip, or None",
            stacklevel=3,
        )


@dataclass(frozen=True)
class Ball:
    """The l2 or l1 ball around each image of a batch: every x with |x - center| <= eps, not cut to any range.

    `center` is [batch, *input], `eps` in pixel units. Raises ConfigError for another norm (an l_inf ball is a Box),
    and for an eps that is negative or not finite.
    """

    center: Tensor
    eps: float
    norm: Literal[1, 2]

    def __post_init__(self) -> None:
        if self.norm not in (1, 2):
            raise ConfigError(f"a ball has norm 1 or 2, got {self.norm}; an l_inf ball is a Box")
        if not (math.isfinite(self.eps) and self.eps >= 0):
            raise ConfigError(f"eps is {self.eps}; it must be finite and not negative")
        if self.center.ndim < 2:
            raise ConfigError(f"a ball needs centres [batch, *input]; got {list(self.center.shape)}")

    @property
    def shape(self) -> torch.Size:
        """The shape of one input, without the batch."""
        return self.center.shape[1:]

    @property
    def radius(self) -> Tensor:
        """Half the width of the ball in each element, [batch, *input]."""
        return torch.full_like(self.center, self.eps)

    def deviation(self, rows: Tensor) -> Tensor:
        """Return eps times the dual norm of `rows`, as `Box.deviation`: [batch or 1, rows]."""
        flat = rows.flatten(2)
        return self.eps * (flat.norm(dim=2) if self.norm == 2 else flat.abs().amax(2))

    @property
    def variance(self) -> Tensor:
        """The variance of each element of a point drawn uniformly from the ball, [batch, *input]."""
        n = self.center[0].numel()
        share = 1 / (n + 2) if self.norm == 2 else 2 / ((n + 1) * (n + 2))
        return torch.full_like(self.center, self.eps**2 * share)

    def __len__(self) -> int:
        return len(self.center)

    def __getitem__(self, index: slice | Tensor) -> "Ball":
        return Ball(self.center[index], self.eps, self.norm)


Region = Box | Ball
