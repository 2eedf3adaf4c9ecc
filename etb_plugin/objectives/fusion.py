"""Loss fusion (Xu et al. 2020, section 3.3): bound the cross-entropy itself, one row in place of one for each class."""

import torch
from torch import Tensor
from torch.nn import functional as F

from etb_plugin.bounds import Box, PreparedBound, margin_spec


def fused_cross_entropy(
    bounded: PreparedBound, intervals: PreparedBound, box: Box, labels: Tensor, classes: int
) -> tuple[Tensor, Tensor]:
    """Return two upper bounds of the worst cross-entropy over the box, means over the batch: fused, and plain.

    With m_j = f_j - f_y the cross-entropy is log(1 + sum_j exp m_j). `intervals` gives l_j <= m_j <= u_j; each exp lies
    below its chord there, so that the sum lies below a linear function of the logits, whose upper end `bounded` gives
    as one row. The lesser of it and sum_j exp u_j is taken, image by image; the plain bound is the latter's. Sound
    where both bounds are.
    """
    spec = margin_spec(labels, classes, box.lower.dtype)
    margins = intervals(box, spec)
    low, high = -margins.upper, -margins.lower
    top = high.detach().amax(1, keepdim=True).clamp_min(0)  # exponentials are taken relative to the largest
    at_low, at_high = (low - top).exp(), (high - top).exp()
    width = high - low
    flat = width < 1e-4  # the quotient is lost to rounding: the constant exp u_j is above, and as close
    slope = torch.where(flat, 0.0, (at_high - at_low) / torch.where(flat, 1.0, width))
    row = slope.unsqueeze(1) @ spec  # sum_j slope_j (f_y - f_j)
    linear = (at_high - slope * high).sum(1) - bounded(box, row).lower[:, 0]
    total = torch.minimum(linear, at_high.sum(1))
    zero = torch.zeros_like(high[:, :1])
    plain = F.cross_entropy(torch.cat([zero, high], 1), torch.zeros_like(labels))
    return ((-top[:, 0]).exp() + total).log().add(top[:, 0]).mean(), plain
