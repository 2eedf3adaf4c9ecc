"""What a training will cost, before it begins."""

import copy

import pytest
import torch

from etb_plugin import data
from etb_plugin.comparison import Comparison
from etb_plugin.errors import ConfigError
from etb_plugin.experiment import Experiment
from etb_plugin.networks import build
from etb_plugin.objectives import get_method
from etb_plugin.training import Estimate, Settings, estimate, schedule_of, train
from etb_plugin.training import estimates as module
from etb_plugin.training.capture import CapturedStep


@pytest.fixture(scope="module")
def digits():
    return data.load("digits", train_limit=120)


def test_what_is_left_of_each_phase_is_added_up():
    cost = Estimate((0, 10, 30), (1.0, 5.0, 2.0), 40, 0.0)
    assert cost.seconds == 10 * 1 + 20 * 5 + 10 * 2
    assert [cost.left(step) for step in (5, 10, 29, 35, 40)] == [125, 120, 25, 10, 0]


@pytest.mark.parametrize(("name", "phases"), [("nominal", 1), ("ibp", 2), ("crown-ibp", 3), ("expected", 1)])
def test_a_step_is_taken_at_the_full_radius_in_each_phase_and_changes_nothing(digits, name, phases, monkeypatch):
    method, settings = get_method(name), Settings(0.1, 20, batch_size=40)
    network = build("mlp-40x2", digits.input_shape, digits.classes)
    before, state = copy.deepcopy(network.state_dict()), torch.get_rng_state()
    taken = []
    monkeypatch.setattr(module, "timed", lambda work, device: taken.append(work.args) or work() or 0.1)
    found = estimate(network, method, digits, schedule_of(method, digits, settings), 40)
    assert len(found.begins) == phases
    assert found.steps == 20 * 3
    assert {point.eps for point, _ in taken} <= {0.0, 0.1}
    assert max(size for _, size in taken) == 40
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(one, before[key]) for key, one in network.state_dict().items())


def test_where_steps_are_replayed_those_are_measured(digits, monkeypatch):
    method, settings, replayed = get_method("ibp"), Settings(0.1, 20, batch_size=40), []

    class Again:
        def warm(self, work):
            work()

        def record(self, work):
            return lambda: replayed.append(work())

    monkeypatch.setattr(
        module,
        "as_taken",
        lambda step, size, capture: CapturedStep(step, size, Again(), pytest.fail) if capture else step,
    )
    network = build("mlp-40x2", digits.input_shape, digits.classes)
    for capture in (True, False):
        estimate(network, method, digits, schedule_of(method, digits, settings), 40, capture)
        assert (len(replayed) >= 2 * 2) == capture  # phases, and steps of each
        replayed.clear()


def test_a_dear_step_is_reckoned_from_parts_of_the_batch(monkeypatch):
    """Seconds 0.2 + 0.1 a image: 2 and 10 images are enough to know what 100 take."""
    sizes = []
    monkeypatch.setattr(module, "timed", lambda work, device: sizes.append(*work.args) or 0.2 + 0.1 * sizes[-1])
    seconds, _ = module._measured(lambda size: None, 100, torch.device("cpu"))
    assert seconds == pytest.approx(0.2 + 0.1 * 100)
    assert set(sizes) == {2, 10}


def test_the_time_left_is_that_of_the_schedule_still_to_come(digits):
    method, settings = get_method("ibp"), Settings(0.1, 4, batch_size=40)
    left = {}
    for name, cost in (("pace", None), ("phases", Estimate((0, 3), (1.0, 100.0), 12, 0.0))):
        seen = []
        network = build("mlp-40x2", digits.input_shape, digits.classes)
        train(network, method, digits, settings, watch=seen.append, cost=cost)
        first = next(progress for progress in seen if progress.step == 3)
        left[name] = first.seconds_left * first.images_per_second  # in images at this epoch's pace
    assert left["pace"] == pytest.approx(360)
    assert left["phases"] == pytest.approx(36_000)


def test_the_cheapest_come_first_and_what_does_not_fit_is_refused(tmp_path, monkeypatch):
    given = {"dataset": "digits", "model": "mlp-40x2", "methods": ["crown", "expected", "nominal"]}
    given |= {"seed": [0, 1], "device": "cpu"}
    small = {"training": {"epochs": 1, "train_limit": 100}, "evaluation": {"test_limit": 5, "pgd_steps": 1}}
    comparison = Comparison(Experiment.model_validate(given | small | {"out": str(tmp_path / "run")}))
    comparison.estimate()
    assert not (tmp_path / "run").exists()
    costs = comparison.workshop.estimates
    assert len(costs) == 6
    done = []

    class Quiet:
        def __getattr__(self, name):
            return lambda *arguments: done.append(arguments[0]) if name == "finished" else None

    comparison.run(Quiet())
    assert done[:2] == ["nominal, seed 0", "nominal, seed 1"]
    ordered = [costs[next(e.cells[0].id for e in comparison.entries if e.name == name)].seconds for name in done]
    assert ordered == sorted(ordered)
    assert Comparison(comparison.experiment).workshop.estimates == costs
    monkeypatch.setattr("etb_plugin.comparison.estimates.machine_memory", lambda: 2**20)
    again = Comparison(Experiment.model_validate(given | small | {"out": str(tmp_path / "other")}))
    with pytest.raises(ConfigError, match=r"crown on mlp-40x2 needs about \d+ GiB a step.*--methods crown:micro_batch"):
        again.estimate()
