"""Objectives and methods: what a network is trained to minimise, and with which defaults.

Three famous methods are three combinations of the parts in this room:

    ibp        WorstCase("ibp", form="convex")          eps and kappa ramp up
    crown-ibp  WorstCase("crown-ibp", form="convex")    the same ramps
    expected   WorstCase("expected", {"masks": "center"}, form="additive")   nothing ramps

An *objective* is prepared for one network and gives (images, labels, point of the schedule) -> loss and its parts.
A *recipe* is plain numbers. A *method* is what `--methods` names: an objective and a recipe; one file here each,
with `register_method` in it. Start at `worst_case.py`.
"""

from etb_plugin.objectives.recipe import Ramp, Recipe, Run, Span
from etb_plugin.objectives.registry import (
    Loss,
    Losses,
    Method,
    Objective,
    Phase,
    Point,
    get_method,
    methods,
    register_method,
    single_method,
)
from etb_plugin.registry import load_all

__all__ = [
    "Loss",
    "Losses",
    "Method",
    "Objective",
    "Phase",
    "Point",
    "Ramp",
    "Recipe",
    "Run",
    "Span",
    "get_method",
    "methods",
    "register_method",
    "single_method",
]

load_all(__name__, "method")
