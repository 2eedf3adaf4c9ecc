"""Ranges seen at many points: held against the networks themselves and the bound `sampled`."""

import itertools

import pytest
import torch

from etb_plugin.bounds import Box, bound
from etb_plugin.studies.random_networks import gaussian_box, gaussian_network
from etb_plugin.studies.seen_ranges import merged, seen_ranges


@pytest.mark.parametrize("widths", [[4, 30, 2], [5, 12, 12, 12, 12, 3], [3, 2, 2, 2, 1], [6, 2]])
@pytest.mark.parametrize("eps", [0.0, 0.1, 1.0])
def test_merged_networks_are_the_networks_on_their_boxes(widths, eps):
    generator = torch.Generator().manual_seed(3)
    kept = 0
    for _ in range(10):
        network, box = gaussian_network(widths, generator), gaussian_box((widths[0],), eps, generator)
        small = merged(network, box)
        points = 2 * torch.rand(200, widths[0], generator=generator, dtype=torch.float64) - 1
        expected = network(box.center + box.radius * points)
        torch.testing.assert_close(small.constant + small.moved(points.T).T, expected, atol=1e-12, rtol=0)
        kept += sum(len(weight) for weight, _ in small.units)
    hidden = 10 * sum(widths[1:-1])
    assert kept == 0 if eps == 0 else kept < hidden or not hidden


def test_what_is_seen_is_the_truth_at_uniform_points_and_all_corners():
    """On few inputs: no corner of the network itself lies outside, no end lies beyond IBP's, and ends that corners
    reach are theirs."""
    generator = torch.Generator().manual_seed(5)
    networks = [gaussian_network([6, 20, 20, 2], generator) for _ in range(5)]
    boxes = [gaussian_box((6,), 0.3, generator) for _ in networks]
    corners = torch.tensor(list(itertools.product((-1.0, 1.0), repeat=6)), dtype=torch.float64)
    found = seen_ranges([merged(*pair) for pair in zip(networks, boxes, strict=True)], samples=5000)
    for network, box, seen in zip(networks, boxes, found, strict=True):
        values = network(box.center + box.radius * corners)
        assert (values.amin(0) >= seen.lower[0] - 1e-6).all()
        assert (values.amax(0) <= seen.upper[0] + 1e-6).all()
        other = bound("sampled", network, box, samples=5000, corners=6)
        torch.testing.assert_close(torch.cat([seen.lower, seen.upper]), torch.cat([other.lower, other.upper]), **_NEAR)
        true = bound("exact", network, box)
        assert (seen.lower >= true.lower - 1e-6).all()
        assert (seen.upper <= true.upper + 1e-6).all()


_NEAR = {"atol": 0.02, "rtol": 0.0}
"""Other points, other ends: by less than this where the corners are the same."""


def test_more_inputs_than_corners_can_be_counted():
    generator = torch.Generator().manual_seed(1)
    network, box = gaussian_network([30, 1], generator), gaussian_box((30,), 0.5, generator)
    (few,) = seen_ranges([merged(network, box)], samples=100)
    (many,) = seen_ranges([merged(network, box)], samples=20_000)
    true = bound("ibp", network, box)
    assert true.lower <= many.lower < few.lower < few.upper < many.upper <= true.upper


def test_narrow_ranges_are_seen_as_exactly_as_wide_ones():
    """What moves is apart from what does not: a box of 1e-6 around a large output keeps its digits in float32."""
    generator = torch.Generator().manual_seed(2)
    network = gaussian_network([4, 10, 1], generator)
    network[2].bias.data += 1000
    box = Box.around(torch.randn((1, 4), generator=generator, dtype=torch.float64), 1e-6, clip=None)
    (seen,) = seen_ranges([merged(network, box)], samples=10)
    true = bound("crown", network, box)  # exact: no unit changes sides on so small a box
    assert seen.width.item() == pytest.approx(true.width.item(), rel=1e-3)
