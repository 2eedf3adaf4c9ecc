"""The Square attack (Andriushchenko et al. 2020): random search by outputs alone, which no masked gradient misleads."""

import math

import torch
from torch import Tensor, nn

from etb_plugin.attacks.pgd import margin
from etb_plugin.attacks.registry import register_attack
from etb_plugin.bounds import Box
from etb_plugin.stopping import check_time

_SHARE = 0.8
"""Of an image that the first squares change."""
_HALVED_AT = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)
"""Queries, of 10,000, at which that share is halved."""


@register_attack("square")
@torch.no_grad()
def square(
    network: nn.Module, box: Box, labels: Tensor, generator: torch.Generator, queries: int = 5000
) -> tuple[Tensor, Tensor]:
    """Return points of the box, [batch, *input], and whether the network gets each wrong, [batch].

    Starts at vertical stripes, and takes over squares at random places whose pixels go to an end of the box, channel by
    channel, where that lowers the margin (the l_inf version; algorithms 1 and 2). Inputs that are no images of
    [channels, height, width] are taken as images of one row.
    """
    count, shape = len(labels), box.lower.shape[1:]
    channels, height, width = shape if len(shape) == 3 else (1, 1, shape.numel())
    lower, upper = (end.reshape(count, channels, height, width) for end in (box.lower, box.upper))

    def drawn(*sizes: int) -> Tensor:
        return torch.rand(sizes, generator=generator, device=lower.device)

    x = torch.where(drawn(count, channels, 1, width) < 0.5, lower, upper)
    lost = margin(network(x.view_as(box.lower)), labels)
    rows, columns = torch.arange(height, device=x.device), torch.arange(width, device=x.device)
    for query in range(queries):
        check_time()
        left = (lost <= 0).nonzero()[:, 0]
        if not len(left):
            break
        some = len(left)
        side = max(1, round(math.sqrt(_share(query, queries) * height * width)))
        tall, wide = min(side, height), min(side if height > 1 else side * side, width)
        top = (drawn(some, 1) * (height - tall + 1)).long()
        start = (drawn(some, 1) * (width - wide + 1)).long()
        in_rows = (rows >= top) & (rows < top + tall)
        in_columns = (columns >= start) & (columns < start + wide)
        inside = (in_rows.unsqueeze(2) & in_columns.unsqueeze(1)).unsqueeze(1)
        ends = torch.where(drawn(some, channels, 1, 1) < 0.5, lower[left], upper[left])
        trial = torch.where(inside, ends, x[left])
        value = margin(network(trial.view(some, *shape)), labels[left])
        better = value > lost[left]
        x[left] = torch.where(better.view(-1, 1, 1, 1), trial, x[left])
        lost[left] = torch.where(better, value, lost[left])
    return x.view_as(box.lower), lost > 0


def _share(query: int, queries: int) -> float:
    """Return the share of the image that a square covers."""
    return _SHARE / 2 ** sum(query / queries * 10_000 > at for at in _HALVED_AT)
