"""The bound `sampled`: the range that points of the box are seen to reach. An inner estimate."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from etb_plugin.bounds.registry import BoundFunction, register_bound
from etb_plugin.bounds.types import check_spec
from etb_plugin.errors import ConfigError
from etb_plugin.graph.regions import Box
from etb_plugin.graph.tracing import refuse_training_mode


@register_bound("sampled", sound=False, differentiable=False, takes="any network")
def sampled(
    network: nn.Module, input_shape: torch.Size, *, samples: int = 1000, corners: int = 14, seed: int = 0
) -> BoundFunction:
    """The range over sampled points of the box: an inner estimate, the reference for coverage. NOT a certificate.

    Takes `samples` uniform points, the centre, and as many random corners, or all 2^n corners where the input has
    n <= `corners` elements. Equal seeds visit equal points. Cost: one forward pass per point; no gradient.
    """
    if samples < 1:
        raise ConfigError(f"sampled needs samples >= 1, got {samples}")
    refuse_training_mode(network)

    @torch.no_grad()
    def apply(box: Box, spec: Tensor | None) -> tuple[Tensor, Tensor]:
        generator = torch.Generator(box.lower.device).manual_seed(seed)
        lower = upper = None
        for points in _points(box, input_shape, samples, corners, generator):
            values = network(points.flatten(0, 1)).unflatten(0, points.shape[:2])
            check_spec(spec, values.shape[2])
            if spec is not None:
                values = torch.einsum("brk,bsk->bsr", spec.to(values.dtype), values)
            low, high = values.amin(1), values.amax(1)
            lower = low if lower is None else torch.minimum(lower, low)
            upper = high if upper is None else torch.maximum(upper, high)
        assert lower is not None
        assert upper is not None
        return lower, upper

    return apply


def _points(box: Box, shape: torch.Size, samples: int, corners: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Yield points [batch, some, *input] of the box: the centre, uniform ones, then corners."""
    lower, width = box.lower.unsqueeze(1), (box.upper - box.lower).unsqueeze(1)
    at_once = _at_once(box)
    yield box.center.unsqueeze(1)
    for weights in _uniform(samples, at_once, box, generator):
        yield lower + width * weights
    if shape.numel() <= corners:
        bits = torch.arange(shape.numel(), device=lower.device)
        for some in torch.arange(2 ** shape.numel(), device=lower.device).split(at_once):
            high = (some.unsqueeze(1) >> bits & 1).bool().view(1, -1, *shape)
            yield torch.where(high, box.upper.unsqueeze(1), lower)
    else:
        for weights in _uniform(samples, at_once, box, generator):
            yield torch.where(weights > 0.5, box.upper.unsqueeze(1), lower)


def _at_once(box: Box) -> int:
    """How many points of each box one forward pass takes: many on a GPU; on a CPU so few that the layers stay in its
    cache, which takes a fifth to a half of the time."""
    if box.lower.device.type == "cpu":
        return max(1, max(2**14 // box.shape.numel(), 128) // len(box))
    return max(1, 2**22 // box.lower.numel())


def _uniform(samples: int, at_once: int, box: Box, generator: torch.Generator) -> Iterator[Tensor]:
    like = box.lower
    for start in range(0, samples, at_once):
        size = (len(box), min(at_once, samples - start), *like.shape[1:])
        yield torch.rand(size, generator=generator, dtype=like.dtype, device=like.device)
