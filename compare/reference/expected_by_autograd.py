"""The expected tight bound as its authors train with it (Alsubaihi et al. 2019, section 4): one call of autograd for
each class gives a row of G, and the loss differentiates those calls again."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def expected_interval(network: nn.Sequential, lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
    """Return lower and upper ends of the logits, [batch, classes], masks by interval bound propagation.

    `network` is a Sequential of Conv2d, Linear, Flatten and ReLU; `lower` and `upper` [batch, *input] are the box's.
    """
    x = ((lower + upper) / 2).requires_grad_()
    middle, radius = x.detach(), (upper - lower) / 2
    masked = x
    for layer in network:
        if isinstance(layer, nn.ReLU):
            mask = (middle + radius >= 0).to(masked.dtype)
            masked = masked * mask
            ends = (middle - radius).relu(), (middle + radius).relu()
            middle, radius = (ends[0] + ends[1]) / 2, (ends[1] - ends[0]) / 2
        else:
            masked = layer(masked)
            with torch.no_grad():
                middle, radius = layer(middle), _spread(layer, radius)
    deviations = []
    for logit in masked.sum(0):
        (row,) = torch.autograd.grad(logit, x, create_graph=True)
        deviations.append((row.abs() * (upper - lower) / 2).flatten(1).sum(1))
    deviation = torch.stack(deviations, 1)
    return masked - deviation, masked + deviation


def _spread(layer: nn.Module, radius: Tensor) -> Tensor:
    if isinstance(layer, nn.Conv2d):
        return F.conv2d(radius, layer.weight.abs(), None, layer.stride, layer.padding)
    if isinstance(layer, nn.Linear):
        return F.linear(radius, layer.weight.abs())
    return layer(radius)  # Flatten
