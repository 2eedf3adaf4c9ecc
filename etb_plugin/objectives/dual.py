"""The methods `dual` and `dual-projected`: Wong and Kolter's dual bound inside the loss."""

from etb_plugin.objectives.recipe import Ramp, Recipe
from etb_plugin.objectives.registry import Method, register_method
from etb_plugin.objectives.worst_case import WorstCase

RECIPE = Recipe(
    "Wong and Kolter 2018, Wong et al. 2018: the worst-case loss alone, Adam 1e-3, eps from 0.01 / 0.1 of the "
    "final one; there it grows over 20 of 100 epochs on MNIST, here over half of the run",
    eps_ramp=Ramp(0.1, 1.0, length=0.5),
    kappa=Ramp(0.0, 0.0),
    decay_at=(0.8, 0.9),
    micro_batch=20,
)

register_method(
    Method(
        "dual",
        "Wong and Kolter's exact dual: a certificate inside the loss, some 150 times a nominal step",
        WorstCase("dual"),
        RECIPE,
    )
)
register_method(
    Method(
        "dual-projected",
        "the dual with 50 random projections: some 70 times a nominal step; its estimate is no certificate",
        WorstCase("dual", {"projections": 50}),
        RECIPE,
    )
)
