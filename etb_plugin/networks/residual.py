"""Residual networks: that of Wong et al. 2018, and the wide one of Gowal et al. 2019 for ImageNet."""

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


@register_network(
    "wide-resnet-10-10",
    layers="conv 16 3x3 s1 p1, residual blocks of 160, 320 (halving), 640 (halving); ReLU first; average pooling",
    source="Gowal et al. 2019 (table 2), Zagoruyko and Komodakis 2016; no batch norm",
)
def wide_resnet(channels: int, size: int, classes: int) -> Layers:
    layers: Layers = [nn.Conv2d(channels, 16, 3, 1, 1)]
    channels = 16
    for out, stride in ((160, 1), (320, 2), (640, 2)):
        size = convolved(size, 3, stride, 1)
        main = nn.Sequential(nn.Conv2d(channels, out, 3, stride, 1), nn.ReLU(), nn.Conv2d(out, out, 3, 1, 1))
        layers += [nn.ReLU(), Residual(main, nn.Conv2d(channels, out, 1, stride, 0))]
        channels = out
    return [*layers, nn.ReLU(), nn.AvgPool2d(size), nn.Flatten(), nn.Linear(channels, classes)]
