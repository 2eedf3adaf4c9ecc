"""The method `crown`: full CROWN (Zhang et al. 2018) inside the loss."""

from dataclasses import replace

from etb_plugin.objectives.ibp import RECIPE
from etb_plugin.objectives.registry import Method, register_method
from etb_plugin.objectives.worst_case import WorstCase

register_method(
    Method(
        "crown",
        "full CROWN: the tightest certificate inside a loss here, and a dear one; by=auto_LiRPA has the toolkit's own",
        WorstCase("crown"),
        replace(RECIPE, micro_batch=20),
    )
)
