"""Initial weights for interval bound propagation."""

import math

import torch
from torch import nn

_WEIGHTED = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


@torch.no_grad()
def initialize_for_ibp(network: nn.Module) -> None:
    """Draw all weights but the last layer's from N(0, 2 pi / fan_in^2), from torch's global generator.

    Behind a ReLU that halves it, an interval's mean width then stays the same from layer to layer (Shi et al. 2021,
    section 3.1). Biases stay as they are.
    """
    layers = [layer for layer in network.modules() if isinstance(layer, _WEIGHTED)]
    for layer in layers[:-1]:
        fan_in = layer.weight[0].numel()
        layer.weight.normal_(0.0, math.sqrt(2 * math.pi) / fan_in)
