"""Ramps, spans, and methods with changed numbers."""

import pytest

from etb_plugin.errors import ConfigError
from etb_plugin.objectives import Ramp, Run, get_method

RUN = Run(epochs=10, batches=10)


@pytest.mark.parametrize(
    ("ramp", "values"),
    [
        (Ramp(1.0, 1.0), {0: 1.0, 50: 1.0}),
        (Ramp(0.0, 1.0, wait=0.2, length=0.4), {0: 0.0, 20: 0.0, 30: 0.25, 40: 0.5, 60: 1.0, 90: 1.0}),
        (Ramp(0.0, 1.0, wait="20 steps", length="4 epochs"), {20: 0.0, 30: 0.25, 40: 0.5, 60: 1.0, 90: 1.0}),
        (Ramp(1.0, 0.5, length=0.5), {0: 1.0, 25: 0.75, 50: 0.5}),
        (Ramp(0.0, 1.0, wait="1 epoch"), {9: 0.0, 10: 1.0}),
    ],
)
def test_a_ramp_waits_moves_and_stays(ramp, values):
    for step, value in values.items():
        assert ramp.at(step, RUN) == pytest.approx(value)
        assert (ramp.at(step, RUN) == ramp.end) == (step / 100 >= ramp.settled_at(RUN) or ramp.start == ramp.end)


@pytest.mark.parametrize("shares", [{"wait": -0.1}, {"length": 1.2}, {"wait": 0.6, "length": 0.6}])
def test_shares_beyond_the_run_are_refused(shares):
    with pytest.raises(ConfigError, match="within the shares 0 to 1"):
        Ramp(0.0, 1.0, **shares)


def test_changes_reach_recipe_objective_and_bound():
    changes = {
        "kappa": 5,
        "learning_rate": "1e-4",
        "decay_at": ["10 epochs", 0.5],
        "center": "network",
        "relative": True,
    }
    method = get_method("expected").changed(changes)
    assert (method.recipe.kappa, method.recipe.learning_rate) == (Ramp(5, 5), 1e-4)
    assert method.recipe.decay_at == ("10 epochs", 0.5)
    assert method.objective.options == {"masks": "center", "center": "network"}
    assert method.objective.relative
    assert get_method("expected").recipe.kappa == Ramp(1.0, 1.0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kapa": 1}, "unknown key of method 'ibp': 'kapa'; did you mean kappa"),
        ({"masks": "ibp"}, "unknown key of method 'ibp': 'masks'"),
        ({"bound": "crown"}, "unknown key of method 'ibp': 'bound'"),
        ({"kappa": "much"}, "kappa: 'much' does not do"),
        ({"kappa": {"start": 1, "end": 0, "steps": 5}}, "kappa: .* unexpected keyword"),
        ({"kappa": {"start": 1, "end": 0, "wait": "2 weeks"}}, "'2 weeks' is no length of training; write 2000 steps"),
        ({"optimizer": "lamb"}, "optimizer: 'lamb' does not do: input should be 'adam' or 'sgd'"),
    ],
)
def test_changes_that_cannot_be_meant_are_refused_by_key(changes, message):
    with pytest.raises(ConfigError, match=message):
        get_method("ibp").changed(changes)
