"""The regularisers of Shi et al. 2021, for training with intervals."""

import torch
from torch import Tensor

from etb_plugin.bounds import Box
from etb_plugin.graph.graph import Graph

_TINY = 1e-12


def regularisers(graph: Graph, box: Box, tolerance: float) -> Tensor:
    """Return tightness + balance over the m activations, a scalar (section 3.3).

    tightness = mean relu(tau - width_0 / width_i) / tau keeps the intervals' mean widths from growing over the layers;
    balance = mean [relu(tau - r_i) + relu(tau - v_i)] / tau keeps active units and inactive ones of one weight, where
    r_i (v_i) is the ratio of the active units' and the inactive units' centres (squared distances from the mean
    centre), the lesser over the greater. tau is `tolerance`.
    """
    intervals = graph.intervals(box)
    first, terms = box.radius.mean(), []
    for i in graph.activations:
        center, radius = intervals[graph.nodes[i].inputs[0]]
        active, inactive = center - radius > 0, center + radius < 0
        far = (center - center.mean()).square()
        ratios = (
            first / radius.mean().clamp(min=_TINY),
            _lesser_over_greater((center * active).mean(), -(center * inactive).mean()),
            _lesser_over_greater((far * active).mean(), (far * inactive).mean()),
        )
        terms.append(sum(((tolerance - ratio).clamp(min=0) for ratio in ratios), torch.zeros_like(first)))
    return torch.stack(terms).mean() / tolerance


def _lesser_over_greater(one: Tensor, other: Tensor) -> Tensor:
    return torch.minimum(one, other) / torch.maximum(one, other).clamp(min=_TINY)
