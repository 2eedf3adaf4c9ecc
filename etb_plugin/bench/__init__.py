"""Speed, as ratios within one run: training steps and epochs beside nominal ones, bounds beside a forward pass, and
attacks that drop what is broken.

Start at `steps`.
"""

from etb_plugin.bench.bounds import BoundCost, measure_bounds
from etb_plugin.bench.epochs import EpochCost, measure_epochs
from etb_plugin.bench.evaluation import AttackCost, measure_attacks
from etb_plugin.bench.steps import SHAPES, StepCost, measure_steps

__all__ = [
    "SHAPES",
    "AttackCost",
    "BoundCost",
    "EpochCost",
    "StepCost",
    "measure_attacks",
    "measure_bounds",
    "measure_epochs",
    "measure_steps",
]
