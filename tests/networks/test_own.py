"""What a network of one's own is called with."""

import pytest
from torch import nn

from etb_plugin.networks.own import _layers_of


def needs_both(shape, classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(shape[0] * shape[1] * shape[2], classes))


def names_a_shape(input_shape=(1, 3, 3), classes=4):
    return needs_both(input_shape, classes)


def needs_nothing():
    return needs_both((1, 8, 8), 10)


def has_options(width=16, depth=2, dropout=0.0):
    assert (width, depth, dropout) == (16, 2, 0.0)
    return needs_nothing()


@pytest.mark.parametrize("make", [needs_both, names_a_shape, needs_nothing, has_options])
def test_a_shape_goes_to_what_asks_for_one_and_not_to_options(make):
    (network,) = _layers_of("net.py:make", make)(1, 8, 10)
    assert network[1].weight.shape == (10, 64)
