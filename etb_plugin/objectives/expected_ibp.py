"""The method `expected-ibp` (ours): the expected interval annealed into IBP's, so that training ends sound."""

from dataclasses import replace

from etb_plugin.objectives.annealed import Annealed
from etb_plugin.objectives.ibp import RECIPE
from etb_plugin.objectives.registry import Method, register_method

register_method(
    Method(
        "expected-ibp",
        "starts on the expected bound and ends on IBP's: ours, a certificate at the end of training only",
        Annealed("expected", {"masks": "center"}),
        replace(
            RECIPE,
            source="ours: eps and kappa as ibp (Gowal et al. 2019), the interval moving from the expected one to IBP's "
            "over the same half of the run",
            mix=RECIPE.eps_ramp,
        ),
    )
)
