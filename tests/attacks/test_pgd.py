"""Attacks stay in the box, and do what their gradient says."""

import pytest
import torch

from etb_plugin import Box
from etb_plugin.attacks import Pgd, fgsm, margin, perturb, pgd
from etb_plugin.errors import ConfigError
from etb_plugin.networks import build
from tests.conftest import fully_connected


def test_fgsm_and_pgd_find_the_worst_corner_of_a_linear_network():
    network = fully_connected(6, 3).double()
    images, labels = torch.rand(4, 6).double(), torch.tensor([0, 1, 2, 0])
    box = Box.around(images, 0.1, clip=None)
    points, broken = pgd(network, box, labels, Pgd(steps=40), torch.Generator().manual_seed(0))
    weight = network[1].weight
    for i in range(4):
        others = [j for j in range(3) if j != labels[i]]
        rows = weight[others] - weight[labels[i]]
        worst = (
            network(images[i : i + 1])[0, others] - network(images[i : i + 1])[0, labels[i]]
        ) + 0.1 * rows.abs().sum(1)
        assert broken[i] == (worst.max() > 0)
    assert (network(points).argmax(1) != labels).tolist() == broken.tolist()


def test_points_stay_in_the_box_and_training_runs_are_repeatable():
    network, images = build("tiny", (1, 8, 8), 10, seed=0), torch.rand(5, 1, 8, 8)
    labels, box = network(images).argmax(1), Box.around(images, 0.2)
    runs = [perturb(network, box, labels, Pgd(steps=5), torch.Generator().manual_seed(1)) for _ in range(2)]
    points, _ = pgd(network, box, labels, Pgd(steps=5, restarts=2), torch.Generator().manual_seed(1))
    for x in (runs[0], points, fgsm(network, box, images, labels)):
        assert ((x >= box.lower) & (x <= box.upper)).all()
    assert torch.equal(*runs)
    assert all(p.grad is None for p in network.parameters())


def test_margin_is_positive_where_the_prediction_is_wrong():
    logits = torch.tensor([[1.0, 3.0, 2.0], [5.0, 1.0, 0.0]])
    assert margin(logits, torch.tensor([0, 0])).tolist() == [2.0, -4.0]


def test_settings_without_steps_are_refused():
    with pytest.raises(ConfigError, match="at least 1 step and 1 restart"):
        Pgd(steps=0)
