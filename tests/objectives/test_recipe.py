"""Ramps."""

import pytest

from etb_plugin.errors import ConfigError
from etb_plugin.objectives import Ramp


@pytest.mark.parametrize(
    ("ramp", "values"),
    [
        (Ramp(1.0, 1.0), {0.0: 1.0, 0.5: 1.0}),
        (Ramp(0.0, 1.0, wait=0.2, length=0.4), {0.0: 0.0, 0.2: 0.0, 0.3: 0.25, 0.4: 0.5, 0.6: 1.0, 0.9: 1.0}),
        (Ramp(1.0, 0.5, length=0.5), {0.0: 1.0, 0.25: 0.75, 0.5: 0.5}),
        (Ramp(0.0, 1.0, wait=0.5), {0.49: 0.0, 0.5: 1.0}),
    ],
)
def test_a_ramp_waits_moves_and_stays(ramp, values):
    for progress, value in values.items():
        assert ramp.at(progress) == pytest.approx(value)
        assert ramp.settled(progress) == (progress >= ramp.wait + ramp.length)


@pytest.mark.parametrize("shares", [{"wait": -0.1}, {"length": 1.2}, {"wait": 0.6, "length": 0.6}])
def test_shares_beyond_the_run_are_refused(shares):
    with pytest.raises(ConfigError, match="within the shares 0 to 1"):
        Ramp(0.0, 1.0, **shares)
