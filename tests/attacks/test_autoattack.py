"""APGD, Square and both together: inside the box, against ART's on the same network, and never weaker than PGD."""

from copy import copy
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

from etb_plugin.attacks import Pgd, apgd_ce, apgd_targeted, autoattack, get_attack, pgd, registry, square
from etb_plugin.attacks.apgd import targeted_ratio
from etb_plugin.bounds import Box
from etb_plugin.data import load, pixels
from etb_plugin.errors import ConfigError
from etb_plugin.evaluation import Exam
from etb_plugin.evaluation.accuracy import evaluate
from etb_plugin.networks import build
from etb_plugin.objectives import get_method
from etb_plugin.training import Settings, train
from tests.conftest import fully_connected

EPS = 0.08
ATTACKS = {
    name: partial(get_attack(name), **fewer)
    for name, fewer in {"apgd-ce": {"steps": 50}, "apgd-targeted": {"steps": 30}, "square": {"queries": 300}}.items()
}


@pytest.fixture(scope="module")
def trained():
    """A network that stands for about half of the digits, and those that it gets right."""
    digits = load("digits")
    network = build("tiny", digits.input_shape, 10, seed=0)
    train(network, get_method("pgd"), digits, Settings(0.1, 8))
    network.requires_grad_(False)
    images, labels = pixels(digits.test.images), digits.test.labels
    right = network(images).argmax(1) == labels
    return network, images[right], labels[right]


@pytest.fixture
def idle(monkeypatch):
    """The labels that an attack "idle", which finds nothing and draws random numbers, is given."""
    given = []
    monkeypatch.setattr(registry, "_registry", copy(registry._registry))

    @registry.register_attack("idle")
    def idle(network, box, labels, generator):
        given.extend(labels.tolist())
        torch.rand(100, generator=generator)
        return box.center, torch.zeros_like(labels, dtype=torch.bool)

    return given


@pytest.mark.parametrize("name", ATTACKS)
@pytest.mark.parametrize("clip", [(0.0, 1.0), None])
def test_points_lie_in_the_box_and_break_what_they_say(trained, name, clip):
    network, images, labels = trained
    box = Box.around(images, EPS, clip)
    points, broken = ATTACKS[name](network, box, labels, torch.Generator().manual_seed(0))
    assert ((box.lower <= points) & (points <= box.upper)).all()
    assert torch.equal(broken, network(points).argmax(1) != labels)
    assert 0.2 < broken.double().mean() < 0.9


@pytest.mark.slow
def test_robust_accuracy_is_that_of_arts_attacks(trained):
    evasion = pytest.importorskip("art.attacks.evasion")
    classification = pytest.importorskip("art.estimators.classification")
    network, images, labels = trained
    model = classification.PyTorchClassifier(
        network, nn.CrossEntropyLoss(), input_shape=(1, 8, 8), nb_classes=10, clip_values=(0.0, 1.0), device_type="cpu"
    )
    np.random.seed(0)
    theirs = {
        "apgd-ce": evasion.AutoProjectedGradientDescent(
            model, eps=EPS, eps_step=2 * EPS, max_iter=50, nb_random_init=1, loss_type="cross_entropy", verbose=False
        ),
        "square": evasion.SquareAttack(model, eps=EPS, max_iter=300, nb_restarts=1, verbose=False),
    }
    for name, attack in theirs.items():
        found = torch.from_numpy(attack.generate(images.numpy(), labels.numpy()))
        want = (network(found).argmax(1) == labels).double().mean()
        _, broken = ATTACKS[name](network, Box.around(images, EPS), labels, torch.Generator().manual_seed(0))
        got = (~broken).double().mean()
        assert got <= want + 0.03, name  # no weaker; ours may be stronger by more


def test_together_they_leave_no_more_than_any_of_them_or_pgd(trained):
    network, images, labels = trained
    images, labels = images[:60], labels[:60]
    box = Box.around(images, EPS)
    points, broken = autoattack(network, box, labels, torch.Generator().manual_seed(0))
    assert ((box.lower <= points) & (points <= box.upper)).all()
    assert torch.equal(broken, network(points).argmax(1) != labels)
    _, by_ce = apgd_ce(network, box, labels, torch.Generator().manual_seed(0))
    assert (broken | ~by_ce).all()
    _, by_pgd = pgd(network, box, labels, Pgd(100, 2), torch.Generator().manual_seed(1))
    assert broken.sum() >= by_pgd.sum() - 1


def test_the_targeted_ratio_is_its_equation_and_does_not_see_scale():
    logits = torch.tensor([[4.0, 1.0, 3.0, -2.0, 0.0], [0.0, 1.0, 5.0, 2.0, 3.0]])
    pairs = torch.tensor([[0, 2], [1, 4]])
    want = torch.tensor([-(4.0 - 3.0) / (4.0 - (1.0 + 0.0) / 2), -(1.0 - 3.0) / (5.0 - (2.0 + 1.0) / 2)])
    torch.testing.assert_close(targeted_ratio(logits, pairs), want)
    torch.testing.assert_close(targeted_ratio(7 * logits + 3, pairs), want)
    few = torch.tensor([[1.0, 3.0, 2.0]])
    torch.testing.assert_close(targeted_ratio(few, torch.tensor([[0, 1]])), torch.tensor([2.0]))


def test_apgd_finds_the_worst_corner_of_an_affine_network():
    network = nn.Sequential(nn.Linear(6, 3)).double()
    x = torch.rand(50, 6).double()
    labels, box = network(x).argmax(1), Box.around(x, 0.2, clip=None)
    weight = network[0].weight
    margins = torch.stack([
        network(x)[:, j] - network(x).gather(1, labels[:, None])[:, 0] + 0.2 * (weight[j] - weight[labels]).abs().sum(1)
        for j in range(3)
    ], 1)  # fmt: skip
    margins = margins.scatter(1, labels[:, None], -torch.inf)
    _, broken = apgd_targeted(network, box, labels, torch.Generator().manual_seed(0), steps=20)
    assert torch.equal(broken, margins.amax(1) > 0)
    assert 0.1 < broken.double().mean() < 0.9


def test_images_of_one_row_are_searched_too():
    network, x = fully_connected(6, 16, 3), torch.rand(100, 6)
    labels, box = network(x).argmax(1), Box.around(x, 0.2)
    _, broken = square(network, box, labels, torch.Generator().manual_seed(0), queries=100)
    _, by_pgd = pgd(network, box, labels, Pgd(40), torch.Generator().manual_seed(0))
    assert by_pgd.sum() >= broken.sum() > 0.5 * by_pgd.sum()


def test_an_evaluation_keeps_the_order_of_its_accuracies(trained):
    digits = load("digits", test_limit=80)
    found = evaluate(trained[0], digits.test, 10, Exam((EPS,), Pgd(10), ("ibp", "crown"), further="autoattack"), EPS)
    assert max(found.certified_accuracy.values()) <= found.attacked_accuracy["autoattack"] <= found.pgd_accuracy
    assert found.attacked_accuracy["autoattack"] < found.clean_accuracy
    without = evaluate(trained[0], digits.test, 10, Exam((EPS,), Pgd(10), ("ibp",)), EPS)
    assert without.attacked_accuracy == {}
    assert without.pgd_accuracy == found.pgd_accuracy


def test_pgd_finds_the_same_whether_another_attack_follows_or_not(trained, idle):
    digits, exam = load("digits"), Exam((0.15,), Pgd(1), ())  # of one step, so that the random start counts
    alone, followed = (
        evaluate(trained[0], digits.test, 10, each, 0.15, batch_size=20).pgd_accuracy
        for each in (exam, replace(exam, further="idle"))
    )
    assert idle
    assert alone == followed


@pytest.mark.parametrize("certify", [(), ("crown",)])
def test_a_further_attack_is_spared_what_pgd_broke_and_what_a_bound_certifies(trained, idle, certify):
    digits = load("digits", test_limit=200)
    found = evaluate(trained[0], digits.test, 10, Exam((EPS,), Pgd(10), certify, further="idle"), EPS)
    certified = sum(found.certified_accuracy.values())
    assert len(idle) == round(200 * (found.pgd_accuracy - certified)) > 0
    assert (certified > 0) == bool(certify)
    assert found.attacked_accuracy["idle"] == found.pgd_accuracy


def test_an_attack_that_is_not_there_is_refused_before_any_work(trained):
    digits, watched = load("digits", test_limit=40), []
    with pytest.raises(ConfigError, match="unknown attack 'autoatack'"):
        evaluate(trained[0], digits.test, 10, Exam((EPS,), Pgd(5), (), further="autoatack"), EPS, watch=watched.append)
    assert not watched


def test_what_an_attack_says_is_checked(trained, monkeypatch):
    monkeypatch.setattr(registry, "_registry", copy(registry._registry))

    @registry.register_attack("boastful")
    def boastful(network, box, labels, generator):
        return box.center, torch.ones_like(labels, dtype=torch.bool)

    @registry.register_attack("outside")
    def outside(network, box, labels, generator):
        return box.upper + 0.1, torch.ones_like(labels, dtype=torch.bool)

    digits = load("digits", test_limit=40)
    found = evaluate(trained[0], digits.test, 10, Exam((EPS,), Pgd(5), (), further="boastful"), EPS)
    assert found.attacked_accuracy["boastful"] == found.pgd_accuracy
    with pytest.raises(ConfigError, match="'outside' gives points outside of the box"):
        evaluate(trained[0], digits.test, 10, Exam((EPS,), Pgd(5), (), further="outside"), EPS)
