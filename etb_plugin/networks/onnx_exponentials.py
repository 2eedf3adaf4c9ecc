"""Softmax, its logarithm and log sum exp where a file writes them out, as JAX does: exp(x - m) over its sum.

m is the maximum of x there; whatever has one element along the sum's dimension changes none of the three.
"""

import operator
from typing import Any

import torch
from torch import fx

Found = tuple[fx.Node, int]
"""A node, and the dimension along which exponentials are added."""


def softmax(above: fx.Node, under: fx.Node) -> Found | None:
    """Return x where above / under is softmax(x)."""
    total = _summed(under)
    return _unshifted(_argument(above), total[1]) if total is not None and total[0] is above else None


def log_softmax(shifted: fx.Node, log: fx.Node) -> Found | None:
    """Return x where shifted - log is log(softmax(x))."""
    total = _summed_in_logarithm(log)
    return _unshifted(shifted, total[1]) if total is not None and _argument(total[0]) is shifted else None


def log_sum_exp(log: fx.Node, shift: fx.Node) -> Found | None:
    """Return x where log + shift is the logarithm of the sum of exp(x), along a dimension that stays."""
    total = _summed_in_logarithm(log)
    if total is None:
        return None
    shifted = _argument(total[0])
    found = _unshifted(shifted, total[1])
    return found if found[0] is not shifted and _bare(shifted.args[1]) is _bare(shift) else None


def _argument(node: fx.Node) -> Any:
    return node.args[0]


def _shape(node: Any) -> torch.Size | None:
    """Return the shape of a node that depends on the input, for one example."""
    probe = node.meta.get("probe") if isinstance(node, fx.Node) else None
    return None if probe is None else probe.shape


def _behind(node: Any, *targets: Any) -> Any:
    """Return the node before calls of some kinds."""
    while isinstance(node, fx.Node) and node.target in targets:
        node = _argument(node)
    return node


def _bare(node: Any) -> Any:
    """Return the value that a node has in another shape, or repeated."""
    return _behind(node, "expand", "reshape")


def _summed_in_logarithm(node: fx.Node) -> Found | None:
    log = _behind(node, "expand")
    return _summed(_argument(log)) if log.target is torch.log else None


def _summed(node: fx.Node) -> Found | None:
    """Return the exponentials that a node is the sum of, along one dimension that stays (of one element, or as many
    alike)."""
    kept = _behind(node, "expand", torch.abs)
    total: Any = _bare(kept)
    if total.target is not torch.sum or _argument(total).target is not torch.exp or len(total.args[1]) != 1:
        return None
    exponentials, (dim,) = total.args
    inside = _shape(exponentials)
    assert inside is not None
    stays = _shape(kept) == (*inside[:dim], 1, *inside[dim + 1 :])
    return (exponentials, int(dim)) if stays else None


def _unshifted(node: fx.Node, dim: int) -> Found:
    """Return x of x - m, where m has one element along the dimension."""
    if node.target is operator.sub:
        x, m = node.args
        whole, before = _shape(x), _shape(_behind(m, "expand"))
        alike = whole is not None and before is not None and len(whole) == len(before)
        if isinstance(x, fx.Node) and alike and whole == _shape(node) and before[dim] == 1:  # type: ignore[index]
            return x, dim
    return node, dim
