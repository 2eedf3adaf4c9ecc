"""Deadlines: asked for by every loop that can be long, and an answer, not an error, where a verifier runs into one."""

import pickle
import signal
import time

import pytest
import torch

from etb_plugin import Box, bound, margin_spec
from etb_plugin.attacks import Pgd, pgd
from etb_plugin.errors import OutOfTime, Stopped
from etb_plugin.networks import build
from etb_plugin.stopping import check_time, until
from etb_plugin.verification import Cascade, Case, Settings, Verdict, robustness


def test_the_earlier_of_two_deadlines_holds_and_none_holds_outside():
    with until(time.monotonic() - 1), until(time.monotonic() + 100), pytest.raises(OutOfTime):
        check_time()
    with until(time.monotonic() + 100):
        check_time()
    check_time()


@pytest.mark.parametrize("name", ["crown", "alpha-crown", "dual", "exact"])
def test_a_bound_stops_at_its_deadline(name):
    network, images = build("tiny", (1, 8, 8), 10, seed=0), torch.rand(2, 1, 8, 8)
    box, spec = Box.around(images, 0.05), margin_spec(torch.tensor([0, 1]), 10)
    with until(time.monotonic() - 1), pytest.raises(OutOfTime):
        bound(name, network, box, spec)


def test_an_attack_stops_at_its_deadline():
    network, images = build("tiny", (1, 8, 8), 10, seed=0), torch.rand(2, 1, 8, 8)
    labels, generator = network(images).argmax(1), torch.Generator().manual_seed(0)
    with until(time.monotonic() - 1), pytest.raises(OutOfTime):
        pgd(network, Box.around(images, 0.1), labels, Pgd(), generator)


def test_a_verifier_without_time_knows_nothing_and_says_so():
    network, image = build("tiny", (1, 8, 8), 10, seed=0), torch.rand(1, 1, 8, 8).double()
    label = int(network(image.float()).argmax())
    cascade = Cascade(network, (1, 8, 8), Settings())
    case = Case.of(robustness(Box.around(image, 0.05), label, 10))
    cascade.decide_together([case], time.monotonic() - 1)
    cascade.decide_alone(case, -1.0)
    assert case.verdict is Verdict.UNKNOWN
    assert case.by is None


def test_what_a_worker_sends_when_it_is_stopped_arrives_as_it_was():
    sent = Stopped(signal.SIGTERM)
    came = pickle.loads(pickle.dumps(sent))
    assert (str(came), came.status) == (str(sent), 143)
