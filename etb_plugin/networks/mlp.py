"""Fully connected networks of any width and depth."""

from torch import nn

from etb_plugin.networks.registry import Layers, register_network


@register_network(
    "mlp-WIDTHxDEPTH",
    layers="DEPTH hidden layers of WIDTH units, as mlp-100x4",
    source="Alsubaihi et al. 2019, section 4",
    pattern=r"mlp-(?P<width>[1-9]\d*)x(?P<depth>[1-9]\d*)",
)
def mlp(channels: int, size: int, classes: int, width: int, depth: int) -> Layers:
    layers: Layers = [nn.Flatten()]
    features = channels * size * size
    for _ in range(depth):
        layers += [nn.Linear(features, width), nn.ReLU()]
        features = width
    return [*layers, nn.Linear(features, classes)]
