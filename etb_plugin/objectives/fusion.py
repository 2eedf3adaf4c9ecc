"""Loss fusion (Xu et al. 2020, section 3.3): bound the cross-entropy itself, one row in place of one for each class."""

import torch
from torch import Tensor
from torch.nn import functional as F

from etb_plugin.bounds import Box, margin_spec
from etb_plugin.bounds.crown_ibp import TwoStages


def fused_cross_entropy(bounded: TwoStages, box: Box, labels: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    """Return two upper bounds of the worst cross-entropy over the box, means over the batch: fused, and IBP's.

    With m_j = f_j - f_y the cross-entropy is log(1 + sum_j exp m_j), and IBP gives l_j <= m_j <= u_j. Each exp lies
    below its chord there, so that the sum lies below a linear function of the logits, whose upper end CROWN-IBP gives
    as one row. The lesser of it and sum_j exp u_j is taken, image by image.
    """
    spec = margin_spec(labels, classes, box.lower.dtype)
    chords: list[Tensor] = []

    def row(lower: Tensor, upper: Tensor) -> Tensor:
        low, high = -upper, -lower
        top = high.detach().amax(1, keepdim=True).clamp_min(0)  # exponentials are taken relative to the largest
        at_low, at_high = (low - top).exp(), (high - top).exp()
        width = high - low
        flat = width < 1e-4  # the quotient is lost to rounding: the constant exp u_j is above, and as close
        slope = torch.where(flat, 0.0, (at_high - at_low) / torch.where(flat, 1.0, width))
        chords.extend((top[:, 0], (at_high - slope * high).sum(1), at_high.sum(1)))
        return slope.unsqueeze(1) @ spec  # sum_j slope_j (f_y - f_j)

    lower, _, least = bounded(box, spec, row)
    top, constant, plain = chords
    total = torch.minimum(constant - least[:, 0], plain)
    margins = torch.cat([torch.zeros_like(lower[:, :1]), -lower], 1)
    return ((-top).exp() + total).log().add(top).mean(), F.cross_entropy(margins, torch.zeros_like(labels))
