"""Stages of other packages: what they prove counts, a counterexample of theirs is looked at first."""

from copy import copy

import pytest
import torch

from etb_plugin.bounds import Box
from etb_plugin.errors import ConfigError
from etb_plugin.verification import Cascade, Settings, Stage, Verdict, cascade, register_stage, robustness
from tests.conftest import fully_connected


@pytest.fixture
def case(monkeypatch):
    monkeypatch.setattr(cascade, "_alone", copy(cascade._alone))
    torch.manual_seed(0)
    network, image = fully_connected(4, 8, 3).double(), torch.rand(1, 4, dtype=torch.float64)
    label = int(network(image).argmax())
    return network, image, label


def decided(case, *stages, label=None):
    network, image, right = case
    found = Cascade(network, image.shape[1:], Settings(stages, seconds=5))
    return found.decide(robustness(Box.around(image, 1e-4), right if label is None else label, 3))


def test_what_a_stage_proves_counts_and_what_it_leaves_is_open(case):
    def proves(cascade, case, deadline):
        case.proved[:] = True

    register_stage("proves", Stage(proves))
    register_stage("idles", Stage(lambda cascade, case, deadline: None))
    assert decided(case, "idles").verdict is Verdict.UNKNOWN
    found = decided(case, "pgd", "idles", "proves")
    assert (found.verdict, found.by) == (Verdict.ROBUST, "proves")
    with pytest.raises(ConfigError, match="registered twice"):
        register_stage("bab", Stage(proves))


def test_a_counterexample_is_checked_and_put_into_the_box(case):
    def claims(cascade, case, deadline):
        case.witness = case.problem.box.upper + 1e-3

    register_stage("claims", Stage(claims))
    found = decided(case, "claims")
    assert found.verdict is Verdict.UNKNOWN
    assert found.failed["claims"] == "EtbError: its counterexample is none"
    _, image, right = case
    found = decided(case, "claims", label=(right + 1) % 3)
    assert (found.verdict, found.by) == (Verdict.FALSIFIED, "claims")
    assert torch.equal(found.witness, Box.around(image, 1e-4).upper)
