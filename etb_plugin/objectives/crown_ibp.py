"""The method `crown-ibp`: CROWN over IBP's intervals, giving way to IBP (Zhang et al. 2020)."""

from dataclasses import replace

from etb_plugin.objectives.annealed import Annealed
from etb_plugin.objectives.ibp import RECIPE
from etb_plugin.objectives.registry import Method, register_method

register_method(
    Method(
        "crown-ibp",
        "CROWN over IBP's intervals while eps grows, IBP afterwards: mix=0 keeps CROWN-IBP to the end",
        Annealed("crown-ibp", fusion=True),
        replace(
            RECIPE,
            source="Zhang et al. 2020: as ibp, beta = 1 - mix from 1 to 0 while eps grows; the loss fused as by Xu et "
            "al. 2020; the shares of the run are ours",
            mix=RECIPE.eps_ramp,
        ),
    )
)
