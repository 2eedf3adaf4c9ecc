"""Branch and bound on the ranges of units: on networks with functions that are not piecewise linear."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from etb_plugin import Box, bound, margin_spec
from etb_plugin.graph.ends import crown_ends
from etb_plugin.graph.relaxation import Relaxation, optimized
from etb_plugin.graph.tracing import trace
from etb_plugin.verification import Cascade, Settings, Verdict, robustness
from etb_plugin.verification.units import UnitTree
from tests.verification.branches import met

FUNCTIONS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "tanh": lambda a, b: torch.tanh(a) + torch.sigmoid(b),
    "gelu and relu": lambda a, b: F.gelu(a) - torch.relu(b),
    "one value, two functions": lambda a, b: torch.tanh(a) + torch.relu(a) * b,
    "softmax and product": lambda a, b: a.softmax(1) * b,
    "quotient": lambda a, b: a / (1 + b.abs()),
    "exp and power": lambda a, b: torch.exp(a) - b**3,
    "log sum exp": lambda a, b: torch.logsumexp(torch.stack([a, b], 1), 1),
    "layer norm": lambda a, b: F.layer_norm(a * b, (6,)),
    "attention": lambda a, b: ((a.view(-1, 3, 2) @ b.view(-1, 2, 3)).softmax(2) @ a.view(-1, 3, 2)).flatten(1),
}


class Two(nn.Module):
    """A function of two linear maps, and a linear map behind it."""

    def __init__(self, name: str, inputs: int, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.a, self.b, self.c = nn.Linear(inputs, 6), nn.Linear(inputs, 6), nn.Linear(6, 3)
        self.function = FUNCTIONS[name]
        for parameter in self.parameters():
            parameter.data = torch.randn_like(parameter)
        self.double().requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(self.function(self.a(x), self.b(x)))


def _points(box: Box, number: int) -> Tensor:
    return box.lower + (box.upper - box.lower) * torch.rand(number, *box.shape, dtype=torch.float64)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_small_networks_are_decided_as_samples_say(name: str) -> None:
    """By branches on units alone; where samples meet another class the verdict cannot be robust, and the other way."""
    for seed, eps in enumerate((0.02, 0.1, 0.4)):
        net = Two(name, 2, seed)
        x = torch.rand(1, 2, dtype=torch.float64)
        with torch.no_grad():
            label = int(net(x).argmax())
            box = Box.around(x, eps)
            kept = bool((net(_points(box, 20_000)).argmax(1) == label).all())
        case = Cascade(net, (2,), Settings(("bab",), seconds=20)).decide(robustness(box, label, 3))
        assert not case.failed
        assert case.verdict is (Verdict.ROBUST if kept else Verdict.FALSIFIED)
        if case.witness is not None:
            assert int(net(case.witness).argmax()) != label
            assert bool((case.witness >= box.lower).all() and (case.witness <= box.upper).all())


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_branchs_bound_lies_below_all_points_of_the_branch(name: str) -> None:
    """With lines and multipliers optimised, after several cuts, also where its ends were tightened."""
    net = Two(name, 3, 5)
    box = Box.around(torch.full((1, 3), 0.5, dtype=torch.float64), 0.3)
    problem, graph = robustness(box, 0, 3), trace(net, torch.Size((3,)))
    relaxation = Relaxation(graph, box, crown_ends(graph, box).ends)
    tree = UnitTree(net, relaxation, crown_ends(graph, box, steps=3), problem)
    points = _points(box, 50_000)
    branches = tree.bounded(tree.root_branches(torch.arange(2)))
    count = 0
    for cuts in range(6):
        if cuts == 4 and not (branches := tree.tightened(branches)):
            break
        branches = tree.bounded(tree.split(branches))
        for above, least in (found := met(tree, branches, points)):
            assert above <= least + 1e-9
        count += len(found)
        moved = branches.pulls[branches.moved.unsqueeze(1) > 0]
        assert bool((branches.pulls[branches.moved.unsqueeze(1) == 0] == 0).all())
        branches = branches[torch.arange(min(8, len(branches)))]
    assert count > 20
    assert bool(moved.abs().max() > 0)


def test_more_is_proved_than_by_the_bounds_on_many_inputs() -> None:
    """Twenty-five inputs, which are not cut; the box is one at which alpha-CROWN just fails."""
    torch.manual_seed(3)
    net = nn.Sequential(nn.Linear(25, 12), nn.Tanh(), nn.Linear(12, 12), nn.GELU(), nn.Linear(12, 3)).double()
    for parameter in net.parameters():
        parameter.data *= 2.5
    x = torch.rand(1, 25, dtype=torch.float64)
    label = int(net(x).argmax())
    spec = margin_spec(torch.tensor([label]), 3, torch.float64)
    low, high = 0.0, 0.5
    for _ in range(8):
        eps = (low + high) / 2
        holds = bool((bound("alpha-crown", net, Box.around(x, eps), spec).lower > 0).all())
        low, high = (eps, high) if holds else (low, eps)
    problem = robustness(Box.around(x, 1.05 * high), label, 3)
    verdicts = [
        Cascade(net, (25,), Settings(stages, seconds=30)).decide(problem).verdict
        for stages in (("crown", "alpha-crown", "inputs"), ("bab",))
    ]
    assert verdicts == [Verdict.UNKNOWN, Verdict.ROBUST]


@pytest.mark.parametrize("activation", [nn.Tanh(), nn.Sigmoid(), nn.GELU(), nn.Softplus()], ids=lambda a: str(a)[:4])
def test_the_steps_of_alpha_crown_are_worth_something_on_curved_networks(activation: nn.Module) -> None:
    """A pace that fits hinges jumps from one end of the slopes to the other, and gained nothing in twenty steps."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(20, 30), activation, nn.Linear(30, 30), activation, nn.Linear(30, 5)).double()
    for parameter in net.parameters():
        parameter.data *= 2
    graph, box = trace(net, torch.Size((20,))), Box.around(torch.rand(4, 20, dtype=torch.float64), 0.1)
    relaxation = Relaxation(graph, box, crown_ends(graph, box).ends)
    rows = torch.eye(5, dtype=torch.float64).unsqueeze(0)
    crown, some, many = (optimized(relaxation, rows, steps=steps)[0].mean() for steps in (0, 20, 200))
    assert some - crown > 0.7 * (many - crown) > 0
