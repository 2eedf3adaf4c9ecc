"""Calls of torch that come to others: each is one function here, written in calls that a graph has.

They are put in once, into the network as it was recorded; shapes are those of its values for an example.
"""

import math
import operator
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx
from torch.nn import functional as F

from etb_plugin.graph.symbolic import CALLED, argument, dependent, shapes

_MOST_SORTED = 32
"""Elements that are sorted: the network of comparisons has half as many squared."""


class _NotTaken(Exception):
    """A form that is left as it is, for the builder to refuse by its name."""


def decomposed(module: fx.GraphModule, example: Tensor) -> fx.GraphModule:
    """Return the network with the calls of `_FORMS` written out that depend on its input, of which `example` is one."""
    _stack_behind(module.graph)
    of_input = dependent(module.graph)
    found = [n for n in module.graph.nodes if n.op in CALLED and n.target in _FORMS and n in of_input]
    if not found:
        return module
    known = shapes(module, example)
    tracer = fx.proxy.GraphAppendingTracer(module.graph)
    # Asked for before anything is replaced; of several values none is known.
    first = [known.get(node.all_input_nodes[0]) for node in found]
    for node, shape in zip(found, first, strict=True):
        if shape is None:
            continue
        given: Any = fx.map_arg((node.args, node.kwargs), partial(fx.Proxy, tracer=tracer))  # type: ignore[arg-type]
        with module.graph.inserting_before(node):
            try:
                made = _FORMS[node.target](shape, *given[0], **given[1])
            except (_NotTaken, TypeError):
                continue
        _put(node, made)
    module.recompile()
    return module


def _stack_behind(graph: fx.Graph) -> None:
    """Where values are stacked in front of the batch to be averaged, added up, ..., as of an ensemble, put the new
    dimension last. Not `front`'s: as many values as the builder's probe has examples would pass for its batch."""
    for node in graph.nodes:
        if node.target is torch.stack and argument(node, 1, "dim", 0) == 0 and all(map(_reduces_first, node.users)):
            node.args, node.kwargs = (argument(node, 0, "tensors", None), -1), {}
            for user in list(node.users):
                by_name = "dim" in user.kwargs
                user.args = user.args if by_name else (user.args[0], -1, *user.args[2:])
                user.kwargs = user.kwargs | {"dim": -1} if by_name else user.kwargs


def _reduces_first(node: fx.Node) -> bool:
    dim, kept = argument(node, 1, "dim", None), node.kwargs.get("keepdim", len(node.args) > 2)
    return node.op in CALLED and node.target in _REDUCTIONS and dim in (0, (0,), [0]) and not kept


_REDUCTIONS = {
    *(torch.mean, torch.sum, torch.amax, torch.amin, torch.max, torch.min, torch.median, torch.logsumexp, torch.prod),
    *("mean", "sum", "amax", "amin", "max", "min", "median", "logsumexp", "prod"),
}


def _put(node: fx.Node, made: Any) -> None:
    """Let what is made stand for the node; of several values, each where it is asked for."""
    if isinstance(made, fx.Proxy):
        node.replace_all_uses_with(made.node)
    for user in list(node.users):
        which = user.args[1] if user.target in (operator.getitem, getattr) else None
        place = {"values": 0}.get(which, which)  # type: ignore[call-overload]
        if which is not None and not user.users:
            node.graph.erase_node(user)
            continue
        if isinstance(place, int) and place < len(made):
            user.replace_all_uses_with(made[place].node)
            node.graph.erase_node(user)
    if not node.users:  # what is asked for beside, such as places, the builder refuses
        node.graph.erase_node(node)


# The forms. Each takes the shape of its first value, and the call's own arguments.


def _glu(shape: torch.Size, x: Any, dim: int = -1) -> Any:
    half = shape[dim] // 2
    return x.narrow(dim, 0, half) * torch.sigmoid(x.narrow(dim, half, half))


def _softmin(shape: torch.Size, x: Any, dim: int | None = None, *_: Any, **__: Any) -> Any:
    return F.softmax(-x, dim)


def _rrelu(
    shape: torch.Size, x: Any, lower: float = 1 / 8, upper: float = 1 / 3, training: bool = False, inplace: bool = False
) -> Any:
    if training or inplace:
        raise _NotTaken
    return F.leaky_relu(x, (lower + upper) / 2)


def _dims(shape: torch.Size, dim: Any) -> list[int]:
    """Return dimensions counted from the front. Refuses the batch's, and all at once."""
    found = [d % len(shape) for d in ([dim] if isinstance(dim, int) else dim or ())]
    if not found or 0 in found:
        raise _NotTaken
    return found


def _folded(x: Any, dim: int, size: int, join: Callable[[Any, Any], Any]) -> Any:
    """Join the elements along a dimension, two by two; it stays, with one element."""
    parts = [x.narrow(dim, i, 1) for i in range(size)]
    while len(parts) > 1:
        pairs = zip(parts[::2], parts[1::2], strict=False)
        parts = [join(a, b) for a, b in pairs] + parts[len(parts) & ~1 :]
    return parts[0]


def _reduced(shape: torch.Size, x: Any, dims: Sequence[int], keep: bool, join: Callable[[Any, Any], Any]) -> Any:
    for dim in dims:
        x = _folded(x, dim, shape[dim], join)
    return x if keep else x.reshape(-1, *(size for d, size in enumerate(shape) if d and d not in dims))


def _extreme(join: Callable[[Any, Any], Any]) -> Callable[..., Any]:
    def form(shape: torch.Size, x: Any, dim: Any = (), keepdim: bool = False) -> Any:
        return _reduced(shape, x, _dims(shape, dim), keepdim, join)

    return form


def _extreme_and_place(join: Callable[[Any, Any], Any]) -> Callable[..., Any]:
    """Along a dimension, or of two values; that of all elements is not taken."""

    def form(shape: torch.Size, x: Any, dim: Any = None, keepdim: bool = False) -> Any:
        if isinstance(dim, fx.Proxy):
            return join(x, dim)
        return [_reduced(shape, x, _dims(shape, dim), keepdim, join)]

    return form


def _product(shape: torch.Size, x: Any, dim: Any = None, keepdim: bool = False) -> Any:
    return _reduced(shape, x, _dims(shape, dim), keepdim, operator.mul)


def _adaptive_largest(shape: torch.Size, x: Any, size: Any, return_indices: bool = False) -> Any:
    if return_indices:
        raise _NotTaken
    count = len(shape) - 2
    sizes = [size] * count if isinstance(size, int) else list(size)
    for dim, wanted in enumerate(sizes, start=2):
        length = shape[dim]
        wanted = length if wanted is None else wanted
        ends = [(i * length // wanted, -(-(i + 1) * length // wanted)) for i in range(wanted)]
        cells = [_folded(x.narrow(dim, a, b - a), dim, b - a, torch.maximum) for a, b in ends]
        x = cells[0] if len(cells) == 1 else torch.cat(cells, dim)
    return x


def _sorted(shape: torch.Size, x: Any, dim: int = -1, descending: bool = False, **_: Any) -> Any:
    """By a network of comparisons, neighbours in turn."""
    (dim,) = _dims(shape, dim)
    size = shape[dim]
    if size > _MOST_SORTED:
        raise _NotTaken
    parts = [x.narrow(dim, i, 1) for i in range(size)]
    first, last = (torch.maximum, torch.minimum) if descending else (torch.minimum, torch.maximum)
    for turn in range(size):
        for i in range(turn % 2, size - 1, 2):
            a, b = parts[i : i + 2]
            parts[i : i + 2] = [first(a, b), last(a, b)]
    return [torch.cat(parts, dim)]


def _largest_some(shape: torch.Size, x: Any, k: int, dim: int = -1, largest: bool = True, sorted: bool = True) -> Any:
    return [_sorted(shape, x, dim, descending=largest)[0].narrow(dim, 0, k)]


def _median(shape: torch.Size, x: Any, dim: Any = None, keepdim: bool = False) -> Any:
    if not isinstance(dim, int):
        raise _NotTaken
    return _smallest(shape, x, (shape[dim] - 1) // 2 + 1, dim, keepdim)


def _smallest(shape: torch.Size, x: Any, k: int, dim: int = -1, keepdim: bool = False) -> Any:
    ordered = _sorted(shape, x, dim)[0]
    return [ordered.narrow(dim, k - 1, 1) if keepdim else ordered.select(dim, k - 1)]


def _truncated(shape: torch.Size, x: Any) -> Any:
    return torch.floor(torch.relu(x)) - torch.floor(torch.relu(-x))


def _rest(round_down: Callable[..., Any]) -> Callable[..., Any]:
    """What division by a number leaves."""

    def form(shape: torch.Size, x: Any, divisor: Any) -> Any:
        if not isinstance(divisor, int | float):
            raise _NotTaken
        return x - divisor * round_down(shape, x * (1 / divisor))

    return form


def _cross(shape: torch.Size, x: Any, y: Any, dim: int = -1) -> Any:
    (dim,) = _dims(shape, dim)
    return x.roll(-1, dim) * y.roll(-2, dim) - x.roll(-2, dim) * y.roll(-1, dim)


def _variance_and_mean(root: bool) -> Callable[..., Any]:
    name = torch.std if root else torch.var

    def form(shape: torch.Size, x: Any, dim: Any = None, *args: Any, keepdim: bool = False, **kwargs: Any) -> Any:
        dims = _dims(shape, dim)
        return [name(x, dims, *args, keepdim=keepdim, **kwargs), x.mean(dims, keepdim=keepdim)]

    return form


def _length(shape: torch.Size, x: Any, ord: Any = 2, dim: Any = None, keepdim: bool = False, **_: Any) -> Any:
    dims = _dims(shape, dim)
    if ord not in (None, 1, 2, "fro") or (ord == "fro" and len(dims) > 2):
        raise _NotTaken
    return x.abs().sum(dims, keepdim=keepdim) if ord == 1 else (x * x).sum(dims, keepdim=keepdim).sqrt()


def _matrix_length(shape: torch.Size, x: Any, ord: Any = None, dim: Any = None, keepdim: bool = False, **_: Any) -> Any:
    if ord is not None and not isinstance(dim, int):
        raise _NotTaken  # a norm of matrices
    return _length(shape, x, ord, dim, keepdim)


def _root_of_powers(dimensions: int) -> Callable[..., Any]:
    pool: Callable[..., Any] = (F.avg_pool1d, F.avg_pool2d)[dimensions - 1]

    def form(shape: torch.Size, x: Any, power: float, kernel: Any, stride: Any = None, ceil_mode: bool = False) -> Any:
        if power not in (1, 2) or ceil_mode:
            raise _NotTaken
        count = kernel**dimensions if isinstance(kernel, int) else math.prod(kernel)
        if power == 1:
            return pool(x, kernel, stride) * count
        return (pool(x * x, kernel, stride) * count).sqrt()

    return form


def _local_response(
    shape: torch.Size, x: Any, size: int, alpha: float = 1e-4, beta: float = 0.75, k: float = 1.0
) -> Any:
    """Over neighbouring channels; outside there are zeros."""
    padded = F.pad(x * x, [0, 0] * (len(shape) - 2) + [size // 2, (size - 1) // 2])
    around = [padded.narrow(1, i, shape[1]) for i in range(size)]
    total = around[0]
    for one in around[1:]:
        total = total + one
    return x * _power(shape, total * (alpha / size) + k, -beta)


def _power(shape: torch.Size, x: Any, exponent: Any) -> Any:
    """A power that is not known otherwise: of positive numbers by their logarithm."""
    if not isinstance(exponent, int | float) or exponent in (0.5, -0.5, -1, 0):
        raise _NotTaken
    if exponent == int(exponent):
        if exponent > 0 or exponent < -16:
            raise _NotTaken
        return 1 / x ** int(-exponent)
    return torch.exp(torch.log(x) * exponent)


def _cosine(shape: torch.Size, x: Any, y: Any, dim: int = 1, eps: float = 1e-8) -> Any:
    return (F.normalize(x, dim=dim, eps=eps) * F.normalize(y, dim=dim, eps=eps)).sum(dim)


def _distances(shape: torch.Size, x: Any, y: Any, p: float = 2.0, **_: Any) -> Any:
    if p != 2:
        raise _NotTaken
    apart = x.unsqueeze(-2) - y.unsqueeze(-3)
    return (apart * apart).sum(-1).sqrt()


def _bilinear(shape: torch.Size, x: Any, y: Any, weight: Any, bias: Any = None) -> Any:
    if len(shape) != 2:
        raise _NotTaken
    found = (torch.einsum("bi,kij->bkj", x, weight) * y.unsqueeze(1)).sum(-1)
    return found if bias is None else found + bias


def _clamped(shape: torch.Size, x: Any, min: Any = None, max: Any = None) -> Any:
    if not any(isinstance(end, fx.Proxy) for end in (min, max)):
        raise _NotTaken  # numbers
    above = x if min is None else torch.maximum(x, min)
    return above if max is None else torch.minimum(above, max)


def _windows(shape: torch.Size, x: Any, dimension: int, size: int, step: int) -> Any:
    (dim,) = _dims(shape, dimension)
    starts = range(0, shape[dim] - size + 1, step)
    return torch.stack([x.narrow(dim, start, size).movedim(dim, -1) for start in starts], dim)


_FORMS: dict[Any, Callable[..., Any]] = {
    F.glu: _glu,
    **dict.fromkeys([F.softmin], _softmin),
    **dict.fromkeys([F.rrelu, torch.rrelu], _rrelu),
    **dict.fromkeys([torch.amax, "amax"], _extreme(torch.maximum)),
    **dict.fromkeys([torch.amin, "amin"], _extreme(torch.minimum)),
    **dict.fromkeys([torch.max, "max"], _extreme_and_place(torch.maximum)),
    **dict.fromkeys([torch.min, "min"], _extreme_and_place(torch.minimum)),
    **dict.fromkeys([torch.prod, "prod"], _product),
    **dict.fromkeys([F.adaptive_max_pool1d, F.adaptive_max_pool2d, F.adaptive_max_pool3d], _adaptive_largest),
    **dict.fromkeys([torch.sort, "sort"], _sorted),
    **dict.fromkeys([torch.topk, "topk"], _largest_some),
    **dict.fromkeys([torch.median, "median"], _median),
    torch.var_mean: _variance_and_mean(root=False),
    torch.std_mean: _variance_and_mean(root=True),
    **dict.fromkeys([torch.norm, "norm", torch.linalg.vector_norm], _length),
    torch.linalg.norm: _matrix_length,
    F.lp_pool1d: _root_of_powers(1),
    F.lp_pool2d: _root_of_powers(2),
    F.local_response_norm: _local_response,
    **dict.fromkeys([torch.pow, operator.pow, "pow"], _power),
    **dict.fromkeys([F.cosine_similarity, torch.cosine_similarity], _cosine),
    torch.cdist: _distances,
    **dict.fromkeys([F.bilinear, torch.bilinear], _bilinear),
    **dict.fromkeys([torch.clamp, torch.clip, "clamp", "clip"], _clamped),
    **dict.fromkeys([torch.clamp_max, "clamp_max"], lambda shape, x, max: x.clamp(max=max)),
    **dict.fromkeys([torch.kthvalue, "kthvalue"], _smallest),
    **dict.fromkeys([torch.trunc, "trunc", torch.fix, "fix"], _truncated),
    **dict.fromkeys([torch.frac, "frac"], lambda shape, x: x - _truncated(shape, x)),
    **dict.fromkeys([torch.fmod, "fmod"], _rest(_truncated)),
    **dict.fromkeys([torch.remainder, "remainder", operator.mod], _rest(lambda shape, x: torch.floor(x))),
    torch.linalg.cross: _cross,
    **dict.fromkeys([torch.deg2rad, "deg2rad"], lambda shape, x: x * (math.pi / 180)),
    **dict.fromkeys([torch.rad2deg, "rad2deg"], lambda shape, x: x * (180 / math.pi)),
    **dict.fromkeys([torch.expm1, "expm1"], lambda shape, x: torch.exp(x) - 1),
    **dict.fromkeys([torch.log1p, "log1p"], lambda shape, x: torch.log(x + 1)),
    **dict.fromkeys([torch.exp2, "exp2"], lambda shape, x: torch.exp(x * math.log(2))),
    **dict.fromkeys([torch.log2, "log2"], lambda shape, x: torch.log(x) * (1 / math.log(2))),
    **dict.fromkeys([torch.log10, "log10"], lambda shape, x: torch.log(x) * (1 / math.log(10))),
    **dict.fromkeys([torch.erfc, "erfc"], lambda shape, x: 1 - torch.erf(x)),
    **dict.fromkeys([torch.cosh, "cosh"], lambda shape, x: (torch.exp(x) + torch.exp(-x)) / 2),
    **dict.fromkeys([torch.sinh, "sinh"], lambda shape, x: (torch.exp(x) - torch.exp(-x)) / 2),
    **dict.fromkeys([torch.logaddexp, "logaddexp"], lambda shape, x, y: y + F.softplus(x - y)),
    **dict.fromkeys([torch.hypot, "hypot"], lambda shape, x, y: (x * x + y * y).sqrt()),
    **dict.fromkeys([torch.baddbmm, "baddbmm"], lambda shape, x, a, b, beta=1, alpha=1: x * beta + (a @ b) * alpha),
    **dict.fromkeys([torch.lerp, "lerp"], lambda shape, x, y, weight: x + (y - x) * weight),
    **dict.fromkeys([torch.addcmul, "addcmul"], lambda shape, x, a, b, value=1.0: x + a * b * value),
    **dict.fromkeys([torch.addcdiv, "addcdiv"], lambda shape, x, a, b, value=1.0: x + a / b * value),
    "unfold": _windows,
    torch.rsub: lambda shape, x, y, alpha=1.0: y - x * alpha,
    torch.hstack: lambda shape, some: torch.cat(some, 1 if len(shape) > 1 else 0),
}
"""By function or method: with the shape of the first value that a call names, and its arguments."""
