"""What the logs say of a network besides its losses: how many of its units are unstable, how wide its intervals are."""

import torch
from torch import nn

from etb_plugin.bounds import Box
from etb_plugin.data import Dataset
from etb_plugin.errors import UnsupportedLayer
from etb_plugin.graph.graph import Graph
from etb_plugin.graph.tracing import trace
from etb_plugin.networks import evaluating

_IMAGES = 100


class Diagnosis:
    """Looks at one network through IBP, on the first 100 training images."""

    def __init__(self, network: nn.Module, data: Dataset) -> None:
        self._network = network
        self._images = data.first_training_images(_IMAGES)
        self._graph: Graph | None = None
        try:
            with evaluating(network):
                self._graph = trace(network, torch.Size(data.input_shape))
        except UnsupportedLayer:
            pass  # the network trains all the same; its logs lack two figures

    @torch.no_grad()
    def look(self, eps: float) -> tuple[float | None, float | None]:
        """Return the share of unstable activations (0 strictly inside IBP's interval of their inputs) and the mean
        width of IBP's logits, over boxes of radius `eps`; None for a network that cannot be traced."""
        if self._graph is None:
            return None, None
        box = Box.around(self._images, eps)
        with evaluating(self._network):
            intervals = self._graph.intervals(box)
        unstable = count = 0
        for i in self._graph.activations:
            center, radius = intervals[self._graph.nodes[i].inputs[0]]
            unstable += int((center.abs() < radius).sum())
            count += center.numel()
        return unstable / max(count, 1), float(2 * intervals[-1][1].mean())
