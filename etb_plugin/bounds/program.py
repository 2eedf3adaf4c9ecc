"""A network over one box as a linear or mixed-integer program (Tjeng et al. 2019; the relaxation is Ehlers 2017's).

Columns are the input's elements, and for each hinge that is unstable on the box its input v = z - knot, its value
h = max(v, 0) and a switch a in {0, 1}: h >= v, h >= 0, h <= v - low (1 - a), h <= high a. Hinges that are on or off
throughout need none: the maps between are multiplied out. With the switches in [0, 1] it is the linear relaxation.
Everything is float64; `solvers` solves it.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Size
from torch.nn import functional as F

from etb_plugin.errors import UnsupportedLayer
from etb_plugin.graph.activations import Curved, PiecewiseLinear
from etb_plugin.graph.affine import Affine, Linear, Reshape, Sum
from etb_plugin.graph.graph import Graph
from etb_plugin.graph.regions import Box
from etb_plugin.graph.relaxation import Hinge, Relaxation
from etb_plugin.memory import fitting
from etb_plugin.stopping import check_time

if TYPE_CHECKING:
    from scipy import sparse

Vector = NDArray[np.float64]
Maps = Mapping[int, "sparse.csr_matrix"]
"""The matrices of a graph's affine maps, by position: what does not depend on the box."""

_ENTRIES_AT_ONCE = 2**23


@dataclass(frozen=True)
class Unit:
    """One unstable unit: its hinge, its place among the features, and the columns of v, h and a."""

    hinge: Hinge
    feature: int
    input: int
    value: int
    switch: int


@dataclass(frozen=True)
class Program:
    """Columns with their ends, rows `matrix @ columns` with theirs, and the network's outputs `outputs @ columns +
    constants`. The first `inputs` columns are the network's input, flat."""

    lower: Vector
    upper: Vector
    matrix: "sparse.csr_matrix"
    row_lower: Vector
    row_upper: Vector
    outputs: "sparse.csr_matrix"
    constants: Vector
    inputs: int
    units: tuple[Unit, ...]

    @property
    def switches(self) -> list[int]:
        """The columns that are 0 or 1."""
        return [unit.switch for unit in self.units]

    def objective(self, row: Vector) -> tuple[Vector, float]:
        """Return `row` [classes] of the outputs as a cost for each column, and the constant beside it."""
        return np.asarray(row @ self.outputs).ravel(), float(row @ self.constants)


def refuse_curved(graph: Graph) -> None:
    """Raise UnsupportedLayer, naming the layer, for a graph of which there is no program."""
    for node in graph.nodes:
        if isinstance(node.operation, Curved):
            raise UnsupportedLayer(f"layer {node.name} is not piecewise linear; programs are made of layers that are")


def affine_maps(graph: Graph, like: torch.Tensor) -> Maps:
    """Return the matrix of every affine map: once for all boxes. `like` is a tensor as the weights are."""
    return {i: _matrix(graph, i, like) for i, node in enumerate(graph.nodes) if isinstance(node.operation, Affine)}


def _matrix(graph: Graph, i: int, like: torch.Tensor) -> "sparse.csr_matrix":
    """Return the matrix [out, in] of an affine map, its inputs side by side."""
    from scipy import sparse  # half a second: only here

    node = graph.nodes[i]
    operation, out = node.operation, node.shape
    assert isinstance(operation, Affine)
    shapes = [graph.nodes[j].shape for j in node.inputs]
    if isinstance(operation, Reshape | Sum):
        return sparse.csr_matrix(sparse.hstack([sparse.eye(out.numel())] * len(shapes)))
    if isinstance(operation, Linear) and len(out) == 1:
        return sparse.csr_matrix(_numbers(operation.weight()))
    parts = []
    widest = max(shape.numel() for shape in (out, *shapes))
    for some in torch.arange(out.numel(), device=like.device).split(max(1, fitting(_ENTRIES_AT_ONCE) // widest)):
        check_time()
        rows = F.one_hot(some, out.numel()).to(like).view(1, -1, *out)
        reached = [_numbers(part[0].flatten(1)) for part in operation.transpose(rows, shapes)]
        parts.append(sparse.csr_matrix(np.concatenate(reached, 1)))
    return sparse.csr_matrix(sparse.vstack(parts))


def build_program(relaxation: Relaxation, maps: Maps) -> Program:
    """Return the program of a relaxation over one box (a batch of 1). The tighter its ends, the smaller it is."""
    from scipy import sparse  # half a second: only here

    graph, box = relaxation.graph, relaxation.region
    assert isinstance(box, Box)
    inputs = box.shape.numel()
    open_units = [
        (key, int(feature), float(low.flatten()[feature]), float(high.flatten()[feature]))
        for key, low, high in relaxation.hinges()
        for feature in ((low < 0) & (high > 0)).flatten().nonzero()[:, 0]
    ]
    units = tuple(
        Unit(key, feature, *(inputs + kind * len(open_units) + n for kind in range(3)))
        for n, (key, feature, _, _) in enumerate(open_units)
    )
    low, high = (np.array([unit[end] for unit in open_units]).reshape(-1) for end in (2, 3))
    columns = inputs + 3 * len(units)
    values = [(sparse.eye(inputs, columns, format="csr"), np.zeros(inputs))]
    defining = []  # rows v - (map of the columns) = constant, one block for each hinge
    for i, node in enumerate(graph.nodes[1:], start=1):
        check_time()
        operands = [values[j] for j in node.inputs]
        if isinstance(node.operation, PiecewiseLinear):
            matrix, constant = operands[0]
            total = sparse.diags(_vector(node.operation.first(), node.shape)) @ matrix
            shift = _vector(node.operation.first(), node.shape) * constant + node.operation.offset
            for h, (knot, change) in enumerate(node.operation.hinges()):
                mine = [unit for unit in units if unit.hinge == (i, h)]
                places = [unit.feature for unit in mine]
                on = (relaxation.ends[i][0] >= knot).flatten().cpu().numpy().astype(float)
                on[places] = 0.0
                change_of = _vector(change, node.shape)
                picked = _picked(places, [unit.value for unit in mine], (node.shape.numel(), columns))
                total = total + sparse.diags(change_of) @ (sparse.diags(on) @ matrix + picked)
                shift = shift + change_of * on * (constant - knot)
                inner = _picked(range(len(mine)), [unit.input for unit in mine], (len(mine), columns))
                defining.append((inner - matrix[places], constant[places] - knot))
            values.append((sparse.csr_matrix(total), shift))
        else:
            assert node.operation is not None
            linear = maps[i]
            matrix = sparse.csr_matrix(linear @ sparse.vstack([operand[0] for operand in operands]))
            at_zero = node.operation.forward(*(box.lower.new_zeros(1, *graph.nodes[j].shape) for j in node.inputs))
            affine = _numbers(at_zero.flatten())
            values.append((matrix, affine + linear @ np.concatenate([operand[1] for operand in operands])))
    v, h, a = (sparse.eye(len(units), columns, k=inputs + kind * len(units), format="csr") for kind in range(3))
    blocks = [
        *((matrix, constant, constant) for matrix, constant in defining),
        (h - v, np.zeros(len(units)), np.full(len(units), np.inf)),
        (h - v - sparse.diags(low) @ a, np.full(len(units), -np.inf), -low),
        (h - sparse.diags(high) @ a, np.full(len(units), -np.inf), np.zeros(len(units))),
    ]
    zeros, ones = np.zeros(len(units)), np.ones(len(units))
    first, last = (_numbers(end.flatten()) for end in (box.lower, box.upper))
    outputs, constants = values[-1]
    return Program(
        np.concatenate([first, low, zeros, zeros]),
        np.concatenate([last, high, high, ones]),
        sparse.csr_matrix(sparse.vstack([block[0] for block in blocks])),
        np.concatenate([block[1] for block in blocks]),
        np.concatenate([block[2] for block in blocks]),
        outputs,
        constants,
        inputs,
        units,
    )


def _picked(rows: Iterable[int], columns: list[int], shape: tuple[int, int]) -> "sparse.csr_matrix":
    from scipy import sparse  # half a second: only here

    return sparse.csr_matrix((np.ones(len(columns)), (list(rows), columns)), shape)


def _numbers(tensor: torch.Tensor) -> Vector:
    return tensor.detach().double().cpu().numpy()


def _vector(value: float | torch.Tensor, shape: Size) -> Vector:
    """Return a slope, a number or a parameter that broadcasts, as one number for each feature."""
    return _numbers(torch.as_tensor(value).expand(shape).flatten())
