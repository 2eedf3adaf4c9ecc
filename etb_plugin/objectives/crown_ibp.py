"""The method `crown-ibp`: CROWN for the output, intervals for the layers before (Zhang et al. 2020)."""

from etb_plugin.objectives.ibp import RECIPE
from etb_plugin.objectives.registry import Method, register_method
from etb_plugin.objectives.worst_case import WorstCase

register_method(
    Method(
        "crown-ibp",
        "CROWN over IBP's intervals: tighter than ibp, several times its cost",
        WorstCase("crown-ibp"),
        RECIPE,
    )
)
