"""What the logs say of a network besides its losses, on the first 100 training images: how many units are unstable, how
wide intervals are, how many images IBP certifies and how many stand under a short attack."""

import math
from typing import TypedDict

import torch
from torch import nn

from etb_plugin.attacks import Pgd, pgd
from etb_plugin.bounds import Box, margin_spec, prepare_lower
from etb_plugin.data import Dataset
from etb_plugin.errors import UnsupportedLayer
from etb_plugin.graph.graph import Graph
from etb_plugin.graph.tracing import trace
from etb_plugin.networks import before_softmax, evaluating

_IMAGES = 100
_ATTACK = Pgd(steps=10)
_SHARE = 0.05
"""Of an epoch's batches, what the attack may cost: where epochs are short, it waits for some of them."""


class Looks(TypedDict):
    """What is seen of a network; None where nothing is."""

    unstable: float | None
    width: float | None
    certified_accuracy: float | None
    pgd_accuracy: float | None


class Diagnosis:
    """Looks at one network that trains to the radius `eps` in so many epochs of `batches` steps."""

    def __init__(self, network: nn.Module, data: Dataset, eps: float, epochs: int, batches: int) -> None:
        self._network, self._epochs = network, epochs
        self._images, self._labels = data.first_training_images(_IMAGES), data.train.labels[:_IMAGES]
        self._box = Box.around(self._images, eps)
        self._every = math.ceil(_ATTACK.steps / (_SHARE * batches))
        self._spec = margin_spec(self._labels, data.classes)
        self._graph: Graph | None = None
        try:
            with evaluating(network):
                logits = before_softmax(network, data.input_shape)
                self._graph = trace(logits, torch.Size(data.input_shape))
                self._ibp = prepare_lower("ibp", logits, data.input_shape)
        except UnsupportedLayer:
            pass  # the network trains all the same; its logs lack these figures

    def look(self, epoch: int, eps: float) -> Looks:
        """Return the share of unstable activations (0 strictly inside IBP's interval of their inputs) and the mean
        width of IBP's logits, over boxes of radius `eps`; and the shares of images that IBP certifies and that are
        right under PGD, over boxes of the final radius. All None for a network that cannot be traced."""
        if self._graph is None:
            return Looks(unstable=None, width=None, certified_accuracy=None, pgd_accuracy=None)
        with evaluating(self._network), torch.no_grad():
            intervals = self._graph.intervals(Box.around(self._images, eps))
            certified = (self._ibp(self._box, self._spec).lower > 0).all(1)
        unstable = count = 0
        for i in self._graph.activations:
            center, radius = intervals[self._graph.nodes[i].inputs[0]]
            unstable += int((center.abs() < radius).sum())
            count += center.numel()
        return Looks(
            unstable=unstable / max(count, 1),
            width=float(2 * intervals[-1][1].mean()),
            certified_accuracy=float(certified.double().mean()),
            pgd_accuracy=self._attacked() if epoch % self._every == 0 or epoch == self._epochs else None,
        )

    def _attacked(self) -> float:
        generator = torch.Generator(self._labels.device).manual_seed(0)
        with evaluating(self._network):
            right = self._network(self._images).argmax(1) == self._labels
            _, broken = pgd(self._network, self._box, self._labels, _ATTACK, generator)
        return float((right & ~broken).double().mean())
