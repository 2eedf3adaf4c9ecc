"""What a recipe adds to any loss: L1, the regularisers of Shi et al. 2021, the statistics of the clean batch."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from etb_plugin.bounds import Box
from etb_plugin.graph.tracing import trace
from etb_plugin.networks import clean_statistics, evaluating, normalisations
from etb_plugin.objectives.recipe import Recipe
from etb_plugin.objectives.regularisers import regularisers

if TYPE_CHECKING:  # the registry's methods are what asks for terms
    from etb_plugin.objectives.registry import Loss, Losses, Point

_LEAST_EPS = 1e-6
"""While eps is still 0 the regularisers are taken at this radius: widths in proportion are what they look at."""


def with_terms(loss: Loss, recipe: Recipe, network: nn.Module, input_shape: tuple[int, ...]) -> Loss:
    """Return `loss` with the terms that the recipe asks for; itself where it asks for none."""
    clean = recipe.bn == "clean" and bool(normalisations(network))
    if not (recipe.l1 or recipe.regulariser or clean):
        return loss
    weights = [p for p in network.parameters() if p.ndim > 1]  # no biases, no scales of batch norm
    with evaluating(network):
        graph = trace(network, torch.Size(input_shape)) if recipe.regulariser else None

    def whole(images: Tensor, labels: Tensor, point: Point, generator: torch.Generator) -> Losses:
        losses = loss(images, labels, point, generator)
        total = losses.total
        if graph is not None and not point.phase.grown:
            eps = point.eps if point.phase.bounded else _LEAST_EPS
            with evaluating(network):
                added = regularisers(graph, Box.around(images, eps), recipe.tolerance)
            total = total + (1 - point.grown) * recipe.regulariser * added
        if recipe.l1:
            total = total + recipe.l1 * torch.stack([weight.abs().sum() for weight in weights]).sum()
        return replace(losses, total=total)

    def normalised(images: Tensor, labels: Tensor, point: Point, generator: torch.Generator) -> Losses:
        with clean_statistics(network):
            return whole(images, labels, point, generator)

    return normalised if clean else whole
