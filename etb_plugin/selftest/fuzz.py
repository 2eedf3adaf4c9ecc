"""What every sound bound is put to on a random network, and how a failing network is shrunk."""

import copy
import math
from functools import cached_property

import torch
from torch import Tensor, nn

from etb_plugin import bound
from etb_plugin.attacks.jumps import ThroughJumps
from etb_plugin.errors import EtbError
from etb_plugin.graph.activations import Known, PiecewiseLinear
from etb_plugin.graph.affine import Affine
from etb_plugin.graph.beside import ReluDifference
from etb_plugin.graph.convex import Convex
from etb_plugin.graph.joint import LogSumExp, Product
from etb_plugin.graph.jumps import Jumping
from etb_plugin.graph.regions import Ball, Box, Region
from etb_plugin.graph.smooth import Sloped
from etb_plugin.graph.tracing import trace
from etb_plugin.selftest.networks import Case, corners

OPTIONS: dict[str, dict[str, object]] = {
    "ibp": {},
    "crown-ibp": {},
    "crown": {},
    "alpha-crown": {"steps": 3},
    "dual": {},
}
"""The bounds that are fuzzed, with options that keep them short."""


def arithmetic(network: nn.Module, region: Region) -> Tensor:
    """Return how far rounding may move an output, [batch, outputs]: the sizes of all terms that are ever added up,
    through the network, times the unit roundoff and the number of roundings on the longest way (Higham 2002, section
    3.1), and a factor for what a bound adds to a forward pass; without limit where it may take an end across a jump."""
    graph = trace(network, region.shape)
    sizes = [region.center.abs() + region.radius]
    ends = [(center - radius, center + radius) for center, radius in graph.intervals(region)]
    longest = 1
    for node in graph.nodes[1:]:
        assert node.operation is not None
        inputs = [sizes[j] for j in node.inputs]
        if isinstance(node.operation, Sloped):
            least, greatest = node.operation.slopes(torch.tensor(-1e3), torch.tensor(1e3))
            at_zero = node.operation.forward(torch.zeros_like(inputs[0])).abs()
            sizes.append(inputs[0] * max(-float(least), float(greatest)) + at_zero + node.operation.slack)
        elif isinstance(node.operation, Convex):
            at_ends = node.operation.known(*ends[node.inputs[0]])
            steep, value = (
                torch.stack([of(end).abs() for end in at_ends]).amax(0)
                for of in (node.operation.derivative, node.operation.value)
            )
            sizes.append(inputs[0] * steep + value)
        elif isinstance(node.operation, Product):
            sizes.append(2 * inputs[0].prod(-1))
        elif isinstance(node.operation, ReluDifference):
            sizes.append(4 * inputs[0].sum(-1))
        elif isinstance(node.operation, LogSumExp):
            sizes.append(inputs[0].amax(-1) + math.log(inputs[0].shape[-1]))
            longest += inputs[0].shape[-1]
        elif isinstance(node.operation, Jumping):
            low, high = ends[node.inputs[0]]
            near = 16 * longest * torch.finfo(low.dtype).eps * inputs[0]
            either = torch.minimum(node.operation.distance(low), node.operation.distance(high)) <= near
            value = torch.stack([end.abs() for end in node.operation.range(low, high)]).amax(0)
            sizes.append((2 * inputs[0] + value).masked_fill(either, torch.inf))
        elif isinstance(node.operation, Known):
            sizes.append(inputs[0])
        elif isinstance(node.operation, PiecewiseLinear):
            first, hinges = node.operation.first(), node.operation.hinges()
            slope = torch.as_tensor(first).abs() + sum(torch.as_tensor(change).abs() for _, change in hinges)
            shift = abs(node.operation.offset) + sum(abs(knot) * torch.as_tensor(c).abs().max() for knot, c in hinges)
            sizes.append(inputs[0] * slope + shift)
        else:
            assert isinstance(node.operation, Affine)
            zeros = [torch.zeros_like(value) for value in inputs]
            sizes.append(node.operation.spread(*inputs) + node.operation.forward(*zeros).abs())
            longest += max(value[0].numel() for value in inputs)
    off = 16 * longest * torch.finfo(region.center.dtype).eps * sizes[-1]
    return off.nan_to_num(torch.inf, torch.inf)  # where intervals are no numbers, rounding may have done anything


def reached(network: nn.Module, region: Region, spec: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """Return the least and the greatest value of each row that was met: samples, corners, signed-gradient ascent.

    Computed in float64 with the network's own weights; points lie in the region as the dtype of the region has it.
    """
    generator = torch.Generator().manual_seed(seed)
    network = copy.deepcopy(network).double()
    spec = spec.double()
    low, high = torch.full(spec.shape[:2], torch.inf).double(), torch.full(spec.shape[:2], -torch.inf).double()

    def meet(points: Tensor) -> None:
        nonlocal low, high
        values = torch.einsum("brk,nbk->nbr", spec, network(points.flatten(0, 1)).unflatten(0, points.shape[:2]))
        values = values.detach()
        least, most = values.nan_to_num(torch.inf, torch.inf), values.nan_to_num(-torch.inf, -torch.inf, -torch.inf)
        low, high = torch.minimum(low, least.amin(0)), torch.maximum(high, most.amax(0))

    box = region if isinstance(region, Box) else None
    shape = region.center.shape
    if box is not None:
        box = Box(box.lower.double(), box.upper.double())
        meet(box.lower + (box.upper - box.lower) * torch.rand(40, *shape, generator=generator).double())
        meet(corners(box, 64, generator))
        meet(box.center.unsqueeze(0))
    else:
        meet(in_ball(region, torch.randn(80, *shape, generator=generator).double()))
    for row in range(spec.shape[1]):
        for sign in (1, -1):
            x = region.center.double()
            for _ in range(4):
                x = x.detach().requires_grad_()
                with ThroughJumps():
                    value = (spec[:, row] * network(x)).sum()
                if not value.requires_grad:  # comparisons have no slope
                    break
                (gradient,) = torch.autograd.grad(sign * value, x)
                if box is not None:
                    step = torch.where(gradient > 0, box.upper, torch.where(gradient < 0, box.lower, x.detach()))
                    x = step.detach()
                else:
                    x = in_ball(region, gradient.unsqueeze(0))[0]
                meet(x.detach().unsqueeze(0))
    return low, high


def in_ball(region: Region, directions: Tensor) -> Tensor:
    """Return points of a ball's surface in (or, for l1, at the corners nearest to) some directions, drawn in a hair."""
    assert isinstance(region, Ball)
    flat = directions.flatten(2)
    if region.norm == 1:
        flat = torch.nn.functional.one_hot(flat.abs().argmax(2), flat.shape[2]) * flat.sign()
    else:
        flat = flat / flat.norm(dim=2, keepdim=True).clamp(min=1e-30)
    return region.center.double() + region.eps * (1 - 1e-12) * flat.view_as(directions)


class Referee:
    """A case, and what any bound of it is held against: what was met in the region, found once for all bounds."""

    def __init__(self, case: Case) -> None:
        self.case, self._network, self._region = case, case.network.requires_grad_(False), case.around()
        rows = torch.cat([torch.eye(3), torch.tensor([[1.0, -1.0, 0.0], [-0.5, 2.0, 1.0]])])
        self._spec = rows.to(case.dtype).expand(2, 5, 3)

    @cached_property
    def _met(self) -> tuple[Tensor, Tensor]:
        return reached(self._network, self._region, self._spec, self.case.seed)

    @cached_property
    def _slack(self) -> Tensor:
        off = torch.einsum("brk,bk->br", self._spec.abs(), arithmetic(self._network, self._region)).double()
        return off.nan_to_num(torch.inf, torch.inf)  # none of an output without limit

    @cached_property
    def _told(self) -> bool:
        """Whether an activation is known by its values, to a slack: its lines lie that far apart at a point, too."""
        operations = (node.operation for node in trace(self._network, self._region.shape).nodes)
        return any(isinstance(operation, Sloped) and operation.slack > 0 for operation in operations)

    def fault(self, name: str, options: dict[str, object], device: str = "cpu") -> str | None:
        """Return what is wrong with a bound, in one line; None where nothing is. The bound is computed on the device,
        and what it is held against on the CPU."""
        network, region = copy.deepcopy(self._network).to(device), moved(self._region, device)
        try:
            got = bound(name, network, region, self._spec.to(device), **options)
        except EtbError:
            raise
        except Exception as error:
            return f"untyped failure: {type(error).__name__}: {str(error).partition(chr(10))[0]}"
        (low, high), slack = self._met, self._slack
        lower, upper = got.lower.double().cpu(), got.upper.double().cpu()
        if not bool((lower <= low + slack).all() and (upper >= high - slack).all()):  # also where it is no number
            out = torch.maximum(lower - low, high - upper)
            return f"outside by {float(out.max()):.3g} (rounding explains {float(slack.max()):.3g})"
        if self.case.eps == 0 and not self._told and bool(((upper - lower) > 2 * slack).any()):
            return f"a point has width {float((upper - lower).max()):.3g}"
        return None


def moved(region: Region, device: str) -> Region:
    """Return the region on a device."""
    if isinstance(region, Ball):
        return Ball(region.center.to(device), region.eps, region.norm)
    return Box(region.lower.to(device), region.upper.to(device))


def shrunk(case: Case, name: str, options: dict[str, object]) -> Case:
    """Return the case with every block dropped without which the fault stays."""

    def wrong(other: Case) -> bool:
        try:
            return Referee(other).fault(name, options) is not None
        except EtbError:
            return False

    i = 0
    while i < len(case.blocks):
        smaller = case.without(i)
        if wrong(smaller):
            case = smaller
        else:
            i += 1
    return case


def told(case: Case, name: str, options: dict[str, object]) -> str:
    """Return a fault with what it takes to see it again."""
    small = shrunk(case, name, options)
    return (
        f"{name} {options} on case {case.seed}: {Referee(small).fault(name, options)}\n"
        f"  eps {case.eps:g}, {case.region}, {case.dtype}, scale {case.scale:g}, bias {case.bias:g}, "
        f"input {case.shape}\n"
        f"  blocks {small.blocks}\n  {small.network}"
    )
