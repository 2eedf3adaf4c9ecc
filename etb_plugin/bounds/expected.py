"""The expected tight bound (Alsubaihi et al. 2019, equations 1, 3 and 6). Not a certificate.

For f = A_L relu(... relu(A_1 x + b_1) ...) + b_L on the box of centre m and radius r, each activation is
replaced by the diagonal M_i = diag(1{u_i >= 0}), u_i being an upper bound of its input (`masks`). What is left is
affine, G x + g, and its range over the box is (G m + g) -/+ |G| r. Theorem 1 makes that interval cover the true range
*in expectation over random Gaussian weights* of a wide enough network; on a given network it may not.

Ours, beyond the paper: l2 and l1 balls, |G| r then being eps times the rows' dual norm; and other elementwise
activations (LeakyReLU, hard tanh, sigmoid, GELU, ...), products and softmax, each replaced by the affine piece, or the
tangent, at u_i.

Two facts keep it cheap. G m + g is one forward pass of the masked network at m, so biases need no rows. And the
rows of G come from one batched transposed pass, whose gradient is an ordinary one: masks carry no gradient and
nothing is differentiated twice. Stored for the gradient: the rows at each layer, batch x rows x features; without
a gradient, the rows of two layers.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from etb_plugin.bounds.masks import MASKS, Pieces, through_pieces, walk
from etb_plugin.bounds.registry import BoundFunction, get_bound, register_bound
from etb_plugin.bounds.types import check_spec
from etb_plugin.errors import ConfigError, UnsupportedLayer, unknown_name
from etb_plugin.graph.graph import Graph
from etb_plugin.graph.jumps import Jumping
from etb_plugin.graph.regions import Box, Region
from etb_plugin.graph.rows import Rows
from etb_plugin.graph.tracing import trace

CENTERS = ("masked", "network")
_ELEMENTS = 2**28
"""Elements that the rows of a batch may hold at the widest layer unless `max_rows` says otherwise: 1 GiB of float32."""
_CLIMBS = 2
"""Climbs to the worst corner for the fused loss."""


@register_bound(
    "expected",
    sound=False,
    differentiable=True,
    balls=True,
    takes="affine layers, activations (ReLU to GELU), max pooling, products, softmax and attention, in any graph",
)
def expected(
    network: nn.Module,
    input_shape: torch.Size,
    *,
    masks: str = "ibp",
    center: str = "masked",
    rows: str = "all",
    scale: float = 1.0,
    projections: int = 50,
    seed: int = 0,
    max_rows: int | None = None,
    bfloat16: bool = False,
) -> BoundFunction:
    """The expected tight bound of Alsubaihi et al. (equations 3 and 6). NOT a certificate.

    `masks` is "ibp", "blockwise", "sketch" (with `projections` and `seed`), "center" or "slope": see `bounds/masks.py`.
    `center` is "masked", the paper's G m + g, or "network", which puts f(m) there as the authors' training code does.

    `rows` "top-3" bounds only the 3 rows of the spec with the lowest centres; the others come back without width, at
    their centres. For margins those are the classes that come nearest to the true one, and the cost falls with
    their number. Ours; meant for training, as is rows "fused", which gives worst logits and no interval: methods take
    it (`worst_corner`).

    `scale` multiplies the interval's radius (see `calibration`). `max_rows` is how many rows (images x rows of the
    spec) are worked on at once; by default as many as hold in 1 GiB. With `bfloat16` the rows are pulled back in that
    precision (about three digits of the radius): for training on hardware that is fast in it.

    Cost: with masks="ibp" two forward passes of the network, one of the masked network, and one transposed pass per
    row.
    """
    settings = Expected(masks, center, rows, scale, projections, seed, max_rows, bfloat16)
    graph = trace(network, input_shape)
    settings.check(graph)
    return lambda region, spec: settings.interval(graph, region, spec)


def worst_corner(network: nn.Module, input_shape: torch.Size, **options: Any) -> Callable[[Box, Tensor], Tensor]:
    """Prepare (box, labels [batch]) -> the affine network's logits, [batch, classes], at the corner of the box where
    their cross-entropy is worst; the options are those of `expected` but `rows`, `center` and `scale`.

    One row in place of one for each class (ours). The rows of a spec take each margin to its own worst corner; the
    cross-entropy of G x + g, which is convex in x, is worst at one corner for all. That is sought by climbing its
    linearisation (the conditional gradient method), first from the box's centre and then from the corner found there:
    two transposed passes without a gradient, and one pass forward with it. With two classes both are the same.
    """
    settings = Expected(**{**get_bound("expected").options, **options, "rows": "all"})
    graph = trace(network, input_shape)
    settings.check(graph)
    return lambda box, labels: settings.corner(graph, box, labels)


@dataclass(frozen=True)
class Expected:
    """The options of the bound, checked; `interval` is the bound itself, on a graph from either front end."""

    masks: str
    center: str
    rows: str
    scale: float
    projections: int
    seed: int
    max_rows: int | None
    bfloat16: bool

    def __post_init__(self) -> None:
        if self.masks not in MASKS:
            raise unknown_name("masks", self.masks, MASKS)
        if self.center not in CENTERS:
            raise unknown_name("center", self.center, CENTERS)
        if self.rows == "fused":
            raise ConfigError("rows='fused' gives no interval: methods take it; a bound takes all or top-3")
        if self.rows != "all" and not re.fullmatch(r"top-[1-9]\d*", self.rows):
            raise ConfigError(f"unknown rows {self.rows!r}; write all, or top-3 for the 3 lowest margins")
        if not self.scale >= 0:
            raise ConfigError(f"scale is {self.scale}; it must be a number from 0 on")
        for name in ("projections", "max_rows"):
            value: Any = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"expected needs {name} >= 1, got {value}")

    @property
    def _top(self) -> int | None:
        return None if self.rows == "all" else int(self.rows.removeprefix("top-"))

    def check(self, graph: Graph) -> None:
        """Raise UnsupportedLayer for a function that jumps: its pieces are flat, and say nothing of what it does."""
        for i, activation in graph.activations.items():
            if isinstance(activation, Jumping) and self.masks != "slope":
                raise UnsupportedLayer(
                    f"layer {graph.nodes[i].name} jumps, and expected follows slopes; masks='slope' counts jumps"
                )

    def interval(self, graph: Graph, region: Region, spec: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return lower and upper, [batch, rows]. Raises ConfigError for a spec that is not over the graph's classes."""
        classes = graph.classes
        check_spec(spec, classes)
        if spec is None and self._top is not None:
            raise ConfigError(f"rows={self.rows!r} picks margins: it needs a spec")
        number = min(self._top or classes, classes if spec is None else spec.shape[1])
        limit = self.max_rows or max(1, _ELEMENTS // graph.widest)
        at_once = max(1, limit // number)
        parts = [
            self._interval(graph, region[i : i + at_once], None if spec is None else spec[i : i + at_once], limit)
            for i in range(0, len(region), at_once)
        ]
        lower, upper = (torch.cat(ends) if len(parts) > 1 else ends[0] for ends in zip(*parts, strict=True))
        return lower, upper

    def corner(self, graph: Graph, box: Box, labels: Tensor) -> Tensor:
        """Do as `worst_corner` says."""
        pieces = self._pieces(graph, box)
        with torch.no_grad():
            true, x = F.one_hot(labels, graph.classes), box.center
            for _ in range(_CLIMBS):
                row = walk(graph, x, pieces)[-1].softmax(1) - true  # the cross-entropy's gradient at the logits
                x = box.center + box.radius * self._pulled(graph, row.unsqueeze(1), pieces)[:, 0].sign()
        return walk(graph, x, pieces)[-1]

    def _pieces(self, graph: Graph, region: Region) -> Pieces:
        with torch.no_grad():
            points = MASKS[self.masks](graph, region, self.projections, self.seed)
        return {i: activation.piece(*points[i]) for i, activation in graph.activations.items()}

    def _pulled(self, graph: Graph, rows: Tensor, pieces: Pieces) -> Tensor:
        """Return rows of the logits as rows of the input, [batch, rows, *input]."""
        with torch.autocast(rows.device.type, torch.bfloat16, enabled=self.bfloat16):
            reached, _ = graph.backward({graph.last: Rows(rows)}, through_pieces(pieces), shifts=False)
        return reached[0].values.to(rows.dtype)

    def _interval(self, graph: Graph, region: Region, spec: Tensor | None, limit: int) -> tuple[Tensor, Tensor]:
        pieces = self._pieces(graph, region)
        middle = walk(graph, region.center, pieces if self.center == "masked" else {})[-1]
        if spec is None:
            rows = torch.eye(middle.shape[1], dtype=middle.dtype, device=middle.device).unsqueeze(0)
        else:
            rows = spec.to(middle.dtype)
            middle = torch.einsum("brk,bk->br", rows, middle)
        if self._top is None or self._top >= rows.shape[1]:
            deviation = self._deviation(graph, region, rows, pieces, limit)
        else:
            lowest = middle.detach().topk(self._top, dim=1, largest=False).indices
            chosen = rows.gather(1, lowest.unsqueeze(2).expand(-1, -1, rows.shape[2]))
            reached = self._deviation(graph, region, chosen, pieces, limit)
            deviation = torch.zeros_like(middle).scatter(1, lowest, reached)
        return middle - deviation, middle + deviation

    def _deviation(self, graph: Graph, region: Region, rows: Tensor, pieces: Pieces, limit: int) -> Tensor:
        """Return |G| r times the scale, [batch, rows], no more than `limit` rows at a time."""
        parts = [region.deviation(self._pulled(graph, some, pieces)) for some in rows.split(limit, dim=1)]
        return self.scale * (torch.cat(parts, 1) if len(parts) > 1 else parts[0]).expand(len(region), -1)
