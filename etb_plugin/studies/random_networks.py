"""Random networks as the paper's experiments draw them (Alsubaihi et al. 2019, section 4), and their true ranges."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from etb_plugin.bounds import Box, Interval, bound
from etb_plugin.evaluation.calibration import covered
from etb_plugin.studies.seen_ranges import merged, seen_ranges


def gaussian_network(widths: list[int], generator: torch.Generator) -> nn.Sequential:
    """Return affine layers of these widths with a ReLU between any two, float64, in eval mode.

    Weights are normal with deviation 1 / sqrt(inputs of the layer), biases uniform in -/+ 1 / sqrt(inputs), which is
    PyTorch's default.
    """
    layers: list[nn.Module] = []
    for into, out in itertools.pairwise(widths):
        layer = nn.Linear(into, out).double()
        _draw(layer, into, generator)
        layers += [layer, nn.ReLU()]
    return nn.Sequential(*layers[:-1]).eval()


def gaussian_convolutions(channels: int, size: int, depth: int, generator: torch.Generator) -> nn.Sequential:
    """Return `depth` - 1 convolutions 3 x 3 of `channels` (padding 1) on 3 x size x size, and an affine layer to 10."""
    layers: list[nn.Module] = []
    into = 3
    for _ in range(depth - 1):
        convolution = nn.Conv2d(into, channels, 3, padding=1).double()
        _draw(convolution, 9 * into, generator)
        layers += [convolution, nn.ReLU()]
        into = channels
    last = nn.Linear(into * size * size, 10).double()
    _draw(last, into * size * size, generator)
    return nn.Sequential(*layers, nn.Flatten(), last).eval()


def _draw(layer: nn.Linear | nn.Conv2d, inputs: int, generator: torch.Generator) -> None:
    with torch.no_grad():
        layer.weight.normal_(0, 1 / math.sqrt(inputs), generator=generator)
        assert layer.bias is not None
        layer.bias.uniform_(-1 / math.sqrt(inputs), 1 / math.sqrt(inputs), generator=generator)


def gaussian_box(shape: tuple[int, ...], eps: float, generator: torch.Generator) -> Box:
    """Return the box of radius `eps`, not clipped, around one standard normal point."""
    return Box.around(torch.randn((1, *shape), generator=generator, dtype=torch.float64), eps, clip=None)


@dataclass(frozen=True)
class Ranges:
    """Intervals of one network's outputs on one box: expected (blockwise masks), the same around the network's own
    output as the authors' code has it, IBP's, and the true range as seen at uniform points and corners. Each holds
    [1, outputs] in `lower` and `upper`."""

    expected: Interval
    recentred: Interval
    ibp: Interval
    true: Interval

    @property
    def gamma(self) -> Tensor:
        """The share of the true range that the expected interval covers, [outputs] (section 4)."""
        return covered(self.expected, self.true.lower, self.true.upper)[0]

    @property
    def recentred_gamma(self) -> Tensor:
        """The same of the one around the network's own output."""
        return covered(self.recentred, self.true.lower, self.true.upper)[0]

    @property
    def slack(self) -> Tensor:
        """How far the expected ends lie outside the true ones, [2, outputs]: positive in mean, says theorem 1."""
        return torch.cat([self.true.lower - self.expected.lower, self.expected.upper - self.true.upper])


def ranges(networks: Sequence[nn.Sequential], boxes: Sequence[Box], samples: int) -> list[Ranges]:
    """Return the intervals of each network on its box of one point; all have equally many inputs."""
    seen = seen_ranges([merged(network, box) for network, box in zip(networks, boxes, strict=True)], samples)
    return [_ranges(*each) for each in zip(networks, boxes, seen, strict=True)]


@torch.no_grad()
def _ranges(network: nn.Sequential, box: Box, true: Interval) -> Ranges:
    expected = bound("expected", network, box, masks="blockwise")
    recentred = bound("expected", network, box, masks="blockwise", center="network")
    return Ranges(expected, recentred, bound("ibp", network, box), true)
