"""The methods `taps` and `staps`: intervals through a first block, an attack through the rest (Mao et al. 2023)."""

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from etb_plugin.attacks import Pgd, polished
from etb_plugin.bounds import Box, margin_spec, prepare_lower
from etb_plugin.errors import ConfigError, UnsupportedLayer
from etb_plugin.graph.graph import Graph
from etb_plugin.graph.tracing import trace
from etb_plugin.networks import evaluating
from etb_plugin.objectives.benchmark import ATTACK, RECIPE
from etb_plugin.objectives.registry import Loss, Losses, Method, Objective, Point, register_method
from etb_plugin.objectives.sabr import small_box
from etb_plugin.objectives.worst_case import margin_logits, weighed, worst_logits


@dataclass(frozen=True)
class Taps(Objective):
    """The product of two losses of worst-case logits, image by image: IBP's, and those that PGD finds in the box that
    IBP gives between two blocks of a Sequential, for each other class by itself.

    The second block begins at the layer named `second`, by default at the first fully connected one. The points that
    PGD finds pass their gradients on to the box (`Link`, with its `threshold`), and the second loss's gradient counts
    `scale` times the first's. With a `share` below 1 both see SABR's small box (STAPS). The loss is weighed against
    the clean one as in `WorstCase`'s convex form.
    """

    bound: str = "ibp"
    second: str | None = None
    share: float = 1.0
    threshold: float = 0.5
    scale: float = 4.0
    attack: Pgd = ATTACK
    latent_attack: Pgd = Pgd(steps=10, step=0.5, losses=("margin",))  # noqa: RUF009 (frozen)

    def prepare(self, network: nn.Module, input_shape: tuple[int, ...], classes: int) -> Loss:
        first, second = split(network, self.second)
        with evaluating(network):
            bounded = prepare_lower(self.bound, network, input_shape)
            graph = trace(first, torch.Size(input_shape))
        alpha = self.scale / (1 + self.scale)

        def loss(images: Tensor, labels: Tensor, point: Point, generator: torch.Generator) -> Losses:
            def robust() -> Tensor:
                box = small_box(network, images, labels, point.eps, self.share, self.attack, generator)
                attacked = latent_logits(
                    graph, second, box, labels, classes, self.latent_attack, self.threshold, generator
                )
                pairs = attacked, worst_logits(bounded, box, labels, classes)
                inner, outer = (F.cross_entropy(z, labels, reduction="none") for z in pairs)
                product = inner.detach() * outer.detach()
                # Its gradient: 2 alpha outer d inner + (2 - 2 alpha) inner d outer.
                gradient = 2 * alpha * outer.detach() * inner + (2 - 2 * alpha) * inner.detach() * outer
                return (product + gradient - gradient.detach()).mean()

            return weighed(network, images, labels, point, robust)

        return loss


def split(network: nn.Module, second: str | None) -> tuple[nn.Sequential, nn.Sequential]:
    """Return the two blocks of a Sequential, their layers shared with it. Raises UnsupportedLayer for other networks,
    and ConfigError for a name that none of its layers has."""
    if not isinstance(network, nn.Sequential):
        raise UnsupportedLayer(f"taps splits an nn.Sequential into two blocks; {type(network).__name__} is none")
    layers = dict(network.named_children())
    if second is None:
        second = next((name for name, layer in layers.items() if isinstance(layer, nn.Linear)), None)
    if second not in layers:
        raise ConfigError(f"second: no block can begin at layer {second!r}; the network has {', '.join(layers)}")
    at = list(layers).index(second)
    parts = list(network)
    return nn.Sequential(*parts[:at]), nn.Sequential(*parts[at:])


def latent_logits(
    graph: Graph,
    second: nn.Module,
    box: Box,
    labels: Tensor,
    classes: int,
    attack: Pgd,
    threshold: float,
    generator: torch.Generator,
) -> Tensor:
    """Return logits z with z_j - z_y = the greatest f_j - f_y that PGD finds in the box behind the first block, whose
    `graph` this is, and z_y = 0: [batch, classes]."""
    center, radius = graph.intervals(box)[-1]
    others = classes - 1
    low, high = ((center + sign * radius).repeat_interleave(others, 0) for sign in (-1, 1))
    rows = -margin_spec(labels, classes, low.dtype).flatten(0, 1)  # f_j - f_y, [batch * others, classes]
    latent = Box(low.detach(), high.detach(), ordered=True)

    def margins(outputs: Tensor, places: Tensor) -> Tensor:
        return (outputs * rows[places]).sum(1, keepdim=True)

    found = polished(second, latent, latent.drawn(generator), margins, attack)
    linked = Link.apply(low, high, found, threshold)
    return margin_logits((second(linked) * rows).sum(1).view(-1, others), labels, classes)


class Link(torch.autograd.Function):
    """(low, high, x, threshold c) -> x, whose gradient goes to the ends that x lies near: to `high` times
    relu(1 - (high - x) / (c (high - low))), and to `low` likewise (Mao et al. 2023, section 3.3)."""

    @staticmethod
    def forward(context: Any, low: Tensor, high: Tensor, x: Tensor, threshold: float) -> Tensor:
        context.save_for_backward(low, high, x)
        context.threshold = threshold
        return x.clone()

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None, None]:
        low, high, x = context.saved_tensors
        reach = (context.threshold * (high - low)).clamp_min(torch.finfo(x.dtype).tiny)
        to_low, to_high = ((1 - away / reach).clamp_min(0) for away in (x - low, high - x))
        return gradient * to_low, gradient * to_high, None, None


_SOURCE = "Mao et al. 2023: gradients of the attack's loss counted 4 times, threshold 0.5, 10 steps in the latent box. "
register_method(
    Method(
        "taps",
        "IBP through the first block, PGD in the box behind it through the rest: tighter than ibp, and dearer",
        Taps(),
        replace(RECIPE, source=_SOURCE + "The rest: " + RECIPE.source),
    )
)
register_method(
    Method(
        "staps",
        "taps from sabr's small boxes",
        Taps(share=0.6),
        replace(RECIPE, source=_SOURCE + "Small boxes of 0.6 eps, as for MNIST at 0.3. The rest: " + RECIPE.source),
    )
)
