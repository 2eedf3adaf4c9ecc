"""Our way of calling torch's optimizers: the same bits."""

import copy

import pytest
import torch

from etb_plugin.objectives import Recipe
from etb_plugin.training.optimizers import optimizer_of
from tests.conftest import fully_connected


@pytest.mark.parametrize("name", ["adam", "sgd"])
def test_steps_are_those_of_torch_also_after_a_restart(name):
    network = fully_connected(4, 6, 3)
    theirs = copy.deepcopy(network)
    recipe = Recipe("a test", optimizer=name, momentum=0.9, weight_decay=0.01)
    mine = optimizer_of(recipe, network.parameters(), 0.1)
    if name == "sgd":
        reference = torch.optim.SGD(theirs.parameters(), 0.1, 0.9, weight_decay=0.01)
    else:
        reference = torch.optim.Adam(theirs.parameters(), 0.1, weight_decay=0.01)
    for step in range(6):
        if step == 3:
            before = mine.state_dict()
            mine = optimizer_of(recipe, network.parameters(), 0.1)
            mine.load_state_dict(copy.deepcopy(before))
        x = torch.rand(5, 4)
        for one, optimizer in ((network, mine), (theirs, reference)):
            optimizer.zero_grad(set_to_none=True)
            one(x).square().sum().backward()
            optimizer.step()
        assert all(torch.equal(a, b) for a, b in zip(network.parameters(), theirs.parameters(), strict=True))
    assert mine.state_dict().keys() == reference.state_dict().keys()
