"""Certifiers: sound bounds, asked which images' margins are all positive."""

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from etb_plugin.bounds import Box, PreparedBound, bounds, get_bound, margin_spec, prepare_lower, prepare_signs
from etb_plugin.errors import ConfigError
from etb_plugin.graph.rounding import rigorous
from etb_plugin.registry import named_options

_IMAGES_AT_ONCE = 25
"""How many images a bound takes at once: full CROWN and the dual need gigabytes for a hundred."""


def check_certifiers(names: Sequence[str], *, in_real_arithmetic: bool = False) -> None:
    """Raise ConfigError for what is no bound or no certificate, or none in real arithmetic where that is wanted.
    Bounds may have options: `exact:time_limit=10`."""
    for text in names:
        name, options = named_options(text)
        entry = get_bound(name)
        entry.check_options(options)
        if not entry.soundness(options):
            raise ConfigError(f"bound {text!r} is not sound, so it cannot certify; certify takes sound bounds only")
        if in_real_arithmetic and not entry.chosen(options)[0].rigorous:
            known = ", ".join(other for other, one in bounds().items() if one.rigorous)
            raise ConfigError(f"bound {text!r} knows no rounding; --rigorous takes {known}")


class Certifier:
    """A bound, written as in `check_certifiers`, ready for one network.

    With `in_real_arithmetic` the images that it certifies are certified once more with what rounding may have added
    taken off, in float64 on a CPU, and only those count; the network's weights are copied. Raises like `prepare`, and
    UnsupportedLayer for a network of which no rounding is known.
    """

    def __init__(
        self, text: str, network: nn.Module, input_shape: tuple[int, ...], *, in_real_arithmetic: bool = False
    ) -> None:
        name, options = named_options(text)
        self._bound = prepare_signs(name, network, input_shape, **options)
        self._rigorous: PreparedBound | None = None
        if in_real_arithmetic:
            self._rigorous = prepare_signs(name, copy.deepcopy(network).cpu().double(), input_shape, **options)
            with rigorous():
                self._rigorous(Box.around(torch.zeros(1, *input_shape, dtype=torch.float64), 0.0))

    @torch.no_grad()
    def certified(self, images: Tensor, eps: float, labels: Tensor, among: Tensor, classes: int) -> Tensor:
        """Return which of the images [batch, *input] marked in `among` [batch] have only positive margins."""
        found = positive(self._bound, Box.around(images, eps), labels, among, classes)
        if self._rigorous is None:
            return found
        with rigorous():
            box = Box.around(images.cpu().double(), eps)
            return positive(self._rigorous, box, labels.cpu(), found.cpu(), classes).to(found.device)


@torch.no_grad()
def least_margins(
    names: Sequence[str], network: nn.Module, images: Tensor, eps: float, labels: Tensor, classes: int
) -> dict[str, Tensor]:
    """Return for each bound, written as in `check_certifiers`, a lower end of the least margin of each image [batch,
    *input] over its box, [batch]. Bounds that only look for signs, which is all that a certificate takes, have none."""
    found = {}
    for text in names:
        name, options = named_options(text)
        if "sign_only" in get_bound(name).chosen(options)[0].options:
            continue
        lower = prepare_lower(name, network, tuple(images.shape[1:]), **options)
        found[text] = lower(Box.around(images, eps), margin_spec(labels, classes, images.dtype)).lower.amin(1)
    return found


@torch.no_grad()
def positive(bound: PreparedBound, box: Box, labels: Tensor, among: Tensor, classes: int) -> Tensor:
    """Return which of the images marked in `among` have only positive margins by `bound`, [batch]."""
    found = torch.zeros_like(among)
    for chosen in among.nonzero()[:, 0].split(_IMAGES_AT_ONCE):
        margins = bound(box[chosen], margin_spec(labels[chosen], classes, box.lower.dtype)).lower
        found[chosen] = (margins > 0).all(1)
    return found
