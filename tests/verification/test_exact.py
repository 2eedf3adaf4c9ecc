"""The exact verifiers against enumeration of activation patterns, and against each other."""

import functools

import numpy as np
import pytest
import torch
from torch import nn

from etb_plugin import Box, bound, margin_spec
from etb_plugin.attacks import Pgd, polished
from etb_plugin.bounds import prepare
from etb_plugin.bounds import solvers as solvers_module
from etb_plugin.errors import ConfigError, SoundnessError, UnsupportedLayer
from etb_plugin.graph.ends import crown_ends
from etb_plugin.graph.relaxation import Relaxation, optimized
from etb_plugin.graph.tracing import trace
from etb_plugin.networks import build
from etb_plugin.verification import Cascade, Case, Problem, Settings, Unsafe, Verdict, robustness
from tests.conftest import Branching, fully_connected
from tests.verification.enumeration import true_range

ALONE = [("bab",), ("inputs",), ("exact",), ("lp",), ("bab", "exact", "lp"), ("crown", "alpha-crown", "dual", "exact")]


@functools.cache
def tiny(trial):
    """Return a network of 2 inputs and up to 12 ReLUs, a box, and the spec of its margins."""
    torch.manual_seed(trial)
    widths = [(3,), (4, 3), (2, 2, 2), (6,), (3, 3)][trial % 5] if trial % 20 else (6, 6)
    network = fully_connected(2, *widths, 3).double()
    box = Box.around(torch.rand(1, 2).double(), float(0.05 + 0.45 * torch.rand(())), clip=None)
    label = int(network(box.center).argmax())
    return network, box, label, margin_spec(torch.tensor([label]), 3, torch.float64)


def enumerated(network, box, spec):
    layers = [(m.weight.detach().numpy(), m.bias.detach().numpy()) for m in network if isinstance(m, nn.Linear)]
    return true_range(layers, box.lower[0].numpy(), box.upper[0].numpy(), spec[0].numpy())


def verdict(network, problem, stages, seconds=20.0):
    case = Case.of(problem)
    cascade = Cascade(network, tuple(problem.box.shape), Settings(tuple(stages), seconds=seconds))
    cascade.decide_together([case])
    cascade.decide_alone(case)
    return case


@pytest.mark.parametrize("trials", [range(0, 3), pytest.param(range(3, 200), marks=pytest.mark.slow)])
def test_the_exact_range_is_that_of_enumeration_and_every_verdict_is_consistent_with_it(trials):
    for trial in trials:
        network, box, label, spec = tiny(trial)
        low, high = enumerated(network, box, spec)
        got = bound("exact", network, box, spec)
        np.testing.assert_allclose(got.lower[0], low, rtol=0, atol=1e-6)
        np.testing.assert_allclose(got.upper[0], high, rtol=0, atol=1e-6)
        loose = bound("lp", network, box, spec)
        assert (loose.lower <= got.lower + 1e-9).all()
        assert (loose.upper >= got.upper - 1e-9).all()
        problem = robustness(box, label, 3)
        for stages in ALONE:
            case = verdict(network, problem, stages)
            if case.verdict is Verdict.ROBUST:
                assert low.min() > 0, (trial, stages)
            elif case.verdict is Verdict.FALSIFIED:
                assert low.min() <= 1e-9, (trial, stages)
                assert problem.broken(network(case.witness)).all()
            else:
                assert stages == ("lp",) or abs(low.min()) < 1e-5, (trial, stages)


@pytest.mark.parametrize("trial", range(5))
def test_gurobi_agrees_with_highs(trial):
    pytest.importorskip("gurobipy")
    network, box, _, spec = tiny(trial)
    highs, gurobi = (bound("exact", network, box, spec, solver=name) for name in ("highs", "gurobi"))
    torch.testing.assert_close((highs.lower, highs.upper), (gurobi.lower, gurobi.upper), rtol=0, atol=1e-6)
    highs, gurobi = (bound("lp", network, box, spec, solver=name) for name in ("highs", "gurobi"))
    torch.testing.assert_close((highs.lower, highs.upper), (gurobi.lower, gurobi.upper), rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    "kind", ["branching", "leaky", "clipped", pytest.param("wk-resnet", marks=pytest.mark.slow), "tiny"]
)
def test_the_exact_range_holds_what_is_sampled_on_every_kind_of_network(kind):
    shape = (1, 8, 8)
    if kind == "branching":
        network = Branching()
    elif kind in ("leaky", "clipped"):
        activation = nn.LeakyReLU(0.2) if kind == "leaky" else nn.Hardtanh(-0.1, 0.15)
        network = nn.Sequential(
            nn.Flatten(), nn.Linear(64, 8), activation, nn.Linear(8, 6), activation, nn.Linear(6, 5)
        )
    else:
        network = build(kind, shape, 5, seed=0, normalization=((0.3,), (0.5,)))
    network = network.double().eval()
    box = Box.around(torch.rand(1, *shape).double(), {"wk-resnet": 0.001, "tiny": 0.005}.get(kind, 0.02))
    exact, lp, seen = (bound(name, network, box) for name in ("exact", "lp", "sampled"))
    for tighter, looser in ((seen, exact), (exact, lp)):
        assert (tighter.lower >= looser.lower - 1e-6).all()
        assert (tighter.upper <= looser.upper + 1e-6).all()
    assert exact.sound


@pytest.mark.lirpa
@pytest.mark.parametrize("network", ["mlp-10x3", "tiny", "branching"])
def test_our_own_relaxation_is_auto_lirpas_crown(network):
    net = (Branching() if network == "branching" else build(network, (1, 8, 8), 5, seed=0)).double().eval()
    box, spec = (
        Box.around(torch.rand(3, 1, 8, 8).double(), 0.03),
        margin_spec(torch.tensor([1, 2, 3]), 5, torch.float64),
    )
    graph = trace(net, torch.Size((1, 8, 8)))
    with torch.no_grad():
        ours = Relaxation(graph, box, crown_ends(graph, box).ends).below(spec)
    theirs = bound("crown", net, box, spec).lower.detach()
    torch.testing.assert_close(ours.value, theirs, rtol=1e-9, atol=1e-9)
    corner = ours.minimizer(box)
    at_corner = (ours.coefficients * corner).flatten(2).sum(2)
    middle = (ours.coefficients * box.center.unsqueeze(1)).flatten(2).sum(2)
    assert (at_corner <= middle + 1e-12).all()


def test_optimised_slopes_are_tighter_and_sound():
    net = build("mlp-10x3", (1, 8, 8), 5, seed=0).double().eval().requires_grad_(False)
    box, spec = Box.around(torch.rand(3, 1, 8, 8).double(), 0.1), margin_spec(torch.tensor([1, 2, 3]), 5, torch.float64)
    graph = trace(net, torch.Size((1, 8, 8)))
    plain = Relaxation(graph, box, crown_ends(graph, box).ends)
    best, _ = optimized(plain, spec, steps=20)
    both, _ = optimized(Relaxation(graph, box, crown_ends(graph, box, steps=20).ends), spec, steps=20)
    exact = bound("exact", net, box, spec).lower
    assert (best >= plain.below(spec).value).all()
    assert both.mean() > best.mean() > plain.below(spec).value.mean()
    assert (both <= exact + 1e-6).all()


def test_conjunctions_and_disjunctions_of_outputs_are_decided():
    """Unsafe: y_0 <= a and y_1 <= b together, or y_2 >= c. Against a grid of the box."""
    words = set()
    for trial in range(12):
        network, box, _, _ = tiny(trial)
        steps = torch.linspace(0, 1, 300, dtype=torch.float64)
        grid = box.lower + (box.upper - box.lower) * torch.cartesian_prod(steps, steps)
        y = network(grid).detach()
        for share in (-0.3, 0.02, 0.4):
            low, width = y.amin(0), y.amax(0) - y.amin(0)
            pair = Unsafe(torch.eye(3, dtype=torch.float64)[:2], (low + share * width)[:2])
            last = Unsafe(-torch.eye(3, dtype=torch.float64)[2:], -(low + (1 - share) * width)[2:])
            problem = Problem(box, (pair, last))
            reached = bool(problem.broken(y).any())
            for stages in (("pgd", "bab"), ("exact",), ("crown", "bab", "exact")):
                case = verdict(network, problem, stages)
                words.add(case.verdict)
                if reached:
                    assert case.verdict is not Verdict.ROBUST
                if case.verdict is Verdict.FALSIFIED:
                    assert problem.broken(network(case.witness)).all()
    assert {Verdict.ROBUST, Verdict.FALSIFIED} <= words


def test_a_limit_leaves_a_bound_that_is_sound_and_an_unknown():
    torch.manual_seed(0)
    network = fully_connected(64, 40, 40, 2).double()
    box = Box.around(torch.rand(1, 64).double(), 0.3)
    stopped = bound("exact", network, box, time_limit=0.05)
    seen = bound("sampled", network, box)
    assert (stopped.lower <= seen.lower).all()
    assert (stopped.upper >= seen.upper).all()
    limit = float((seen.lower[0, 0] + bound("lp", network, box).lower[0, 0]) / 2)  # between: hard
    problem = Problem(box, (Unsafe(torch.eye(2, dtype=torch.float64)[:1], torch.tensor([limit], dtype=torch.float64)),))
    case = verdict(network, problem, ("bab",), seconds=0.01)
    assert case.verdict is Verdict.UNKNOWN
    assert case.by is None


def test_signs_are_known_before_the_range_is():
    network, box, _, spec = tiny(3)
    low, _ = enumerated(network, box, spec)
    signs = prepare("exact", network, (2,), sign_only=True)(box, spec).lower[0].numpy()
    assert ((signs > 0) == (low > 1e-6)).all()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"solver": "glop"}, "unknown solver 'glop'"),
        ({"time_limit": 0}, "must be positive"),
    ],
)
def test_options_that_cannot_work_are_refused(options, words):
    network, box, _, _ = tiny(0)
    with pytest.raises(ConfigError, match=words):
        bound("exact", network, box, **options)


def test_a_stage_that_fails_is_left_out_and_the_rest_go_on(monkeypatch):
    network, box, label, _ = tiny(3)
    cascade = Cascade(network, (2,), Settings(("crown-ibp", "inputs", "exact"), seconds=20))

    def broken(*_):
        raise ValueError("no such thing\nsecond line")

    monkeypatch.setattr("etb_plugin.verification.cascade.split_inputs", broken)
    monkeypatch.setitem(cascade._bounds, "crown-ibp", broken)
    case = cascade.decide(robustness(box, label, 3))
    assert case.failed == dict.fromkeys(("crown-ibp", "inputs"), "ValueError: no such thing")
    assert case.by == "exact"
    monkeypatch.setattr("etb_plugin.verification.cascade.split_inputs", lambda *_: (_ for _ in ()).throw(BROKEN))
    with pytest.raises(SoundnessError):
        cascade.decide(robustness(box, label, 3))


BROKEN = SoundnessError("a bug")


def test_points_that_are_polished_are_no_worse_and_stay_in_the_box():
    network, box, label, _ = tiny(5)
    problem = robustness(box, label, 3)
    points = box.lower + (box.upper - box.lower) * torch.rand(50, 2).double()

    def unsafety(outputs, _):
        return problem.unsafety(outputs)

    better = polished(network, box, points, unsafety, Pgd(20, step=0.1))
    before, after = (problem.unsafety(network(x)).amax(1) for x in (points, better))
    assert (after >= before).all()
    assert (after > before).any()
    assert ((box.lower <= better) & (better <= box.upper)).all()


def test_branching_finds_what_a_descent_from_its_points_reaches(monkeypatch):
    """Between splits the worst branches' points are attacked from: without that, none of them need be unsafe."""
    network, box, _, _ = tiny(20)
    cascade = Cascade(network, (2,), Settings(("bab",), seconds=20))
    monkeypatch.setattr("etb_plugin.verification.branch.Tree.witness", lambda self, branches: None)
    row = network(box.upper).detach()[0]
    with torch.no_grad():
        worst = float((network(box.lower + (box.upper - box.lower) * torch.rand(5000, 2).double()) @ row).min())
    problem = Problem(box, (Unsafe(row[None], torch.tensor([worst + 1e-3]).double()),))
    case = cascade.decide(problem)
    assert (case.verdict, case.by) == (Verdict.FALSIFIED, "bab")
    assert bool(problem.broken(network(case.witness)))


def test_a_solver_that_is_not_installed_is_named_with_its_remedy(monkeypatch):
    monkeypatch.setattr(solvers_module, "find_spec", lambda name: None)
    network, box, _, _ = tiny(0)
    with pytest.raises(ConfigError, match=r"'highs' is not installed: pip install highspy"):
        bound("exact", network, box)


def test_stages_that_cannot_work_are_refused():
    network = fully_connected(2, 3, 2)
    with pytest.raises(ConfigError, match="'expected' is not sound"):
        Cascade(network, (2,), Settings(("pgd", "expected")))
    with pytest.raises(ConfigError, match="unknown bound 'exakt'"):
        Cascade(network, (2,), Settings(("exakt",)))
    with pytest.raises(ConfigError, match="must be positive"):
        Cascade(network, (2,), Settings(seconds=0))
    with pytest.raises(UnsupportedLayer, match=r"layer '2' \(CELU\)"):
        Cascade(nn.Sequential(nn.Flatten(), nn.Linear(2, 3), nn.CELU()), (2,), Settings(("exact",)))


def test_an_attack_on_margins_as_unsafe_parts_is_pgd():
    from etb_plugin.attacks import falsify, pgd

    net = build("tiny", (1, 8, 8), 10, seed=0).double()
    x, labels = torch.rand(20, 1, 8, 8).double(), torch.arange(20) % 10
    with torch.no_grad():
        labels = net(x).argmax(1)
    box, spec = Box.around(x, 0.02), margin_spec(labels, 10, torch.float64)

    def margins(outputs, some):
        return -torch.einsum("brk,bk->br", spec[some], outputs)

    one = pgd(net, box, labels, Pgd(10), torch.Generator().manual_seed(0))
    two = falsify(net, box, margins, Pgd(10), torch.Generator().manual_seed(0))
    assert 0 < one[1].sum() < 20
    assert (one[1] == two[1]).all()
    torch.testing.assert_close(one[0], two[0])
