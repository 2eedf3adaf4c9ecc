"""The networks that a clone brings along: each has a card, says what it is for, and fits its architecture."""

import json
from pathlib import Path

import pytest
import torch

from etb_plugin import networks
from etb_plugin.errors import ConfigError
from etb_plugin.experiment.reading import read_evaluation
from etb_plugin.networks.checkpoints import load_weights, read_weights
from etb_plugin.results.networks import restore

MODELS = Path(__file__).parent.parent / "compare/models"
FILES = sorted(MODELS.glob("*.safetensors"))


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_network_of_the_zoo_is_whole(file):
    assert file.stat().st_size < 2 * 2**20
    (weights,), about = read_weights(file)
    network = networks.build(about["model"], tuple(about["input_shape"]), about["classes"], seed=0)
    load_weights(network, weights, file)
    assert all(bool(weight.isfinite().all()) for weight in network.parameters())
    assert network(torch.rand(2, *about["input_shape"])).shape == (2, about["classes"])
    measured = json.loads(file.with_suffix(".json").read_text())["measured"]
    for one in measured:
        assert f" zoo:{file.stem} " in one["command"]
        assert (one["row"]["dataset"], one["row"]["model"]) == (about["dataset"], about["model"])
    assert [one["command"].split()[1] for one in measured] == ["evaluate", "verify"]


def test_a_name_that_is_not_in_the_zoo_is_refused():
    assert FILES
    with pytest.raises(ConfigError, match="unknown network of the zoo 'mnist'"):
        restore(Path("zoo:mnist"), read_evaluation({}))
