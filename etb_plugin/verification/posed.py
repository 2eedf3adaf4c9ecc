"""The networks of a query as one network, and its clauses as problems of it.

The one network takes what is free among all inputs, and gives all outputs, and behind them what else a clause speaks
of: inputs, and products of inputs and outputs. So every bound, attack and search takes conditions on inputs, on inputs
and outputs together, on several networks and of higher degree, as if they were on outputs.
"""

import itertools
import math
from collections.abc import Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from etb_plugin.bounds import Box
from etb_plugin.errors import ConfigError
from etb_plugin.graph.tracing import example_input
from etb_plugin.verification.paired import paired
from etb_plugin.verification.problem import Problem, Unsafe
from etb_plugin.verification.vnnlib import AtMost, Clause, Place, Query

_ROUNDS = 3
"""How often the box is made smaller by conditions on several inputs."""
_SLACK = 1e-9
"""What is left for rounding there, relative to the sizes of the terms."""

Product = tuple[Place, ...]


class Joint(nn.Module):
    """Networks side by side. Shapes: free inputs [batch, inputs] -> all outputs, then the products, [batch, outputs].

    `free` has for each element of all networks' inputs the number of the free input that it is. Where `pair` is there,
    it computes the outputs of the two networks from their inputs.
    """

    def __init__(
        self,
        networks: Sequence[nn.Module],
        shapes: Sequence[tuple[int, ...]],
        free: Sequence[int],
        outputs: int,
        products: Sequence[Product],
        pair: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.pair = pair
        self.networks, self.shapes = nn.ModuleList(networks), tuple(shapes)
        sizes = [math.prod(shape) for shape in shapes]
        self._own = [f"own{i}" for i in range(len(sizes))]
        for name, own in zip(self._own, torch.tensor(free).split(sizes), strict=True):
            self.register_buffer(name, own)
        self._factors: list[tuple[list[str], int]] = []
        for number, (form, alike) in enumerate(itertools.groupby(products, _form)):
            group, (degree, power) = list(alike), form
            names = [f"factor{number}_{k}" for k in range(1 if power else degree)]
            for k, name in enumerate(names):
                columns = [at + (outputs if kind == "X" else 0) for kind, at in (product[k] for product in group)]
                self.register_buffer(name, torch.tensor(columns))
            self._factors.append((names, degree if power else 1))

    def forward(self, x: Tensor) -> Tensor:
        """Return outputs and products."""
        flat = x.flatten(1)
        inputs = [
            flat.index_select(1, getattr(self, own)).reshape(-1, *shape)
            for own, shape in zip(self._own, self.shapes, strict=True)
        ]
        if self.pair is None:
            parts = [network(own) for network, own in zip(self.networks, inputs, strict=True)]
        else:
            parts = list(self.pair(*inputs))
        values = torch.cat([*parts, flat], 1)
        for names, exponent in self._factors:
            first, *others = (values.index_select(1, getattr(self, name)) for name in names)
            for other in others:
                first = first * other
            parts.append(first if exponent == 1 else first**exponent)  # bounds are tighter on a power than on x * x
        return torch.cat(parts, 1)


class Posed:
    """A query of networks that are there: one network for inputs of `shape`, and the `problems` about it. `forms` are
    ways to write the one network, of which one or another has the tighter bounds: two networks that are built alike may
    be one and its difference from the other.

    `networks` and `shapes` are those of the query's declarations, in order. Raises ConfigError where they have other
    numbers of inputs and outputs than declared, an input has no bounds, or a clause says nothing of the outputs.
    """

    def __init__(self, query: Query, networks: Sequence[nn.Module], shapes: Sequence[tuple[int, ...]]) -> None:
        self.query, self.shapes = query, tuple(shapes)
        for declared, network, shape in zip(query.networks, networks, shapes, strict=True):
            with torch.no_grad():
                outputs = network(example_input(network, torch.Size(shape))).shape[1]
            x, y = (sum(one.size for one in tensors) for tensors in (declared.inputs, declared.outputs))
            if (x, y) != (math.prod(shape), outputs):
                raise ConfigError(
                    f"{query.path} is about {x} inputs and {y} outputs; "
                    f"the network has {math.prod(shape)} inputs and {outputs} outputs"
                )
        self.outputs = sum(one.size for declared in query.networks for one in declared.outputs)
        atoms = [*query.always, *(one for clause in query.clauses for one in clause)]
        self.products = sorted(
            {p for one in atoms if _end_of(one) is None for p, _ in one.terms if len(p) > 1 or p[0][0] == "X"},
            key=lambda product: (_form(product), product),
        )
        self.alone = len(networks) == 1 and not self.products and list(query.free) == list(range(len(query.free)))
        self.shape = shapes[0] if self.alone else (1 + max(query.free),)
        if self.alone:
            self.forms = [networks[0]]
        else:
            pairs = [None, *([pair] if len(networks) == 2 and (pair := paired(*networks)) is not None else [])]
            joint = partial(Joint, networks, shapes, query.free, self.outputs, self.products)
            self.forms = [joint(pair).eval() for pair in pairs]
        first = {number: place for place, number in reversed(list(enumerate(query.free)))}
        self._places = [first[i] for i in range(len(first))]  # of each free input, the first that it is
        self.problems = self._problems()

    def inputs(self, point: Tensor) -> list[Tensor]:
        """Return each network's own input [1, *shape] at a point [1, *input] of the one network."""
        every = point.flatten()[torch.tensor(self.query.free, device=point.device)]
        own = every.split([math.prod(shape) for shape in self.shapes])
        return [part.view(1, *shape) for part, shape in zip(own, self.shapes, strict=True)]

    def point(self, inputs: Sequence[Tensor]) -> Tensor:
        """Return the point [1, *input] of the one network where each network's own input [1, *shape] is these."""
        every = torch.cat([x.flatten() for x in inputs])
        return every[torch.tensor(self._places, device=every.device)].view(1, *self.shape)

    def values(self, point: Tensor, outputs: Sequence[Tensor]) -> Tensor:
        """Return what the one network gives, [1, values], at a point [1, *input] where each network gives `outputs`
        [1, own]."""
        every = torch.cat([output.double() for output in outputs], 1)
        both = {"X": point.flatten().tolist(), "Y": every.flatten().tolist()}
        found = [math.prod(both[kind][number] for kind, number in product) for product in self.products]
        return torch.cat([every, every.new_tensor([found])], 1) if found else every

    def _problems(self) -> list[Problem]:
        size = 1 + max(self.query.free)
        lower, upper = np.full(size, -np.inf), np.full(size, np.inf)
        _narrow(lower, upper, self.query.always)
        always = tuple(one for one in self.query.always if _end_of(one) is None)
        boxes: dict[tuple[bytes, bytes], list[Unsafe]] = {}
        for clause in self.query.clauses:
            low, high = lower.copy(), upper.copy()
            _narrow(low, high, clause)
            _narrow_further(low, high, (*always, *clause))
            if (endless := np.isinf(low) | np.isinf(high)).any():
                i = int(endless.argmax())
                side = "lower" if np.isinf(low[i]) else "upper"
                raise ConfigError(f"{self.query.path} gives {self._named(i)} no {side} bound")
            if (low <= high).all():  # an empty box reaches nothing
                boxes.setdefault((low.tobytes(), high.tobytes()), []).append(self._unsafe((*always, *clause)))
        problems = []
        for ends, parts in boxes.items():
            corners = [torch.from_numpy(np.frombuffer(end).copy()).view(1, *self.shape) for end in ends]
            problems.append(Problem(Box(corners[0], corners[1]), tuple(parts)))
        return problems

    def _named(self, i: int) -> str:
        place = self._places[i]
        if self.query.version == "1.0":
            return f"X_{place}"
        inputs = [declared for network in self.query.networks for declared in network.inputs]
        declared = next(one for one in reversed(inputs) if one.first <= place)
        if not declared.shape:
            return declared.name
        return f"{declared.name}{[int(at) for at in np.unravel_index(place - declared.first, declared.shape)]}"

    def _unsafe(self, clause: Clause) -> Unsafe:
        parts = [one for one in clause if _end_of(one) is None]
        if not any(kind == "Y" for one in parts for product, _ in one.terms for kind, _ in product):
            raise ConfigError(f"{self.query.path} says nothing of the outputs: assert something of Y_i")
        columns: dict[Product, int] = {(("Y", j),): j for j in range(self.outputs)}
        columns |= {product: self.outputs + k for k, product in enumerate(self.products)}
        rows = torch.zeros(len(parts), len(columns), dtype=torch.float64)
        for row, one in zip(rows, parts, strict=True):
            for product, value in one.terms:
                row[columns[product]] = value
        return Unsafe(rows, torch.tensor([one.most for one in parts], dtype=torch.float64))


def _form(product: Product) -> tuple[int, bool]:
    """Return a product's degree, and whether it is a power of one value."""
    return len(product), len(product) > 1 and len(set(product)) == 1


def _end_of(one: AtMost) -> tuple[int, float] | None:
    """Return the one input that a condition bounds, and its coefficient; None for every other condition."""
    if len(one.terms) == 1 and len(one.terms[0][0]) == 1 and one.terms[0][0][0][0] == "X":
        return one.terms[0][0][0][1], one.terms[0][1]
    return None


def _narrow(lower: np.ndarray, upper: np.ndarray, clause: Clause) -> None:
    """Cut a box by what bounds one input."""
    for one in clause:
        end = _end_of(one)
        if end is None:
            continue
        place, value = end
        if value > 0:
            upper[place] = min(upper[place], one.most / value)
        else:
            lower[place] = max(lower[place], one.most / value)


def _narrow_further(lower: np.ndarray, upper: np.ndarray, clause: Clause) -> None:
    """Cut a box by what bounds a sum of several inputs: each is at most what the least of the others leaves."""
    sums = [
        one for one in clause if len(one.terms) > 1 and all(len(p) == 1 and p[0][0] == "X" for p, _ in one.terms)
    ]  # fmt: skip
    for one in sums * _ROUNDS:
        places = [product[0][1] for product, _ in one.terms]
        values = np.array([value for _, value in one.terms])
        least = np.where(values > 0, values * lower[places], values * upper[places])
        endless = np.isneginf(least)
        slack = _SLACK * (abs(one.most) + np.abs(least[~endless]).sum())
        for k, place in enumerate(places):
            if endless.sum() - endless[k]:
                continue  # another one has no least
            others = least[~endless].sum() - (0 if endless[k] else least[k])
            end = (one.most - others + slack) / values[k]
            if values[k] > 0:
                upper[place] = min(upper[place], end)
            else:
                lower[place] = max(lower[place], end)
