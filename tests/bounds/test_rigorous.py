"""Bounds in real arithmetic: held against exact fractions, and against networks made to fool by rounding."""

import math
from dataclasses import replace
from fractions import Fraction
from itertools import pairwise, product

import pytest
import torch
from torch import nn

from etb_plugin import Ball, Box, bound, margin_spec
from etb_plugin.attacks import Pgd
from etb_plugin.data import Split
from etb_plugin.errors import ConfigError, UnsupportedLayer
from etb_plugin.evaluation import Certifier, Exam, check_certifiers, evaluate
from etb_plugin.graph.rounding import rigorous
from etb_plugin.networks import build
from etb_plugin.selftest.networks import deceiving
from etb_plugin.verification.cascade import RIGOROUS_STAGES, STAGES, Cascade, Settings, check_stages
from etb_plugin.verification.problem import Verdict, robustness
from tests.conftest import Branching

BOUNDS = ("ibp", "crown-ibp", "crown", "alpha-crown")


def exactly(network, x):
    """Return the outputs of fully connected ReLU layers at `x`, as fractions."""
    values = [Fraction(v) for v in x.flatten().tolist()]
    for layer in network:
        if isinstance(layer, nn.Linear):
            rows = [[Fraction(w) for w in row] for row in layer.weight.tolist()]
            biases = [Fraction(b) for b in layer.bias.tolist()]
            values = [sum(map(Fraction.__mul__, row, values), b) for row, b in zip(rows, biases, strict=True)]
        elif isinstance(layer, nn.ReLU):
            values = [max(v, Fraction(0)) for v in values]
    return values


def cancelling(seed, *sizes):
    """Return layers whose weights are of all sizes and cancel."""
    generator = torch.Generator().manual_seed(seed)
    layers = [nn.Flatten()]
    for into, out in pairwise(sizes):
        layer = nn.Linear(into, out).double()
        with torch.no_grad():
            size = 10.0 ** torch.randint(-6, 7, (out, into), generator=generator).double()
            layer.weight.copy_(torch.randn(out, into, generator=generator, dtype=torch.float64) * size)
            layer.weight[1::2] = -layer.weight[::2][: out // 2] * (1 + 2**-50)
            layer.bias.copy_(torch.randn(out, generator=generator, dtype=torch.float64) * 1e5)
        layers += [layer, nn.ReLU()]
    return nn.Sequential(*layers[:-1]).requires_grad_(False)


@pytest.mark.parametrize("name", BOUNDS)
def test_bounds_enclose_the_exact_outputs_where_rounding_moves_them(name):
    outside = 0
    for seed in range(12):
        network = cancelling(seed, 3, 6, 5, 2)
        center = torch.rand(1, 1, 1, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        box = Box.around(center, 2.0**-48 if seed % 2 else 0.0)
        plain = bound(name, network, box)
        with rigorous():
            sure = bound(name, network, box)
        corners = [torch.stack(c) for c in product(*zip(box.lower.flatten(), box.upper.flatten(), strict=True))]
        for corner in corners:
            for k, value in enumerate(exactly(network, corner)):
                assert Fraction(sure.lower[0, k].item()) <= value <= Fraction(sure.upper[0, k].item())
                outside += not Fraction(plain.lower[0, k].item()) <= value <= Fraction(plain.upper[0, k].item())
    assert outside > 20  # what is taken off is needed


@pytest.mark.parametrize(
    ("network", "name"),
    [*product(("tiny", "small"), ("ibp", "crown-ibp", "crown")), ("mlp-20x2", "alpha-crown"), ("wk-resnet", "ibp"),
     pytest.param("wk-resnet", "crown", marks=pytest.mark.slow)],
)  # fmt: skip
def test_little_is_lost_on_networks_of_usual_weights(network, name):
    shape = (3, 8, 8) if network == "wk-resnet" else (1, 28, 28)
    net = build(network, shape, 10, seed=0).double()
    box = Box.around(torch.rand(1, *shape, dtype=torch.float64), 0.01)
    spec = margin_spec(torch.tensor([3]), 10, torch.float64)
    plain = bound(name, net, box, spec)
    with rigorous():
        sure = bound(name, net, box, spec)
    assert (sure.lower <= plain.lower).all()
    assert (plain.lower - sure.lower).max() < 1e-6


@pytest.mark.parametrize("name", BOUNDS)
def test_batch_norm_pooling_branches_and_clamps_are_known(name):
    network = nn.Sequential(Branching(), nn.Hardtanh(-0.5, 0.7), nn.Linear(5, 4), nn.LeakyReLU(0.1), nn.Linear(4, 3))
    network = network.double().eval()
    box = Box.around(torch.rand(2, 1, 6, 6, dtype=torch.float64), 0.02)
    plain = bound(name, network, box)
    with rigorous():
        sure = bound(name, network, box)
    assert (sure.lower < plain.lower).all()
    assert (sure.upper > plain.upper).all()
    assert (plain.lower - sure.lower).max() < 1e-9


FOOLING = [(big, depth, into) for big in (2.0**55, 2.0**70, 2.0**100) for depth in (0, 1, 3) for into in (1, 4)]


def verdicts(settings):
    found = []
    for big, depth, into in FOOLING:
        network = deceiving(big, depth, into)
        x = torch.full((1, 1, 1, into), 0.5, dtype=torch.float64)
        assert exactly(network, x)[1] > exactly(network, x)[0]  # in truth class 1, at the centre already
        cascade = Cascade(network, (1, 1, into), settings)
        found.append(cascade.decide(robustness(Box.around(x, 0.1), 0, 2)).verdict)
    return found


def test_networks_made_to_fool_by_rounding_are_not_certified():
    stages = ("pgd", "ibp", "crown-ibp", "crown", "alpha-crown", "inputs", "bab")
    without = verdicts(Settings(stages))
    assert without.count(Verdict.ROBUST) == len(FOOLING)  # that is what rounding does
    assert Verdict.ROBUST not in verdicts(Settings(stages, seconds=0.3, rigorous=True))


@pytest.mark.parametrize("stage", ["inputs", "bab"])
def test_branches_do_not_prove_that_a_value_is_not_met_which_a_corner_has(stage):
    """Networks of numbers that cancel: the margin is unsafe up to just what it is, exactly, at a corner of the box."""
    wrong, proved = dict.fromkeys((False, True), 0), dict.fromkeys((False, True), 0)
    for seed in range(40):
        network = cancelling(seed, 3, 12, 12, 2)
        center = torch.rand(1, 1, 1, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        box = Box.around(center, 2.0**-48 if seed % 2 else 2.0**-40)
        corners = [torch.stack(c) for c in product(*zip(box.lower.flatten(), box.upper.flatten(), strict=True))]
        margins = [first - second for first, second in (exactly(network, corner) for corner in corners)]
        met = math.nextafter(float(min(margins)), math.inf)
        for limit, sure in product((met, met - abs(met) / 1e3 - 1e-3), (False, True)):
            problem = robustness(box, 0, 2)
            part = replace(problem.unsafe[0], most=torch.tensor([limit], dtype=torch.float64))
            cascade = Cascade(network, (1, 1, 3), Settings((stage,), seconds=2.0, rigorous=sure))
            robust = cascade.decide(replace(problem, unsafe=(part,))).verdict is Verdict.ROBUST
            proved[sure] += robust
            wrong[sure] += robust and limit == met
    # One in seven, and which depends on the processor.
    assert wrong[False] > 0 or stage == "inputs"  # needed by bab; cutting the input meets the corner itself
    assert wrong[True] == 0
    assert proved[True] > 5


def test_branching_decides_what_bounds_leave_open_and_little_is_lost():
    torch.manual_seed(1)
    network, x = build("mlp-20x2", (1, 8, 8), 10, seed=0), torch.rand(6, 1, 8, 8, dtype=torch.float64)
    found = {}
    for sure in (False, True):
        cascade = Cascade(network, (1, 8, 8), Settings(("pgd", "crown", "bab"), seconds=10.0, rigorous=sure))
        cases = [cascade.decide(robustness(Box.around(one[None], 0.04), label, 10))
                 for one, label in zip(x, cascade.network(x).argmax(1).tolist(), strict=True)]  # fmt: skip
        found[sure] = [case.verdict for case in cases]
        assert "bab" in {case.by for case in cases}
    assert found[True] == found[False]
    assert Verdict.UNKNOWN not in found[True]


@pytest.mark.parametrize("name", BOUNDS)
def test_an_accuracy_that_rounding_made_is_not_certified(name):
    x, labels = torch.full((3, 1, 1, 4), 0.5), torch.tensor([0, 0, 0])
    exam = Exam((0.1,), Pgd(2), (name,))
    network = deceiving(2.0**26, 1, 4).float()  # too much for float32 alone, whose sums it swallows
    found = [evaluate(network, Split(x, labels), 2, one, 0.1) for one in (exam, replace(exam, rigorous=True))]
    assert [one.certified_accuracy[name] for one in found] == [1.0, 0.0]
    margin = nn.Sequential(nn.Flatten(), nn.Linear(4, 2)).requires_grad_(False)  # one that is far from rounding
    margin[1].weight.zero_()
    margin[1].bias.copy_(torch.tensor([1e-3, 0.0]))
    found = evaluate(margin, Split(x, labels), 2, replace(exam, rigorous=True), 0.1)
    assert found.certified_accuracy[name] == 1.0


def test_every_stage_is_either_rigorous_or_refused():
    check_stages(Settings(RIGOROUS_STAGES, rigorous=True))
    for stage in set(STAGES) - set(RIGOROUS_STAGES):
        with pytest.raises(ConfigError, match=f"knows no rounding in stage {stage!r}"):
            check_stages(Settings((stage,), rigorous=True))


def test_what_cannot_be_rigorous_is_refused():
    network, box = build("tiny", (1, 8, 8), 10, seed=0), Box.around(torch.rand(1, 1, 8, 8), 0.1)
    smooth = nn.Sequential(nn.Flatten(), nn.Linear(64, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    wide = Box(box.lower.double(), box.upper.double())
    with rigorous():
        with pytest.raises(ConfigError, match="in float64 on a CPU"):
            bound("crown", network, box)
        with pytest.raises(ConfigError, match="rigorous bounds are ibp"):
            bound("dual", network.double(), wide)
        with pytest.raises(ConfigError, match="of boxes"):
            bound("crown", network.double(), Ball(wide.center, 0.1, 2))
        with pytest.raises(UnsupportedLayer, match="piecewise linear"):
            bound("crown", smooth, wide)
    with pytest.raises(UnsupportedLayer, match="piecewise linear"):
        Certifier("crown", smooth.float(), (1, 8, 8), in_real_arithmetic=True)
    for name in ("dual", "exact", "crown:by=auto_LiRPA"):
        with pytest.raises(ConfigError, match="knows no rounding; --rigorous takes"):
            check_certifiers([name], in_real_arithmetic=True)
    with pytest.raises(ConfigError, match="knows no rounding in stage 'exact'"):
        Cascade(network, (1, 8, 8), Settings(("crown", "exact"), rigorous=True))
    with pytest.raises(UnsupportedLayer, match="piecewise linear"):
        Cascade(smooth, (1, 8, 8), Settings(("crown",), rigorous=True))
