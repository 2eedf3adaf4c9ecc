"""Speed, as ratios within one run: what a training step costs beside a nominal one of the same network and batch.

Start at `steps`.
"""

from etb_plugin.bench.steps import SHAPES, StepCost, measure_steps, write_steps

__all__ = ["SHAPES", "StepCost", "measure_steps", "write_steps"]
