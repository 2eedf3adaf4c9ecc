"""Branch and bound on the input: true properties are proved, false ones broken, of any network with few inputs."""

import pytest
import torch
from torch import nn

from etb_plugin import Box
from etb_plugin.graph.tracing import trace
from etb_plugin.verification import Cascade, Problem, Settings, Unsafe, Verdict
from etb_plugin.verification.inputs import _Split


def network(inputs: int, outputs: int, widths: tuple[int, ...], activation: nn.Module, seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    layers, before = [], inputs
    for width in widths:
        layers += [nn.Linear(before, width), activation]
        before = width
    return nn.Sequential(*layers, nn.Linear(before, outputs)).double()


def decide(net: nn.Module, problem: Problem, seconds: float = 30.0):
    return Cascade(net, tuple(problem.box.shape), Settings(("inputs",), seconds=seconds)).decide(problem)


def grid(box: Box, number: int) -> torch.Tensor:
    shares = torch.cartesian_prod(*[torch.linspace(0, 1, number, dtype=torch.float64)] * box.shape.numel())
    return box.lower + (box.upper - box.lower) * shares.view(-1, *box.shape)


@pytest.mark.parametrize(
    "activation", [nn.ReLU(), nn.Tanh(), nn.GELU(), nn.Hardswish()], ids=lambda a: type(a).__name__
)
def test_what_a_grid_says_of_conjunctions_and_disjunctions(activation: nn.Module) -> None:
    """Two parts, one of two rows: unsafe is y0 >= a, or y1 >= b and y2 >= c."""
    decided = []
    for seed in range(3):
        net = network(2, 3, (8, 8), activation, seed)
        box = Box(torch.full((1, 2), -2.0).double(), torch.full((1, 2), 2.0).double())
        with torch.no_grad():
            values = net(grid(box, 201))
        rows = -torch.eye(3, dtype=torch.float64)
        b = values[:, 1].quantile(0.7)
        together = values[values[:, 1] >= b][:, 2].max()
        for gap in (0.05, -0.05):
            parts = (
                Unsafe(rows[:1], -(values[:, 0].max() + 0.05).view(1)),
                Unsafe(rows[1:], -torch.stack([b, together + gap])),
            )
            case = decide(net, Problem(box, parts))
            decided.append(case.verdict)
            if case.witness is not None:
                assert bool(Problem(box, parts).broken(net(case.witness)).all())
                assert bool((case.witness >= box.lower).all() and (case.witness <= box.upper).all())
    assert decided == [Verdict.ROBUST, Verdict.FALSIFIED] * 3


def test_a_deep_network_of_five_inputs_is_decided() -> None:
    """As collision avoidance networks are: 6 x 50, and a threshold that sampling says is never reached."""
    net = network(5, 5, (50,) * 6, nn.ReLU())
    with torch.no_grad():
        for layer in net:
            if isinstance(layer, nn.Linear):
                layer.weight.mul_(1.8)
        box = Box(torch.full((1, 5), -0.1).double(), torch.full((1, 5), 0.1).double())
        most = net(box.lower + 0.2 * torch.rand(200_000, 5, dtype=torch.float64)).amax(0)
        spread = float(most[0] - net(box.center)[0, 0])
    row = torch.zeros(1, 5, dtype=torch.float64)
    row[0, 0] = -1
    for share, verdict in ((0.3, Verdict.ROBUST), (-0.05, Verdict.FALSIFIED)):
        case = decide(net, Problem(box, (Unsafe(row, -(most[:1] + share * spread)),)))
        assert case.verdict is verdict


def test_inputs_that_do_not_move_and_out_of_time() -> None:
    net = network(30, 3, (20, 20), nn.ReLU())
    center = torch.rand(1, 30, dtype=torch.float64)
    radius = torch.zeros_like(center)
    radius[0, :2] = 1.0
    label = int(net(center).argmax())
    row = torch.zeros(2, 3, dtype=torch.float64)
    row[:, label] = 1
    for i, other in enumerate(j for j in range(3) if j != label):
        row[i, other] = -1
    few = Problem(Box(center - radius, center + radius), tuple(Unsafe(r[None], r.new_zeros(1)) for r in row))
    values = torch.stack([net(p) for p in grid(Box(few.box.lower[:, :2], few.box.upper[:, :2]), 101).split(1)
                          for p in [torch.cat([p, center[:, 2:]], 1)]])  # fmt: skip
    holds = bool((torch.einsum("rk,nbk->nbr", row, values) > 0).all())
    assert (decide(net, few).verdict is Verdict.ROBUST) == holds
    many = Problem(Box(center - 1, center + 1), few.unsafe)
    assert decide(net, many).verdict is Verdict.UNKNOWN  # with hinges to branch on, thirty inputs are not cut
    smooth = network(30, 3, (20, 20), nn.Tanh())
    assert decide(smooth, Problem(many.box, many.unsafe), seconds=1.0).verdict is not Verdict.ROBUST


def test_a_point_is_decided() -> None:
    net = network(2, 2, (4,), nn.ReLU())
    x = torch.rand(1, 2, dtype=torch.float64)
    value = float(net(x)[0, 0].detach())
    row = torch.tensor([[-1.0, 0.0]], dtype=torch.float64)
    found = [
        decide(net, Problem(Box(x, x), (Unsafe(row, torch.tensor([-(value + gap)]).double()),))).verdict
        for gap in (0.1, -0.1)
    ]
    assert found == [Verdict.ROBUST, Verdict.FALSIFIED]


def test_an_input_that_does_not_move_is_never_cut() -> None:
    """Where the bounds depend on no input at all, the one least cut so far is, the first of equals."""
    net = network(3, 2, (6,), nn.ReLU())
    box = Box(torch.tensor([[0.5, 0.0, 0.0]]).double(), torch.tensor([[0.5, 1.0, 2.0]]).double())
    search = _Split(
        net, trace(net, torch.Size([3])), Problem(box, (Unsafe(torch.eye(2)[:1].double(), torch.zeros(1)),))
    )
    whole = search.whole(torch.tensor([0]))
    halves = search.halves(whole, torch.zeros(1, 3).double())
    assert (halves.upper - halves.lower).tolist() == [[0.0, 0.5, 2.0]] * 2
