"""Recurrent layers: what is traced is what torch computes, wherever the batch is, and what bounds say of it is true."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from etb_plugin import Box, bound
from etb_plugin.errors import UnsupportedLayer
from etb_plugin.graph.recurrent import recurrence
from etb_plugin.graph.tracing import trace

KINDS = {
    "rnn": lambda **o: nn.RNN(3, 4, **o),
    "rnn of relu": lambda **o: nn.RNN(3, 4, nonlinearity="relu", **o),
    "lstm": lambda **o: nn.LSTM(3, 4, **o),
    "gru": lambda **o: nn.GRU(3, 4, **o),
}
OPTIONS = [
    {},
    {"bias": False},
    {"num_layers": 2, "bidirectional": True},
    {"batch_first": False},
    {"batch_first": False, "bidirectional": True},
]


class Sequence(nn.Module):
    def __init__(self, layer, read):
        super().__init__()
        self.layer, self.read = layer, read

    def forward(self, x):
        return self.read(self.layer(x if self.layer.batch_first else x.permute(1, 0, 2)))


def hidden(states):
    return states[0] if isinstance(states, tuple) else states


READ = {
    "outputs": lambda found: found[0].flatten(1),
    "outputs, time first": lambda found: found[0].transpose(0, 1).flatten(1),
    "last output": lambda found: found[0][:, -1],
    "last output, time first": lambda found: found[0][-1],
    "time first, through others": lambda found: F.dropout(torch.relu(found[0]).tanh(), training=False)[-1],
    "last state": lambda found: hidden(found[1])[-1],
    "last states": lambda found: torch.cat((hidden(found[1])[-2], hidden(found[1])[-1]), dim=1),
    "states in order": lambda found: hidden(found[1]).permute(1, 2, 0).reshape(-1, 8),
    "the only state": lambda found: hidden(found[1]).squeeze(0),
    "cells": lambda found: found[1][1].transpose(0, 1).flatten(1),
}


def fits(kind, options, read):
    several = options.get("num_layers", 1) * (1 + options.get("bidirectional", False))
    if read.startswith(("outputs", "last output", "time first")):
        if read.startswith("time first"):
            return not options.get("batch_first", True)
        return read.endswith("time first") != options.get("batch_first", True)
    if read in ("last states", "states in order"):
        return several == 2
    return {"the only state": several == 1, "cells": kind == "lstm"}.get(read, True)


CASES = [(k, o, r) for k in KINDS for o in OPTIONS for r in READ if fits(k, o, r)]


@pytest.mark.parametrize(("kind", "options", "read"), CASES)
@pytest.mark.parametrize("steps", [1, 2, 4])
def test_what_is_traced_is_what_torch_computes(kind, options, read, steps):
    """Two steps are as many as the examples that the network is traced with."""
    torch.manual_seed(0)
    network = Sequence(KINDS[kind](**{"batch_first": True} | options), READ[read]).double().eval()
    x = torch.randn(3, steps, 3, dtype=torch.float64)
    graph = trace(network, x.shape[1:])
    torch.testing.assert_close(graph.values(x)[-1], network(x), atol=1e-12, rtol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_reached_lies_within_and_crown_is_near_it(kind):
    torch.manual_seed(2)
    network = Sequence(KINDS[kind](batch_first=True), READ["last output"]).double().eval()
    x = torch.randn(1, 4, 3, dtype=torch.float64)
    box = Box.around(x, 0.1, clip=None)
    signs = torch.randint(0, 3, (3000, *x.shape[1:])).double() - 1
    values = network(x + 0.1 * signs)
    widths = {}
    for method in ("ibp", "crown-ibp", "crown"):
        found = bound(method, network, box)
        assert (found.lower[0] <= values.amin(0)).all(), method
        assert (found.upper[0] >= values.amax(0)).all(), method
        widths[method] = found.width.sum().item()
    assert widths["crown"] < widths["crown-ibp"] < widths["ibp"]
    assert widths["crown"] < 1.3 * (values.amax(0) - values.amin(0)).sum().item()


@pytest.mark.parametrize("kind", KINDS)
def test_bounds_at_a_point_are_the_point_and_follow_training(kind):
    network = Sequence(KINDS[kind](batch_first=True), READ["last output"]).double().eval()
    x = torch.randn(2, 4, 3, dtype=torch.float64)
    for _ in range(2):
        for method, options in (("ibp", {}), ("crown", {}), ("expected", {"masks": "center"})):
            found = bound(method, network, Box.around(x, 0.0, clip=None), **options)
            torch.testing.assert_close(found.lower, network(x), atol=1e-9, rtol=0)
        bound("ibp", network, Box.around(x, 0.1, clip=None)).width.sum().backward()
        for parameter in network.parameters():
            assert parameter.grad.abs().sum() > 0
            parameter.data -= 0.1 * parameter.grad
            parameter.grad = None


@pytest.mark.parametrize("kind", ["tanh", "relu", "lstm", "gru"])
@pytest.mark.parametrize("backwards", [False, True])
def test_a_recurrence_is_torchs_layer(kind, backwards):
    made = {"tanh": KINDS["rnn"], "relu": KINDS["rnn of relu"]}.get(kind) or KINDS[kind]
    layer = made(batch_first=True).double()
    x = torch.randn(2, 5, 3, dtype=torch.float64)
    want, states = layer(x.flip(1) if backwards else x)
    found = recurrence(x, *layer.parameters(), kind, backwards)
    torch.testing.assert_close(found.flip(1) if backwards else found, want)
    if kind == "lstm":
        cells = recurrence(x, *layer.parameters(), kind, backwards, cells=True)
        torch.testing.assert_close(cells[:, 0 if backwards else -1], states[1][0])


@pytest.mark.parametrize(
    ("layer", "read", "words"),
    [
        (nn.LSTM(3, 4, proj_size=2, batch_first=True), READ["last output"], "LSTM is taken .* without proj_size"),
        (nn.LSTM(3, 4, batch_first=True), lambda found: found[0].sum((0, 1)), "mixes the batch"),
        (nn.RNN(3, 4), lambda found: found[0].flatten(1), "mixes the batch"),
        (nn.RNN(3, 4), lambda found: found[0][-1].transpose(0, 1), "the network must return one tensor of logits"),
        (nn.RNN(3, 4), lambda found: found[0].transpose(1, 2)[0], "mixes the batch"),
    ],
)
def test_what_is_not_taken_is_refused_in_a_line(layer, read, words):
    with pytest.raises(UnsupportedLayer, match=words) as refused:
        bound("ibp", Sequence(layer, read).eval(), Box.around(torch.rand(2, 5, 3), 0.1))
    assert "\n" not in str(refused.value)


def test_what_is_done_with_states_whose_batch_is_behind_is_taken():
    once, twice = (Sequence(nn.RNN(3, 4), read).eval() for read in (lambda f: f[0][-1], lambda f: (f[0] + f[0])[-1]))
    twice.load_state_dict(once.state_dict())
    box = Box.around(torch.rand(2, 5, 3), 0.1)
    torch.testing.assert_close(bound("crown", twice, box).upper, 2 * bound("crown", once, box).upper)


class Begun(nn.Module):
    """States of zeros as tutorials write them."""

    def __init__(self, kind, begun):
        super().__init__()
        self.layer, self.begun = getattr(nn, kind)(3, 4, 2, batch_first=True), begun

    def forward(self, x):
        return self.layer(x, self.begun(x))[0][:, -1]


@pytest.mark.parametrize(
    ("kind", "begun"),
    [
        ("GRU", lambda x: torch.zeros(2, x.size(0), 4).to(x.device)),
        ("RNN", lambda x: torch.zeros(2, x.shape[0], 4, device=x.device).requires_grad_().detach()),
        ("LSTM", lambda x: (x.new_zeros(2, len(x), 4), torch.zeros(2, len(x), 4, dtype=x.dtype))),
    ],
)
def test_states_of_zeros_may_be_given(kind, begun):
    given, left_out = Begun(kind, begun).eval(), Begun(kind, lambda x: None).eval()
    left_out.load_state_dict(given.state_dict())
    box = Box.around(torch.rand(2, 5, 3), 0.1)
    torch.testing.assert_close(bound("ibp", given, box).lower, bound("ibp", left_out, box).lower)


def test_states_that_are_given_are_refused():
    class Given(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.GRU(3, 4, batch_first=True)

        def forward(self, x):
            return self.layer(x, x[:, :1].transpose(0, 1))[0][:, -1]

    with pytest.raises(UnsupportedLayer, match="GRU is taken from states of zeros"):
        bound("ibp", Given().eval(), Box.around(torch.rand(2, 5, 3), 0.1))
