"""The method `ibp-fast`: IBP with the initialisation and the warm-up regularisers of Shi et al. 2021."""

from etb_plugin.objectives.recipe import Ramp, Recipe
from etb_plugin.objectives.registry import Method, register_method
from etb_plugin.objectives.worst_case import WorstCase

RECIPE = Recipe(
    "Shi et al. 2021 for MNIST, in shares of its 70 epochs: 1 epoch at eps 0, 19 of growth, regularisers of weight 0.5 "
    "fading with it, Adam 5e-4 cut to a fifth after 50 and 60, gradients cut at 8; eps grows linearly here",
    learning_rate=5e-4,
    decay_at=(5 / 7, 6 / 7),
    decay=0.2,
    gradient_clip=8.0,
    initialization="ibp",
    eps_ramp=Ramp(0.0, 1.0, wait=1 / 70, length=19 / 70),
    kappa=Ramp(0.0, 0.0),
    regulariser=0.5,
)

register_method(
    Method(
        "ibp-fast",
        "ibp for short runs and deep networks: its own initialisation, and regularisers while eps grows (cnn7-bn)",
        WorstCase("ibp"),
        RECIPE,
    )
)
