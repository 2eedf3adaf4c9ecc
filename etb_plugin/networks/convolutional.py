"""Plain convolutional networks of the papers, and `tiny` for the 8 x 8 digits."""

from torch import nn

from etb_plugin.networks.registry import Layers, convolved, register_network

Convolution = tuple[int, int, int, int]
"""channels, kernel, stride, padding"""


def convolutional(
    channels: int,
    size: int,
    classes: int,
    convolutions: list[Convolution],
    hidden: list[int],
    *,
    batch_norm: bool = False,
) -> Layers:
    """Return convolutions and then fully connected layers, each but the last with a ReLU."""
    layers: Layers = []
    for out, kernel, stride, padding in convolutions:
        layers.append(nn.Conv2d(channels, out, kernel, stride, padding))
        if batch_norm:
            layers.append(nn.BatchNorm2d(out))
        layers.append(nn.ReLU())
        channels, size = out, convolved(size, kernel, stride, padding)
    layers.append(nn.Flatten())
    features = channels * size * size
    for width in hidden:
        layers.append(nn.Linear(features, width))
        if batch_norm:
            layers.append(nn.BatchNorm1d(width))
        layers.append(nn.ReLU())
        features = width
    return [*layers, nn.Linear(features, classes)]


_GOWAL = "Gowal et al. 2019, table 1"
_WONG = "Wong et al. 2018 (scaling), convex_adversarial"
_LARGE = [(64, 3, 1, 1), (64, 3, 1, 1), (128, 3, 2, 1), (128, 3, 1, 1), (128, 3, 1, 1)]
_MEDIUM = [(32, 3, 1, 0), (32, 4, 2, 0), (64, 3, 1, 0), (64, 4, 2, 0)]
_WK_LARGE = [(32, 3, 1, 1), (32, 4, 2, 1), (64, 3, 1, 1), (64, 4, 2, 1)]


@register_network("tiny", layers="conv 8 3x3 s1 p1, conv 16 3x3 s2 p1, fc 64", source="ours, for 8 x 8 digits")
def tiny(channels: int, size: int, classes: int) -> Layers:
    return convolutional(channels, size, classes, [(8, 3, 1, 1), (16, 3, 2, 1)], [64])


@register_network("small", layers="conv 16 4x4 s2, conv 32 4x4 s1, fc 100", source=_GOWAL)
def small(channels: int, size: int, classes: int) -> Layers:
    return convolutional(channels, size, classes, [(16, 4, 2, 0), (32, 4, 1, 0)], [100])


@register_network(
    "medium",
    layers="conv 32 3x3 s1, conv 32 4x4 s2, conv 64 3x3 s1, conv 64 4x4 s2, fc 512, fc 512",
    source=_GOWAL,
)
def medium(channels: int, size: int, classes: int) -> Layers:
    return convolutional(channels, size, classes, _MEDIUM, [512, 512])


@register_network(
    "large",
    layers="conv 64 3x3 s1 p1 x 2, conv 128 3x3 s2 p1, conv 128 3x3 s1 p1 x 2, fc 512",
    source=_GOWAL,
)
def large(channels: int, size: int, classes: int) -> Layers:
    return convolutional(channels, size, classes, _LARGE, [512])


@register_network("large-etb", layers="as large, with fc 200", source="Alsubaihi et al. 2019, table 5")
def large_etb(channels: int, size: int, classes: int) -> Layers:
    return convolutional(channels, size, classes, _LARGE, [200])


@register_network("wk-small", layers="conv 16 4x4 s2 p1, conv 32 4x4 s2 p1, fc 100", source=_WONG)
def wk_small(channels: int, size: int, classes: int) -> Layers:
    return convolutional(channels, size, classes, [(16, 4, 2, 1), (32, 4, 2, 1)], [100])


@register_network(
    "wk-large",
    layers="conv 32 3x3 s1 p1, conv 32 4x4 s2 p1, conv 64 3x3 s1 p1, conv 64 4x4 s2 p1, fc 512, fc 512",
    source=_WONG,
)
def wk_large(channels: int, size: int, classes: int) -> Layers:
    return convolutional(channels, size, classes, _WK_LARGE, [512, 512])


@register_network("cnn7", layers="as large", source="Shi et al. 2021, without batch norm")
def cnn7(channels: int, size: int, classes: int) -> Layers:
    return convolutional(channels, size, classes, _LARGE, [512])


@register_network("cnn7-bn", layers="as large, batch norm before each ReLU", source="Shi et al. 2021")
def cnn7_bn(channels: int, size: int, classes: int) -> Layers:
    return convolutional(channels, size, classes, _LARGE, [512], batch_norm=True)
