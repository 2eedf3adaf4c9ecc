"""Options that are about speed leave accuracies where they are, within what another seed changes."""

from dataclasses import replace
from statistics import mean

import pytest
import torch

from etb_plugin import Box, bound, margin_spec
from etb_plugin.attacks import Pgd, polished
from etb_plugin.data import load
from etb_plugin.evaluation import Exam, evaluate
from etb_plugin.networks import build
from etb_plugin.objectives import get_method
from etb_plugin.training import Settings, train

EXAM = Exam((0.05,), Pgd(20), ())


def accuracies(method, digits, *, epochs=10, compile=False):
    """Return clean and PGD accuracy for three seeds."""
    found = []
    for seed in range(3):
        network = build("tiny", digits.input_shape, 10, seed=seed)
        train(network, method, digits, Settings(0.05, epochs, seed=seed, compile=compile))
        evaluation = evaluate(network, digits.test, 10, EXAM, 0.05)
        found.append((evaluation.clean_accuracy, evaluation.pgd_accuracy))
    return list(zip(*found, strict=True))


def assert_within_seed_noise(plain, other):
    for before, after in zip(plain, other, strict=True):
        assert min(before) > 0.5  # it learnt something
        assert abs(mean(after) - mean(before)) <= max(before) - min(before) + 0.01


@pytest.mark.parametrize("model", ["tiny", "wk-resnet"])
def test_rows_in_bfloat16_are_the_rows_to_a_percent(model):
    shape = (1, 8, 8) if model == "tiny" else (3, 16, 16)
    network = build(model, shape, 10, seed=0).eval()
    box, spec = Box.around(torch.rand(3, *shape), 0.05), margin_spec(torch.arange(3), 10)
    exact, rough = (bound("expected", network, box, spec, bfloat16=b) for b in (False, True))
    assert rough.lower.dtype == torch.float32
    assert not torch.equal(rough.lower, exact.lower)
    torch.testing.assert_close(rough.width, exact.width, rtol=0.01, atol=0)
    rough.lower.sum().backward()
    assert all(bool(p.grad.isfinite().all()) for p in network.parameters() if p.grad is not None)


def test_a_climb_in_bfloat16_reaches_what_one_in_float32_does_to_a_percent():
    network = build("tiny", (1, 8, 8), 10, seed=0).eval()
    box, labels = Box.around(torch.rand(20, 1, 8, 8), 0.1), torch.arange(20) % 10

    def value(outputs, some):
        return -outputs.gather(1, labels[some, None])

    exact, rough = (
        polished(network, box, box.center, value, Pgd(20, step=0.25, bfloat16=b)) for b in (False, True)
    )  # fmt: skip
    assert rough.dtype == torch.float32
    assert not torch.equal(rough, exact)
    every = torch.arange(20)
    torch.testing.assert_close(value(network(rough), every), value(network(exact), every), rtol=0.01, atol=0.01)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "changes"), [("expected", {"bfloat16": True}), ("pgd", {"attack": {"bfloat16": True}})]
)
def test_bfloat16_moves_accuracy_less_than_another_seed(name, changes):
    digits, method = load("digits"), get_method(name)
    changed = method.changed(changes)
    if name == "pgd":  # the rest of the attack stays
        assert changed.objective.attack == replace(method.objective.attack, bfloat16=True)
    assert_within_seed_noise(accuracies(method, digits), accuracies(changed, digits))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's own, of its own
def test_compiling_moves_accuracy_less_than_another_seed():
    digits, method = load("digits"), get_method("pgd")
    assert_within_seed_noise(accuracies(method, digits), accuracies(method, digits, compile=True))
