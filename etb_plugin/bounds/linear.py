"""What the bounds by linear relaxation share: the rows of a spec over given ends, some examples at a time."""

from collections.abc import Callable

import torch
from torch import Tensor

from etb_plugin.bounds.registry import BoundFunction
from etb_plugin.bounds.types import check_spec, identity_rows
from etb_plugin.graph.ends import examples_at_once
from etb_plugin.graph.graph import Ends, Graph
from etb_plugin.graph.regions import Region
from etb_plugin.graph.relaxation import Relaxation
from etb_plugin.stopping import check_time

TAKES = "affine layers, ReLU to GELU, jumps, max pooling, products, softmax, attention, in any graph; boxes, balls"


def by_rows(
    graph: Graph,
    ends_of: Callable[[Region], Ends],
    lowest: Callable[[Relaxation, Tensor], Tensor],
    *,
    lower_only: bool,
) -> BoundFunction:
    """Return the bound whose rows are `lowest` over the ends that `ends_of` gives, -lowest of the negated rows above.

    Shapes: rows [batch or 1, rows, classes], their least values [batch, rows]. With `lower_only` upper ends are +inf.
    """

    def bounded(region: Region, rows: Tensor) -> tuple[Tensor, Tensor]:
        relaxation = Relaxation(graph, region, ends_of(region))
        if lower_only:
            lower = lowest(relaxation, rows)
            return lower, torch.full_like(lower, torch.inf)
        lower, negated = lowest(relaxation, torch.cat([rows, -rows], 1)).chunk(2, 1)
        return lower, -negated

    return in_blocks(graph, bounded)


def in_blocks(
    graph: Graph, bounded: Callable[[Region, Tensor], tuple[Tensor, Tensor]], *, columns: int | None = None
) -> BoundFunction:
    """Return (region, spec or None) -> lower and upper by `bounded`, which takes (region, rows), for as many examples
    at a time as memory holds; `columns` for each are what hidden units take in place of rows of their own."""

    def apply(region: Region, spec: Tensor | None) -> tuple[Tensor, Tensor]:
        check_spec(spec, graph.classes)
        rows = identity_rows(region.center, graph.classes) if spec is None else spec.to(region.center.dtype)
        at_once = examples_at_once(graph, region, max(2 * rows.shape[1], columns or 0), units=columns is None)
        parts = []
        for i in range(0, len(region), at_once):
            check_time()
            parts.append(bounded(region[i : i + at_once], rows if spec is None else rows[i : i + at_once]))
        lower, upper = (torch.cat(ends) if len(parts) > 1 else ends[0] for ends in zip(*parts, strict=True))
        return lower.expand(len(region), -1), upper.expand(len(region), -1)

    return apply
