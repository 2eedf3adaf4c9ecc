"""The method `expected`: training on the expected tight bound (Alsubaihi et al. 2019). Certifies nothing."""

from etb_plugin.objectives.recipe import Recipe
from etb_plugin.objectives.registry import Method, register_method
from etb_plugin.objectives.worst_case import WorstCase

register_method(
    Method(
        "expected",
        "the expected tight bound, masks from IBP: tight without any ramp, and no certificate",
        WorstCase("expected", form="additive"),
        Recipe(
            "Alsubaihi et al. 2019, section 4: eps and kappa constant. The paper searches kappa, learning rate and "
            "temperature on grids; here kappa 1, temperature 1 and the optimizer of nominal",
            decay_at=(0.7, 0.9),
        ),
    )
)
