"""The method `ibp`: interval bound propagation training (Gowal et al. 2019)."""

from etb_plugin.objectives.recipe import Ramp, Recipe
from etb_plugin.objectives.registry import Method, register_method
from etb_plugin.objectives.worst_case import WorstCase

RECIPE = Recipe(
    "Gowal et al. 2019, appendix A: Adam 1e-3, kappa from 1 to 1/2 while eps grows from 0; the shares are ours: the "
    "paper's 2K + 10K of 60K steps are too few where a run has hundreds of steps",
    decay_at=(0.8, 0.9),
    eps_ramp=Ramp(0.0, 1.0, wait=0.05, length=0.5),
    kappa=Ramp(1.0, 0.5, wait=0.05, length=0.5),
)
"""What training with any bound that grows with depth needs; `crown-ibp` and `crown` share it."""

register_method(
    Method("ibp", "interval bound propagation: cheap, and certifies itself at low cost", WorstCase("ibp"), RECIPE)
)
