"""Softmax, its logarithm and log sum exp where a file writes them out, as JAX does: exp(x - m) over its sum.

m is the maximum of x there; whatever has one element along the sum's dimension changes none of the three.
"""

import operator
from typing import Any

import torch
from torch import Tensor, fx

Found = tuple[fx.Node, int]
"""The node of x, and the dimension along which the exponentials are added."""
_SPREAD = ("expand", torch.abs)
"""What repeats sums, or changes nothing of them."""


def softmax(above: fx.Node, under: fx.Node) -> Found | None:
    """Return x where above / under is softmax(x)."""
    exponentials, dim = _summed(under)
    return _unshifted(_argument(above), dim) if exponentials is above and dim is not None else None


def log_softmax(shifted: fx.Node, log: fx.Node) -> Found | None:
    """Return x where shifted - log is log(softmax(x))."""
    exponentials, dim = _logarithm_of_sum(log)
    if exponentials is None or dim is None or _argument(exponentials) is not shifted:
        return None
    return _unshifted(shifted, dim)


def log_sum_exp(log: fx.Node, shift: fx.Node) -> Found | None:
    """Return x where log + shift is the logarithm of the sum of exp(x), along a dimension that stays."""
    exponentials, dim = _logarithm_of_sum(log)
    if exponentials is None or dim is None:
        return None
    shifted = _argument(exponentials)
    found = _unshifted(shifted, dim)
    return found if found[0] is not shifted and _bare(shifted.args[1]) is _bare(shift) else None


def _argument(node: fx.Node) -> Any:
    return node.args[0]


def _probe(node: Any) -> Tensor | None:
    """Return what a node that depends on the input is for one of zeros."""
    return node.meta.get("probe") if isinstance(node, fx.Node) else None


def _logarithm_of_sum(node: fx.Node) -> tuple[fx.Node | None, int | None]:
    while node.target == "expand":
        node = _argument(node)
    return _summed(_argument(node)) if node.target is torch.log else (None, None)


def _summed(node: fx.Node) -> tuple[fx.Node | None, int | None]:
    """Return the exponentials that a node is the sum of, along one dimension that stays (of one element, or as many
    alike), and the dimension."""
    while node.target in _SPREAD:
        node = _argument(node)
    kept, node = _probe(node), _bare(node)
    inside = _probe(_argument(node)) if node.target is torch.sum else None
    if kept is None or inside is None or len(node.args[1]) != 1 or _argument(node).target is not torch.exp:  # type: ignore[arg-type]
        return None, None
    dim = int(node.args[1][0])  # type: ignore[index, arg-type]
    stays = kept.shape == (*inside.shape[:dim], 1, *inside.shape[dim + 1 :])
    return (_argument(node), dim) if stays else (None, None)


def _bare(node: Any) -> Any:
    """Return the value that a node has in another shape of as many elements, or repeated."""
    while isinstance(node, fx.Node) and node.target in ("reshape", *_SPREAD[:1]):
        node = _argument(node)
    return node


def _unshifted(node: fx.Node, dim: int) -> Found:
    """Return x of x - m, where m has one element along the dimension."""
    if node.target is operator.sub:
        x, m = (_probe(one) for one in node.args)
        whole = _probe(node)
        if x is not None and m is not None and whole is not None and x.shape == whole.shape and m.ndim == x.ndim:
            before = node.args[1]
            while isinstance(before, fx.Node) and before.target == "expand":
                before = before.args[0]
            size = _probe(before)
            if size is not None and size.ndim == x.ndim and size.shape[dim] == 1:
                return node.args[0], dim  # type: ignore[return-value]
    return node, dim
