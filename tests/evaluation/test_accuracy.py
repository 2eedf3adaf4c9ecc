"""Evaluation against its definitions written out, and the alarm that an unsound bound sets off."""

from copy import copy

import pytest
import torch

from etb_plugin.attacks import Pgd, pgd
from etb_plugin.bounds import Box, bound, margin_spec, register_bound, registry
from etb_plugin.data import load
from etb_plugin.errors import ConfigError, SoundnessError
from etb_plugin.evaluation import Exam, accuracy, evaluate
from etb_plugin.networks import build
from etb_plugin.objectives import get_method
from etb_plugin.training import Settings, train

EPS = 0.05


@pytest.fixture(scope="module")
def trained():
    digits = load("digits", test_limit=150)
    network = build("mlp-20x2", digits.input_shape, 10, seed=0)
    train(network, get_method("ibp"), digits, Settings(EPS, epochs=10, learning_rate=0.005))
    return network, digits


def exam(*certify, **changes):
    return Exam((EPS,), Pgd(10, 2, **changes), certify)


def test_shares_are_what_they_say(trained):
    network, digits = trained
    got = evaluate(network, digits.test, 10, exam("ibp", "crown"), EPS, batch_size=40)
    images, labels = next(digits.test.batches(150))
    right = network(images).argmax(1) == labels
    box, spec = Box.around(images, EPS), margin_spec(labels, 10)
    assert got.images == 150
    assert got.clean_accuracy == pytest.approx(right.double().mean())
    for name, share in (*got.certified_accuracy.items(), ("expected", got.expected_accuracy)):
        positive = (bound(name, network, box, spec).lower > 0).all(1)
        assert share == pytest.approx((right & positive).double().mean())
    # No attack may claim what random corners refute, and a certificate may not either.
    standing = right.clone()
    for _ in range(50):
        corner = torch.where(torch.rand_like(images) < 0.5, box.lower, box.upper)
        standing &= network(corner).argmax(1) == labels
    assert got.certified_accuracy["ibp"] <= got.certified_accuracy["crown"] <= got.pgd_accuracy
    assert got.pgd_accuracy <= float(standing.double().mean())
    assert got.pgd_accuracy <= got.fgsm_accuracy <= got.clean_accuracy
    assert got.pgd_accuracy <= got.pgd_robustness <= 1
    assert 0 < got.certified_accuracy["ibp"] < got.clean_accuracy


def test_robustness_counts_wrong_predictions_that_stay(trained):
    """At eps 0 nothing can change: every prediction, right or wrong, stays."""
    network, digits = trained
    got = evaluate(network, digits.test, 10, exam("ibp"), 0.0)
    assert got.pgd_robustness == 1
    assert got.clean_accuracy == got.pgd_accuracy == got.fgsm_accuracy == got.certified_accuracy["ibp"] < 1


def test_batches_make_no_difference_to_bounds_and_seeds_repeat(trained):
    network, digits = trained
    one, two = (evaluate(network, digits.test, 10, exam("crown-ibp"), EPS, batch_size=n) for n in (150, 7))
    assert one.certified_accuracy == two.certified_accuracy
    assert one == evaluate(network, digits.test, 10, exam("crown-ibp"), EPS, batch_size=150)


def test_all_restarts_find_what_pgd_finds_at_once(trained):
    network, digits = trained
    images, _ = next(digits.test.batches(150))
    predicted = network(images).argmax(1)
    _, changed = pgd(network, Box.around(images, 0.1), predicted, Pgd(1, 5), torch.Generator().manual_seed(0))
    once, often = (
        evaluate(network, digits.test, 10, Exam((0.1,), Pgd(1, restarts), ()), 0.1, batch_size=150).pgd_robustness
        for restarts in (1, 5)
    )
    assert often == pytest.approx(1 - changed.double().mean())
    assert often < once


def test_restarts_are_spared_what_is_broken_and_what_is_certified(trained, monkeypatch):
    network, digits = trained
    given = []

    def counted(network, box, labels, settings, generator):
        points, broken = pgd(network, box, labels, settings, generator)
        given.append((settings.restarts, len(labels), int(broken.sum())))
        return points, broken

    monkeypatch.setattr(accuracy, "pgd", counted)
    got = evaluate(network, digits.test, 10, Exam((EPS,), Pgd(10, 4), ("crown",)), EPS, batch_size=150)
    (once, every, broken), (again, left, _) = given
    assert (once, every, again) == (1, 150, 3)
    assert 0 < left == 150 - broken - round(150 * got.certified_accuracy["crown"]) < 150 - broken


@pytest.mark.parametrize("name", ["expected", "sampled", "dual:by=convex_adversarial:projections=20"])
def test_what_is_not_sound_may_not_certify(trained, name):
    network, digits = trained
    with pytest.raises(ConfigError, match=f"bound '{name}' is not sound, so it cannot certify"):
        evaluate(network, digits.test, 10, exam(name), EPS)


def test_a_bound_that_lies_is_caught_by_the_attack(trained, monkeypatch):
    network, digits = trained
    monkeypatch.setattr(registry, "_registry", copy(registry._registry))

    @register_bound("liar", sound=True, differentiable=False, takes="anything")
    def liar(network, input_shape):
        """Says that every margin is positive."""
        return lambda box, spec: (torch.ones(spec.shape[:2]), torch.ones(spec.shape[:2]))

    with pytest.raises(SoundnessError, match=r"bound 'liar' certifies test image \d+ at eps 0\.3"):
        evaluate(network, digits.test, 10, exam("liar"), 0.3)
