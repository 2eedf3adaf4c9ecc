"""The method `crown`: full CROWN (Zhang et al. 2018) inside the loss."""

from dataclasses import replace

from etb_plugin.objectives.ibp import RECIPE
from etb_plugin.objectives.registry import Method, register_method
from etb_plugin.objectives.worst_case import WorstCase

register_method(
    Method(
        "crown",
        "full CROWN: the tightest of auto_LiRPA's here, and by far the dearest; beyond tiny networks it wants a GPU",
        WorstCase("crown"),
        replace(RECIPE, micro_batch=25),
    )
)
