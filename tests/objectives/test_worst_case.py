"""The objective of every bound against its equations, finite differences, and what it must leave alone."""

from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from etb_plugin.bounds import Box, bound, margin_spec, other_classes, prepare
from etb_plugin.bounds.crown_ibp import after_ibp
from etb_plugin.errors import UnsupportedLayer
from etb_plugin.graph.tracing import trace
from etb_plugin.objectives import Point, get_method, methods, sabr, worst_case
from etb_plugin.objectives.fusion import fused_cross_entropy
from etb_plugin.objectives.regularisers import regularisers
from etb_plugin.objectives.worst_case import WorstCase, worst_logits
from tests.conftest import Bessel, fully_connected

POINT = Point(eps=0.05, kappa=0.3)


@pytest.fixture
def case():
    """A float64 network of three classes, images and labels."""
    network = fully_connected(6, 8, 3).double()
    return network, torch.rand(4, 1, 2, 3).double(), torch.tensor([0, 1, 2, 1])


def loss_of(objective, network, images, labels, point=POINT):
    loss = objective.prepare(network, tuple(images.shape[1:]), 3)
    return loss(images, labels, point, torch.Generator().manual_seed(0))


def worst_logits_by_hand(network, images, labels, eps, elision):
    """IBP in plain tensors: the interval of the hidden layer, then the last layer or the margins folded into it."""
    first, last = network[1], network[3]
    lower, upper = (images - eps).clamp(0, 1).flatten(1), (images + eps).clamp(0, 1).flatten(1)
    m, r = (upper + lower) / 2, (upper - lower) / 2
    z, spread = first(m), r @ first.weight.abs().T
    lower, upper = (z - spread).relu(), (z + spread).relu()
    m, r = (upper + lower) / 2, (upper - lower) / 2
    z = torch.zeros(len(labels), 3).double()
    for b, y in enumerate(labels.tolist()):
        for j in range(3):
            if elision:
                row = last.weight[y] - last.weight[j]
                z[b, j] = 0 if j == y else -(row @ m[b] - row.abs() @ r[b] + last.bias[y] - last.bias[j])
            else:
                sign = -1 if j == y else 1
                z[b, j] = last.weight[j] @ m[b] + last.bias[j] + sign * last.weight[j].abs() @ r[b]
    return z


@pytest.mark.parametrize("elision", [True, False])
@pytest.mark.parametrize("form", ["convex", "additive"])
@pytest.mark.parametrize("temperature", [1.0, 0.2])
def test_the_loss_is_its_equation(case, form, elision, temperature):
    network, images, labels = case
    got = loss_of(WorstCase("ibp", form=form, elision=elision, temperature=temperature), *case)
    clean = F.cross_entropy(network(images), labels)
    z = worst_logits_by_hand(network, images, labels, POINT.eps, elision)
    robust = F.cross_entropy(z / temperature, labels)
    want = 0.3 * clean + 0.7 * robust if form == "convex" else clean + 0.3 * robust
    torch.testing.assert_close(got.total, want)
    torch.testing.assert_close(got.robust, robust.detach())
    assert int(got.correct) == int((network(images).argmax(1) == labels).sum())


def test_the_other_losses_are_their_equations(case):
    network, images, labels = case
    z = worst_logits_by_hand(network, images, labels, POINT.eps, elision=True)
    softplus = sum(F.softplus(z[b, j] - z[b, y]) for b, y in enumerate(labels) for j in range(3) if j != y) / len(z)
    torch.testing.assert_close(loss_of(WorstCase("ibp", loss="softplus"), *case).robust, softplus.detach())
    relative = F.cross_entropy(z / z.abs().max(1, keepdim=True).values / 0.2, labels)
    got = loss_of(WorstCase("ibp", relative=True, temperature=0.2), *case).robust
    torch.testing.assert_close(got, relative.detach())


@pytest.mark.parametrize("eps", [1e-6, 0.01, 0.05, 0.3])
def test_the_fused_loss_lies_between_attacks_and_ibp(case, eps):
    """Sound, never above IBP's, and below the loss of CROWN-IBP's margins plus what the chords give away."""
    network, images, labels = case
    box, shape = Box.around(images, eps), tuple(images.shape[1:])
    crown, ibp = prepare("crown-ibp", network, shape), prepare("ibp", network, shape)
    fused, plain = fused_cross_entropy(after_ibp(network, shape), box, labels, 3)
    torch.testing.assert_close(plain, F.cross_entropy(worst_logits(ibp, box, labels, 3), labels))
    assert fused <= plain + 1e-12
    for _ in range(200):
        x = box.lower + (box.upper - box.lower) * torch.rand_like(box.lower).round()
        assert F.cross_entropy(network(x), labels) <= fused + 1e-9
    if eps <= 0.01:  # where chords are nearly tangents, it is the tighter of the two
        torch.testing.assert_close(
            fused, F.cross_entropy(worst_logits(crown, box, labels, 3), labels), rtol=0.05, atol=0
        )


def test_the_fused_loss_survives_huge_margins(case):
    network = case[0]
    with torch.no_grad():
        network[3].weight *= 1e4
    losses = loss_of(get_method("crown-ibp").objective, *case, point=Point(0.3, 0.5, 0.5))
    losses.total.backward()
    assert torch.isfinite(losses.total)
    assert all(torch.isfinite(p.grad).all() for p in network.parameters())


def test_without_elision_the_loss_is_never_smaller(case):
    with_elision, without = (loss_of(WorstCase("ibp", elision=e), *case).robust for e in (True, False))
    assert without > with_elision


@pytest.mark.parametrize("name", ["ibp", "expected", "crown-ibp", "crown", "dual"])
def test_the_gradient_is_that_of_the_loss(case, name):
    network = case[0]
    objective = get_method(name).objective
    weight, direction = network[1].weight, torch.randn(8, 6).double()
    loss_of(objective, *case).total.backward()
    step = 1e-6
    with torch.no_grad():
        weight += step * direction
        ahead = loss_of(objective, *case).total
        weight -= 2 * step * direction
        behind = loss_of(objective, *case).total
    torch.testing.assert_close((weight.grad * direction).sum(), (ahead - behind) / (2 * step), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("name", ["ibp", "expected", "crown-ibp", "crown", "dual"])
def test_margins_of_a_sound_bound_give_a_larger_loss_than_any_sampled_point(case, name):
    network, images, labels = case
    box = Box.around(images, POINT.eps)
    robust = loss_of(get_method(name).objective, *case).robust
    margins = bound(name, network, box, margin_spec(labels, 3, torch.float64)).lower
    assert bool((margins > -torch.inf).all())
    if name != "expected":
        for _ in range(20):
            x = box.lower + (box.upper - box.lower) * torch.rand_like(box.lower)
            assert F.cross_entropy(network(x), labels) <= robust


@pytest.mark.parametrize("point", [Point(0.0, 0.3), Point(0.1, 1.0)])
def test_a_bound_without_radius_or_weight_is_not_computed(case, point, monkeypatch):
    network, images, labels = case
    monkeypatch.setattr(worst_case, "worst_logits", lambda *_: pytest.fail("the bound was computed"))
    losses = loss_of(WorstCase("ibp"), *case, point=point)
    torch.testing.assert_close(losses.total, F.cross_entropy(network(images), labels))


def test_batch_norm_sees_clean_images_once_and_stays_in_train_mode():
    network = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU(), nn.Flatten(), nn.Linear(2, 3)).train()
    images, labels = torch.rand(5, 1, 3, 3), torch.tensor([0, 1, 2, 0, 1])
    loss_of(WorstCase("ibp"), network, images, labels).total.backward()
    norm = network[1]
    assert norm.training
    assert int(norm.num_batches_tracked) == 1
    torch.testing.assert_close(norm.running_mean, 0.1 * network[0](images).detach().mean((0, 2, 3)))


def test_adversarial_training_sees_a_worse_loss_inside_the_box(case, monkeypatch):
    network, images, _ = case
    seen = []
    monkeypatch.setattr(network, "forward", lambda x, f=network.forward: seen.append(x.detach()) or f(x))
    losses = loss_of(get_method("pgd").objective, *case)
    assert losses.robust > losses.clean
    torch.testing.assert_close(losses.total.detach(), losses.robust)
    box = Box.around(images, POINT.eps)
    assert all(bool(((box.lower <= x) & (x <= box.upper)).all()) for x in seen)


def test_a_network_that_the_bound_cannot_take_is_refused_by_layer():
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 5), Bessel(), nn.Linear(5, 10))
    with pytest.raises(UnsupportedLayer, match=r"layer 'special_i0' \(special_i0\)"):
        get_method("dual").objective.prepare(network, (1, 8, 8), 10)


def test_small_boxes_lie_in_the_large_one_and_give_a_smaller_loss_than_it(case, monkeypatch):
    images = case[1]
    boxes = []
    monkeypatch.setattr(sabr, "worst_logits", lambda b, box, *rest: boxes.append(box) or worst_logits(b, box, *rest))
    point = Point(0.05, 0.0)
    small = loss_of(get_method("sabr").objective, *case, point=point)
    large = loss_of(WorstCase("ibp"), *case, point=point)
    outer = Box.around(images, 0.05)
    assert (boxes[0].lower >= outer.lower - 1e-12).all()
    assert (boxes[0].upper <= outer.upper + 1e-12).all()
    torch.testing.assert_close(boxes[0].radius, 0.4 * outer.radius)
    assert small.clean < small.robust < large.robust


def test_the_annealed_bound_goes_from_the_expected_to_ibp(case, monkeypatch):
    objective = get_method("expected-ibp").objective
    for mix, end in ((0.0, WorstCase("expected", {"masks": "center"})), (1.0, WorstCase("ibp"))):
        got = loss_of(objective, *case, point=Point(0.05, 0.3, mix)).total
        torch.testing.assert_close(got, loss_of(end, *case, point=Point(0.05, 0.3)).total)
    network, images, labels = case
    box, spec = Box.around(images, 0.05), margin_spec(labels, 3, torch.float64)
    lower = [bound("expected", network, box, spec, masks="center").lower, bound("ibp", network, box, spec).lower]
    z = torch.zeros(4, 3).double().scatter(1, other_classes(labels, 3), -(0.75 * lower[0] + 0.25 * lower[1]))
    got = loss_of(objective, *case, point=Point(0.05, 0.3, 0.25)).robust
    torch.testing.assert_close(got, F.cross_entropy(z, labels).detach())


def test_every_method_says_where_its_defaults_come_from():
    assert {"nominal", "pgd", "ibp", "crown-ibp", "crown", "expected", "dual", "dual-projected"} <= set(methods())
    for method in methods().values():
        assert any(year in method.recipe.source for year in ("2018", "2019", "2020", "2021", "2023", "2024"))
        assert len(method.summary) < 120


def test_options_reach_the_bound(case):
    masked, own = (
        loss_of(replace(get_method("expected").objective, options=o), *case) for o in ({}, {"center": "network"})
    )
    assert masked.robust != own.robust


def test_regularisers_are_those_of_shi_et_al(case):
    """One hidden layer, by hand: its width against the input's, and its active against its inactive units."""
    network, images, _ = case
    box = Box.around(images, 0.02)
    center = network[1](box.center.flatten(1))
    radius = box.radius.flatten(1) @ network[1].weight.abs().T
    active, inactive = (center > radius), (center < -radius)
    assert active.any()
    assert inactive.any()
    mean = (center * active).sum() / -(center * inactive).sum()
    far = (center - center.mean()) ** 2
    spread = (far * active).sum() / (far * inactive).sum()
    ratios = [box.radius.mean() / radius.mean(), min(mean, 1 / mean), min(spread, 1 / spread)]
    want = sum(max(0.5 - float(torch.as_tensor(ratio).detach()), 0) for ratio in ratios) / 0.5
    graph = trace(network, images.shape[1:])
    assert float(regularisers(graph, box, 0.5).detach()) == pytest.approx(want)
    method = get_method("ibp-fast")
    plain, added = (loss_of(method, *case, point=Point(0.02, 0.0, grown=grown)).total for grown in (1.0, 0.6))
    assert float((added - plain).detach()) == pytest.approx(0.4 * 0.5 * want)
    assert bool(loss_of(method, *case, point=Point(0.0, 0.0, grown=0.0)).total.isfinite())  # eps is 0 at first
