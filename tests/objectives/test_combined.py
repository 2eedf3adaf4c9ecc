"""The methods of 2023 and later against their equations, written out, and in their limits."""

from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from etb_plugin.attacks import Pgd
from etb_plugin.bounds import Box, bound, margin_spec
from etb_plugin.errors import ConfigError, UnsupportedLayer
from etb_plugin.graph.tracing import trace
from etb_plugin.objectives import Point, get_method, taps
from etb_plugin.objectives.adversarial import Adversarial
from etb_plugin.objectives.expected import ExpectedBound
from etb_plugin.objectives.sabr import SmallBox
from etb_plugin.objectives.taps import Link, Taps, latent_logits, split
from etb_plugin.objectives.worst_case import WorstCase
from tests.conftest import Branching, fully_connected

POINT = Point(0.05, 0.0)
ATTACK = Pgd(steps=8, step=0.5, losses=("cross-entropy",))


@pytest.fixture
def case():
    """A float64 network of three classes, images and labels."""
    network = fully_connected(6, 8, 7, 3).double()
    return network, torch.rand(4, 1, 2, 3).double(), torch.tensor([0, 1, 2, 1])


def robust(objective, network, images, labels, point=POINT):
    loss = objective.prepare(network, tuple(images.shape[1:]), 3)
    return loss(images, labels, point, torch.Generator().manual_seed(0)).total


def ibp_margins(network, lower, upper, labels):
    """Upper ends of f_j - f_y over the other classes by IBP in plain tensors, the last layer folded in."""
    layers = [layer for layer in network if isinstance(layer, nn.Linear)]
    lower, upper = lower.flatten(1), upper.flatten(1)
    for layer in layers[:-1]:
        middle, radius = (upper + lower) / 2, (upper - lower) / 2
        z, spread = layer(middle), radius @ layer.weight.abs().T
        lower, upper = (z - spread).relu(), (z + spread).relu()
    middle, radius = (upper + lower) / 2, (upper - lower) / 2
    last, found = layers[-1], []
    for b, y in enumerate(labels.tolist()):
        rows = [(last.weight[j] - last.weight[y], last.bias[j] - last.bias[y]) for j in range(3) if j != y]
        found.append(torch.stack([row @ middle[b] + row.abs() @ radius[b] + shift for row, shift in rows]))
    return torch.stack(found)


def losses_of(margins):
    """log(1 + sum exp(f_j - f_y)), image by image."""
    return torch.log1p(margins.exp().sum(1))


def attacked_margins(network, images, labels, eps):
    adversarial, seen = Adversarial(ATTACK), []
    hook = network.register_forward_hook(lambda _, inputs, outputs: seen.append(inputs[0].detach()))
    robust(adversarial, network, images, labels, Point(eps, 0.0))
    hook.remove()
    logits = network(seen[-1])  # the pass that is trained on
    return torch.stack([torch.cat([z[:y], z[y + 1 :]]) - z[y] for z, y in zip(logits, labels.tolist(), strict=True)])


@pytest.mark.parametrize("coefficient", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("ratio", [1.0, 2.0])
def test_losses_of_an_attack_and_ibp_are_their_equations(case, coefficient, ratio):
    network, images, labels = case
    box = Box.around(images, 0.05)
    worst, inner = ibp_margins(network, box.lower, box.upper, labels), attacked_margins(*case, 0.05 * ratio)
    a = coefficient
    want = {
        "mtl-ibp": (a * losses_of(worst) + (1 - a) * losses_of(inner)).mean(),
        "cc-ibp": losses_of(a * worst + (1 - a) * inner).mean(),
        "exp-ibp": (losses_of(worst) ** a * losses_of(inner) ** (1 - a)).mean(),
    }
    for name, value in want.items():
        objective = get_method(name).changed({"coefficient": a, "attack_ratio": ratio}).objective
        got = robust(objective, *case)
        torch.testing.assert_close(got, value, rtol=1e-8, atol=1e-8)
        if a == 1:
            torch.testing.assert_close(got, robust(WorstCase("ibp"), *case), rtol=1e-8, atol=1e-8)
        if (a, ratio) == (0, 1):
            torch.testing.assert_close(got, robust(Adversarial(ATTACK), *case), rtol=1e-8, atol=1e-8)
        weights = [torch.autograd.grad(loss, network[1].weight, retain_graph=True)[0] for loss in (got, value)]
        torch.testing.assert_close(weights[0], weights[1], rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("rows", ["all", "top-1", "fused"])
def test_ours_have_the_expected_bound_where_those_have_an_attack(case, rows):
    network, images, labels = case
    box, options = Box.around(images, 0.05), {"masks": "center", "rows": rows}
    worst = ibp_margins(network, box.lower, box.upper, labels)
    if rows == "all":
        inner = losses_of(-bound("expected", network, box, margin_spec(labels, 3), masks="center").lower)
    else:
        inner = None
    only = {a: robust(get_method("mtl-expected").changed({"coefficient": a, "expected": options}).objective, *case)
            for a in (0.0, 0.25, 1.0)}  # fmt: skip
    torch.testing.assert_close(only[1.0], losses_of(worst).mean(), rtol=1e-8, atol=1e-8)
    alone = robust(ExpectedBound(options=options), *case)
    torch.testing.assert_close(only[0.0], alone, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(only[0.25], 0.25 * only[1.0] + 0.75 * only[0.0], rtol=1e-8, atol=1e-8)
    if inner is not None:
        torch.testing.assert_close(only[0.0], inner.mean(), rtol=1e-8, atol=1e-8)
        method = get_method("exp-expected").changed({"coefficient": 0.25, "expected": options})
        want = (losses_of(worst) ** 0.25 * inner**0.75).mean()
        torch.testing.assert_close(robust(method.objective, *case), want, rtol=1e-8, atol=1e-8)


def test_small_boxes_of_the_whole_share_are_ibp_and_shrinkage_shrinks_what_crosses(case):
    network, images, labels = case
    whole = SmallBox(share=1.0)
    torch.testing.assert_close(robust(whole, *case), robust(WorstCase("ibp"), *case))
    shrunk = get_method("sabr").changed({"share": 1.0, "shrinkage": 0.8}).objective
    box = Box.around(images, 0.05)
    lower, upper = box.lower.flatten(1), box.upper.flatten(1)
    layers = [layer for layer in network if isinstance(layer, nn.Linear)]
    for layer in layers[:-1]:
        middle, radius = (upper + lower) / 2, (upper - lower) / 2
        z, spread = layer(middle), radius @ layer.weight.abs().T
        lower, upper = z - spread, z + spread
        upper = torch.where((lower < 0) & (upper > 0), 0.8 * upper, upper)
        lower, upper = lower.relu(), upper.relu()
    last = nn.Sequential(layers[-1])
    want = losses_of(ibp_margins(last, lower, upper, labels)).mean()
    torch.testing.assert_close(robust(shrunk, *case), want, rtol=1e-8, atol=1e-8)
    assert not bound("ibp", network, box, shrinkage=0.8).sound
    with pytest.raises(ConfigError, match="shrinkage is a factor"):
        bound("ibp", network, box, shrinkage=1.5)


def test_taps_with_a_linear_second_block_finds_ibps_margins_and_gradients(case):
    """PGD reaches the corner at which a linear block's margin is greatest, and there the link passes all gradient."""
    network, images, labels = case
    first, second = split(network, "5")
    assert len(second) == 1
    box = Box.around(images, 0.05)
    graph, steps = trace(first, torch.Size([1, 2, 3])), Pgd(steps=30, step=1.0, losses=("margin",))
    z = latent_logits(graph, second, box, labels, 3, steps, 0.5, torch.Generator().manual_seed(0))
    got, want = F.cross_entropy(z, labels), losses_of(ibp_margins(network, box.lower, box.upper, labels)).mean()
    torch.testing.assert_close(got, want, rtol=1e-8, atol=1e-8)
    gradients = [torch.autograd.grad(loss, network[1].weight)[0] for loss in (got, want)]
    torch.testing.assert_close(*gradients, rtol=1e-8, atol=1e-8)


def test_taps_without_a_second_block_is_ibp_of_the_logits(case):
    network, images, labels = case
    box = Box.around(images, 0.05)
    graph, steps = trace(network, torch.Size([1, 2, 3])), Pgd(steps=30, step=1.0, losses=("margin",))
    z = latent_logits(graph, nn.Identity(), box, labels, 3, steps, 0.5, torch.Generator().manual_seed(0))
    want = robust(WorstCase("ibp", elision=False), *case)
    torch.testing.assert_close(F.cross_entropy(z, labels), want, rtol=1e-8, atol=1e-8)


def test_the_product_has_the_scaled_gradient_and_lies_between(case, monkeypatch):
    network, images, labels = case
    seen = []
    monkeypatch.setattr(taps, "latent_logits", lambda *a: seen.append(latent_logits(*a)) or seen[-1])
    total = robust(Taps(second="3", scale=3.0), *case)
    box = Box.around(images, 0.05)
    outer = losses_of(ibp_margins(network, box.lower, box.upper, labels))
    inner = F.cross_entropy(seen[0], labels, reduction="none")
    assert (inner <= outer + 1e-9).all()
    assert (inner < outer - 1e-6).any()
    torch.testing.assert_close(total, (inner * outer).mean(), rtol=1e-8, atol=1e-8)
    want = (1.5 * outer.detach() * inner + 0.5 * inner.detach() * outer).mean()
    for weight in (network[1].weight, network[3].weight):
        pair = [torch.autograd.grad(loss, weight, retain_graph=True)[0] for loss in (total, want)]
        torch.testing.assert_close(*pair, rtol=1e-8, atol=1e-8)


def test_the_link_passes_gradients_to_the_ends_that_are_near():
    low, high = torch.zeros(5, requires_grad=True), torch.full((5,), 2.0, requires_grad=True)
    x = torch.tensor([0.0, 0.5, 1.0, 1.75, 2.0])
    Link.apply(low, high, x, 0.5).sum().backward()
    torch.testing.assert_close(low.grad, torch.tensor([1.0, 0.5, 0.0, 0.0, 0.0]))
    torch.testing.assert_close(high.grad, torch.tensor([0.0, 0.0, 0.0, 0.75, 1.0]))


def test_what_cannot_be_split_is_refused(case):
    with pytest.raises(UnsupportedLayer, match="Branching is none"):
        get_method("taps").prepare(Branching(), (1, 6, 6), 5)
    with pytest.raises(ConfigError, match="no block can begin at layer 'fc'"):
        replace(get_method("taps").objective, second="fc").prepare(case[0], (1, 2, 3), 3)
    with pytest.raises(ConfigError, match="from 0 to 1; got 2"):
        get_method("mtl-ibp").changed({"coefficient": 2.0})
