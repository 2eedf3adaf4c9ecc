"""Boxes, specs and the registry."""

import pytest
import torch

from etb_plugin import Box, bound, margin_spec
from etb_plugin.bounds import register_bound
from etb_plugin.errors import ConfigError
from etb_plugin.networks import build
from tests.conftest import fully_connected


def test_a_box_is_clipped_to_the_pixel_range_unless_told_otherwise():
    images = torch.tensor([[0.0, 0.5, 0.95]])
    box = Box.around(images, 0.1)
    torch.testing.assert_close(box.lower, torch.tensor([[0.0, 0.4, 0.85]]))
    torch.testing.assert_close(box.upper, torch.tensor([[0.1, 0.6, 1.0]]))
    torch.testing.assert_close(Box.around(images, 0.1, clip=None).radius, torch.full((1, 3), 0.1))


def test_images_beyond_the_range_that_boxes_are_cut_to_are_warned_of():
    normalised = torch.tensor([[-0.5, 0.5, 2.0]])
    with pytest.warns(UserWarning, match=r"images from -0\.5 to 2 do not lie in their boxes, cut to 0 to 1"):
        Box.around(normalised, 0.1)
    for clip in (None, (-0.5, 2.0)):  # a warning would be an error here
        Box.around(normalised, 0.1, clip)


@pytest.mark.parametrize("eps", [-0.1, float("nan"), float("inf")])
def test_an_eps_that_is_no_radius_is_refused(eps):
    with pytest.raises(ConfigError, match="must be finite and not negative"):
        Box.around(torch.zeros(1, 2), eps)


def test_a_box_with_lower_above_upper_or_nan_is_refused():
    for lower in (1.0, float("nan")):
        with pytest.raises(ConfigError, match="lower <= upper in every element, and no NaN"):
            Box(torch.full((1, 2), lower), torch.zeros(1, 2))
    with pytest.raises(ConfigError, match=r"got \[1, 2\] and \[1, 3\]"):
        Box(torch.zeros(1, 2), torch.zeros(1, 3))


def test_margin_spec_gives_the_differences_to_the_other_classes_in_order():
    logits = torch.tensor([[1.0, 5.0, 2.0], [4.0, 0.0, 7.0]])
    got = torch.einsum("brk,bk->br", margin_spec(torch.tensor([1, 0]), 3), logits)
    assert got.tolist() == [[4.0, 3.0], [4.0, -3.0]]


@pytest.mark.parametrize("name", ["ibp", "expected", "crown", "dual"])
def test_a_batch_of_no_images_has_no_rows(name):
    """As where an attack left no image standing that could be certified."""
    network, labels = build("tiny", (1, 8, 8), 10, seed=0), torch.zeros(0, dtype=torch.long)
    interval = bound(name, network, Box.around(torch.rand(0, 1, 8, 8), 0.1), margin_spec(labels, 10))
    assert interval.lower.shape == interval.upper.shape == (0, 9)


def test_an_unknown_bound_is_answered_with_the_nearest_names():
    with pytest.raises(ConfigError, match="unknown bound 'expcted'; did you mean expected"):
        bound("expcted", fully_connected(2, 2), Box.around(torch.zeros(1, 2), 0.1))


def test_a_name_cannot_be_taken_twice():
    with pytest.raises(ConfigError, match=r"'ibp' is registered twice: in etb_plugin\.bounds\.ibp and in tests"):
        register_bound("ibp", sound=True, differentiable=True, takes="")(lambda network, shape: None)
