"""The captured attack, with a recorder of the tests' own in place of a GPU's."""

import pytest
import torch

from etb_plugin import Box
from etb_plugin.attacks import CapturedPgd, Pgd, pgd
from etb_plugin.networks import build
from etb_plugin.shapes import fixed_shapes
from tests.training.test_capture import Again, Failing, Wrong

SETTINGS = Pgd(steps=15, restarts=2)


def batches():
    """Three batches of 8 and one of 5, at a radius where a part of the images stands."""
    network = build("tiny", (1, 8, 8), 10, seed=0).requires_grad_(False)
    images = torch.rand(29, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    labels = network(images).argmax(1)
    return network, [(Box.around(x, 0.02), y) for x, y in zip(images.split(8), labels.split(8), strict=True)]


def test_the_captured_attack_finds_what_the_attack_finds():
    network, given = batches()
    generator, recorder, said = torch.Generator().manual_seed(0), Again(), []
    attack = CapturedPgd(network, SETTINGS, generator, recorder, said.append)
    got = [attack(box, labels) for box, labels in given]
    assert recorder.recorded == 2  # once for each loss
    assert said == []
    plain = torch.Generator().manual_seed(0)
    with fixed_shapes():
        want = [pgd(network, box, labels, SETTINGS, plain) for box, labels in given[:3]]
    for (box, labels), one, other in zip(given, got, want, strict=False):
        assert torch.equal(one[1], other[1])
        assert torch.equal(one[0], other[0])
        assert (one[0] >= box.lower).all()
        assert (one[0] <= box.upper).all()
        assert torch.equal(network(one[0]).argmax(1) != labels, one[1])
    broken = torch.cat([hit for _, hit in got]).float().mean()
    assert 0.2 < broken < 0.8
    assert len(got[3][1]) == 5


@pytest.mark.parametrize(("recorder", "why"), [(Failing, "operation not permitted"), (Wrong, "differs")])
def test_an_attack_that_cannot_be_captured_is_taken_as_it_is_and_that_is_said_once(recorder, why):
    network, given = batches()
    generator, plain, said = torch.Generator().manual_seed(0), torch.Generator().manual_seed(0), []
    attack = CapturedPgd(network, SETTINGS, generator, recorder(), said.append)
    for box, labels in given:
        one, other = attack(box, labels), pgd(network, box, labels, SETTINGS, plain)
        assert torch.equal(one[0], other[0])
        assert torch.equal(one[1], other[1])
    assert len(said) == 1
    assert why in said[0]
