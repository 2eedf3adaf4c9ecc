"""Layers that torch lacks: normalisation with fixed statistics, and the residual block."""

import torch
from torch import Tensor, nn

from etb_plugin.errors import ConfigError


class Normalize(nn.Module):
    """(x - mean) / deviation, channel by channel, with fixed statistics in pixel units.

    Being the network's first layer, it lets every box, attack and radius stay in pixel units.
    """

    mean: Tensor
    deviation: Tensor

    def __init__(self, mean: tuple[float, ...], deviation: tuple[float, ...]) -> None:
        super().__init__()
        if not all(d > 0 for d in deviation):  # a box stays a box only under an increasing map
            raise ConfigError(f"Normalize needs positive deviations, got {deviation}")
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1))
        self.register_buffer("deviation", torch.tensor(deviation).view(1, -1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.mean) / self.deviation


class Residual(nn.Module):
    """main(x) + skip(x): a block with a shortcut. The ReLU after it is the next layer."""

    def __init__(self, main: nn.Module, skip: nn.Module) -> None:
        super().__init__()
        self.main = main
        self.skip = skip

    def forward(self, x: Tensor) -> Tensor:
        return self.main(x) + self.skip(x)


def split_normalization(network: nn.Module) -> tuple[nn.Module, nn.Module]:
    """Return the leading Normalize layer of a sequential network (or the identity), and the rest, layers shared.

    Scaling each channel by a positive number maps a box onto a box, so bounding the rest on the scaled box
    is exact.
    """
    if isinstance(network, nn.Sequential) and len(network) and isinstance(network[0], Normalize):
        return network[0], network[1:]
    return nn.Identity(), network
