"""The residual network of Wong et al. 2018."""

from torch import nn

from etb_plugin.networks.layers import Residual
from etb_plugin.networks.registry import Layers, convolved, register_network


def block(channels: int, out: int, *, halve: bool) -> Layers:
    """Return a residual block and its ReLU; with `halve` it halves the image's size."""
    if halve:
        first, skip = nn.Conv2d(channels, out, 4, 2, 1), nn.Conv2d(channels, out, 2, 2, 0)
    else:
        first, skip = nn.Conv2d(channels, out, 3, 1, 1), nn.Conv2d(channels, out, 1, 1, 0)
    main = nn.Sequential(first, nn.ReLU(), nn.Conv2d(out, out, 3, 1, 1))
    return [Residual(main, skip), nn.ReLU()]


@register_network(
    "wk-resnet",
    layers="conv 16 3x3 s1 p1, residual blocks of 16, 16, 32 (halving), 64 (halving), fc 1000",
    source="Wong et al. 2018 (scaling), convex_adversarial",
)
def wk_resnet(channels: int, size: int, classes: int) -> Layers:
    quarter = convolved(convolved(size, 4, 2, 1), 4, 2, 1)
    layers: Layers = [nn.Conv2d(channels, 16, 3, 1, 1), nn.ReLU()]
    layers += block(16, 16, halve=False) + block(16, 16, halve=False)
    layers += block(16, 32, halve=True) + block(32, 64, halve=True)
    layers += [nn.Flatten(), nn.Linear(64 * quarter * quarter, 1000), nn.ReLU(), nn.Linear(1000, classes)]
    return layers
