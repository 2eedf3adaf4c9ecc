"""The papers' counts are the test."""

import pytest
import torch

from etb_plugin.bounds import Box
from etb_plugin.errors import ConfigError
from etb_plugin.graph.tracing import trace
from etb_plugin.networks import build, hidden_units, initialize_for_ibp, parameters

COUNTS = [
    ("small", 3, 8308, 470918),
    ("wk-small", 3, 6244, 214918),
    ("wk-large", 3, 62464, 2466858),
    ("wk-resnet", 3, 107496, 4214850),
    ("wk-small", 1, 4804, 166406),
    # Wong et al. print 28,064 hidden units; their own layers give 48,064, with just their number of parameters.
    ("wk-large", 1, 48064, 1974762),
]


def test_the_wide_network_has_the_size_that_the_paper_gives():
    """Gowal et al. 2019, section 4.2: 8M parameters and 1.8M hidden units, on crops of 56 x 56 and 1000 classes."""
    network = build("wide-resnet-10-10", (3, 56, 56), 1000)
    assert (hidden_units(network, (3, 56, 56)), parameters(network)) == (1_806_336, 8_068_808)


@pytest.mark.parametrize(("name", "channels", "units", "weights"), COUNTS)
def test_units_and_parameters_are_the_papers(name, channels, units, weights):
    shape = (channels, 32, 32) if channels == 3 else (1, 28, 28)
    network = build(name, shape, 10)
    assert (hidden_units(network, shape), parameters(network)) == (units, weights)


@pytest.mark.parametrize(("name", "units", "weights"), [("medium", 47e3, 1.2e6), ("large", 230e3, 17e6)])
def test_rounded_counts_are_the_papers(name, units, weights):
    network = build(name, (3, 32, 32), 10)
    assert hidden_units(network, (3, 32, 32)) == pytest.approx(units, rel=0.02)
    assert parameters(network) == pytest.approx(weights, rel=0.02)


def test_a_seed_makes_the_weights_repeatable_and_leaves_torchs_generator():
    before = torch.get_rng_state()
    first, second = (build("tiny", (1, 8, 8), 10, seed=3) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    assert torch.equal(torch.get_rng_state(), before)


def test_a_network_too_large_for_the_image_says_what_would_fit():
    with pytest.raises(ConfigError, match=r"'small' does not fit images of 8 x 8 pixels .* use tiny or mlp"):
        build("small", (1, 8, 8), 10)


def test_an_unknown_network_is_answered_with_the_nearest_names():
    with pytest.raises(ConfigError, match="unknown network 'smal'; did you mean small"):
        build("smal", (1, 28, 28), 10)


def test_a_deviation_that_is_not_positive_is_refused():
    """Bounds carry a box through the layer, which is right for an increasing map only."""
    with pytest.raises(ConfigError, match="needs positive deviations"):
        build("tiny", (1, 8, 8), 10, normalization=((0.5,), (-0.2,)))


def test_the_first_layer_normalises():
    plain = build("tiny", (3, 8, 8), 10, seed=0)
    normalised = build("tiny", (3, 8, 8), 10, seed=0, normalization=((0.4, 0.5, 0.6), (0.2, 0.3, 0.4)))
    x = torch.rand(2, 3, 8, 8)
    scaled = (x - torch.tensor([0.4, 0.5, 0.6]).view(3, 1, 1)) / torch.tensor([0.2, 0.3, 0.4]).view(3, 1, 1)
    torch.testing.assert_close(normalised(x), plain(scaled))


def test_weights_for_ibp_keep_the_width_of_intervals():
    """Shi et al. 2021: behind its initialisation the mean width stays, behind torch's it does not."""
    images = torch.rand(8, 3, 32, 32)
    growth = {}
    for kind in ("torch", "ibp"):
        network = build("cnn7", (3, 32, 32), 10, seed=0)
        last = network[-1].weight.clone()
        if kind == "ibp":
            torch.manual_seed(0)
            initialize_for_ibp(network)
        assert torch.equal(network[-1].weight, last)
        graph = trace(network, torch.Size((3, 32, 32)))
        box = Box.around(images, 1e-3)
        with torch.no_grad():
            intervals = graph.intervals(box)
        widths = [float(intervals[graph.nodes[i].inputs[0]][1].mean()) for i in graph.activations]
        growth[kind] = widths[-1] / widths[0]
    assert 0.3 < growth["ibp"] < 3
    assert growth["torch"] > 100
