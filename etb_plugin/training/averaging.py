"""Stochastic weight averaging: the mean of the weights after each epoch (Izmailov et al. 2018)."""

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn


@dataclass
class Average:
    """The mean of a network's weights at `count` points, in a network of its own; batch norm is to be measured anew."""

    network: nn.Module
    count: int = 0

    @classmethod
    def of(cls, network: nn.Module) -> "Average":
        """Begin with the shape of `network`."""
        return cls(copy.deepcopy(network))

    @torch.no_grad()
    def add(self, network: nn.Module) -> None:
        """Add the weights that `network` has now."""
        self.count += 1
        for mean, weight in zip(self.network.parameters(), network.parameters(), strict=True):
            mean.add_((weight - mean) / self.count)

    def state(self) -> dict[str, Any]:
        """Return what `load` takes."""
        return {"count": self.count, "weights": self.network.state_dict()}

    def load(self, saved: dict[str, Any]) -> None:
        """Put a saved state back."""
        self.count = saved["count"]
        self.network.load_state_dict(saved["weights"])
