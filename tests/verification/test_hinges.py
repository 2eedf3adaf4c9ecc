"""Branch and bound at the knots of piecewise linear activations: what a branch says, holds for its points."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from etb_plugin import Box
from etb_plugin.errors import OutOfTime
from etb_plugin.graph import relaxation
from etb_plugin.verification import Cascade, Problem, Settings, Unsafe, branch
from etb_plugin.verification.branch import Branches, Tree, search
from etb_plugin.verification.cascade import Case
from etb_plugin.verification.hinges import HingeTree
from tests.verification.branches import met

ACTIVATIONS = {
    "relu": F.relu,
    "leaky": lambda z: F.leaky_relu(z, 0.2),
    "clipped": lambda z: F.hardtanh(z, -0.5, 0.5),
}


class Mixed(nn.Module):
    """Convolutions, a sum of two ways, and fully connected layers, of 16 inputs."""

    def __init__(self, activation: str, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.one, self.two = nn.Conv2d(1, 2, 3, padding=1), nn.Conv2d(2, 2, 3, padding=1)
        self.three, self.last = nn.Linear(32, 8), nn.Linear(8, 3)
        self.activation = ACTIVATIONS[activation]
        self.double().requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        z = self.activation(self.one(x))
        z = self.activation(z + self.two(z))
        return self.last(self.activation(self.three(z.flatten(1))))


def _problem(network: nn.Module, eps: float = 0.3, room: float = 0.02) -> Problem:
    """A box, and outputs that its points come near to by some `room`: one row, and two rows together."""
    box = Box.around(torch.rand(1, 1, 4, 4, dtype=torch.float64), eps)
    with torch.no_grad():
        outputs = network(_points(box, 5000))
    rows, low = torch.eye(3, dtype=torch.float64), outputs.amin(0)
    both = low[1:] + (outputs[:, 1:] - low[1:]).amax(1).min()
    return Problem(box, (Unsafe(rows[:1], low[:1] - room), Unsafe(rows[1:], both - room)))


def _points(box: Box, number: int) -> Tensor:
    return box.lower + (box.upper - box.lower) * torch.rand(number, *box.shape, dtype=torch.float64)


def _tree(network: nn.Module, problem: Problem) -> HingeTree:
    cascade = Cascade(network, tuple(problem.box.shape), Settings(("bab",), seconds=60))
    return HingeTree(cascade.decider(Case.of(problem)))


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_a_branchs_bound_lies_below_all_points_of_the_branch(activation: str) -> None:
    """After several cuts, and where ends were tightened. Cuts are rated in their branch's own walk as by the bounds of
    both halves."""
    network = Mixed(activation)
    problem = _problem(network)
    tree = _tree(network, problem)
    points = _points(problem.box, 10_000)
    branches, count = tree.bounded(tree.root_branches(torch.arange(2))), 0
    for cuts in range(6):
        if cuts == 4:
            branches = tree.tightened(branches)
        places = torch.rand(len(branches), tree.units).masked_fill(branches.signs != 0, -1).topk(5, 1).indices
        torch.testing.assert_close(tree.cut_values(branches, places), Tree.cut_values(tree, branches, places))
        branches = tree.bounded(tree.split(branches))
        found = met(tree, branches, points)
        assert all(above <= least + 1e-9 for above, least in found)
        count += len(found)
        branches = branches[torch.arange(min(8, len(branches)))]
    assert count > 20


def test_no_more_waits_than_memory_is_for_and_all_is_proved_still(monkeypatch: pytest.MonkeyPatch) -> None:
    """With two branches at once and few steps at the root, so that many wait."""
    network = Mixed("relu", 4)
    problem = _problem(network, room=0.05)
    for name, value in {"_VALUES_AT_ONCE": 1, "_ROOT_STEPS": 4}.items():
        monkeypatch.setattr(branch, name, value)
    lengths: list[int] = []
    plain = Tree.next

    def counted(tree: Tree, queue: Branches) -> tuple[Branches, Branches]:
        lengths.append(len(queue))
        return plain(tree, queue)

    monkeypatch.setattr(Tree, "next", counted)
    most = []
    for numbers in (2**26, 1):
        monkeypatch.setattr("etb_plugin.verification.waiting._NUMBERS", numbers)
        lengths.clear()
        assert search(_tree(network, problem), torch.arange(2), torch.inf).proved.tolist() == [0, 1]
        most.append(max(lengths))
    assert most[1] < most[0] / 2


def test_a_search_that_time_stops_claims_only_what_it_has_finished(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopped between rounds, and in the steps of a round: what was being worked on is open."""
    network = Mixed("relu", 4)
    tree = _tree(network, _problem(network, room=0.05))
    left = 0

    def check() -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise OutOfTime("out of time")

    for module in (branch, relaxation):
        monkeypatch.setattr(module, "check_time", check)
    claims = []
    for checks in (0, 30, 60, 61, 62, 70, 80, 10_000):
        left = checks
        claims.append(search(tree, torch.arange(2), torch.inf).proved.tolist())
    assert claims == [[], [], [1], [1], [1], [1], [1], [0, 1]]
