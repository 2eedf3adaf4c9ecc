"""The fast gradient sign method (Goodfellow et al. 2014)."""

import torch
from torch import Tensor, nn

from etb_plugin.attacks.pgd import cross_entropy, gradient_of
from etb_plugin.bounds import Box


def fgsm(network: nn.Module, box: Box, images: Tensor, labels: Tensor) -> Tensor:
    """Return the box's corner that one gradient step from `images` points at (Goodfellow et al. 2014)."""
    gradient, _ = gradient_of(network, images, labels, cross_entropy)
    return torch.where(gradient > 0, box.upper, torch.where(gradient < 0, box.lower, images))
