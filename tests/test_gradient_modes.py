"""Within torch.no_grad and torch.inference_mode, as people write around an evaluation, all is what it is without."""

import pytest
import torch

import etb_plugin
from etb_plugin import Ball, Box, bound, margin_spec
from etb_plugin.attacks import Pgd, fgsm, pgd
from etb_plugin.errors import ConfigError
from etb_plugin.networks import build

MODES = (torch.no_grad, torch.inference_mode)


@pytest.fixture
def network():
    return build("tiny", (1, 8, 8), 10, seed=0).eval()


@pytest.fixture
def images():
    return torch.rand(6, 1, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", ["ibp", "crown", "alpha-crown", "dual", "expected"])
def test_a_bound_of_what_is_made_there(mode, name, network, images):
    region = (lambda x: Ball(x, 0.1, 2)) if name == "crown" else (lambda x: Box.around(x, 0.01))
    want = bound(name, network, region(images), margin_spec(torch.arange(6), 10)).lower
    with mode():
        found = bound(name, network, region(images + 0), margin_spec(torch.arange(6), 10)).lower
    torch.testing.assert_close(found, want)


@pytest.mark.parametrize("mode", MODES)
def test_evaluations_verdicts_and_training(mode, network, images):
    def figures(untrained):
        x, labels = images + 0, network(images).argmax(1)
        found = etb_plugin.evaluate(network, (x, labels), eps=0.02, certify=["alpha-crown"], progress=False)
        verdicts = etb_plugin.verify(network, x, labels, eps=0.02)
        trained = etb_plugin.train(untrained, (x, labels), method="ibp", eps=0.1, epochs=2, progress=False)
        return found, [one.verdict for one in verdicts], trained.epochs[-1].loss

    one, other = (build("tiny", (1, 8, 8), 10, seed=0) for _ in range(2))
    want = figures(one)
    assert want[0].pgd_accuracy < 1
    with mode():
        assert figures(other) == want


def test_an_attack_without_gradients_is_refused(network, images):
    labels = network(images).argmax(1)
    with torch.inference_mode():
        for attack in (lambda: pgd(network, Box.around(images, 0.01), labels, Pgd(), torch.Generator()),
                       lambda: fgsm(network, Box.around(images, 0.01), images, labels)):  # fmt: skip
            with pytest.raises(ConfigError, match=r"take torch\.no_grad"):
                attack()
