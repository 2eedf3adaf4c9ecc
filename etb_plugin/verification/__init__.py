"""Verification: what is proved robust, what is broken, and what is left unknown.

Words owned here: a *problem* is a box and the outputs that no point of it may give; a *stage* attacks, bounds or
decides it; the *cascade* puts each problem through the stages until one decides. Start at `cascade`. `branch` is
branch and bound, `exact` the mixed-integer program, `turns` a cascade of networks, `vnnlib` (of the words in `terms`)
and `competition` what the verification competition reads and writes, `posed` a property of networks that are there, as
one network, `paired` two networks that are nearly the same, `run` what happens to the test images of a data set, and
`radius` the search for each image's own radius.
"""

from etb_plugin.registry import load_others
from etb_plugin.verification.cascade import (
    RIGOROUS_STAGES,
    STAGES,
    Cascade,
    Case,
    Settings,
    Stage,
    provers,
    register_stage,
)
from etb_plugin.verification.competition import PropertyCheck
from etb_plugin.verification.problem import Problem, Unsafe, Verdict, robustness
from etb_plugin.verification.radius import RADIUS_STAGES, Radii, minimum_radii
from etb_plugin.verification.run import MISCLASSIFIED, Verification, Verified, cascade_of

__all__ = [
    "MISCLASSIFIED",
    "RADIUS_STAGES",
    "RIGOROUS_STAGES",
    "STAGES",
    "Cascade",
    "Case",
    "Problem",
    "PropertyCheck",
    "Radii",
    "Settings",
    "Stage",
    "Unsafe",
    "Verdict",
    "Verification",
    "Verified",
    "cascade_of",
    "minimum_radii",
    "provers",
    "register_stage",
    "robustness",
]

load_others(__name__, "stage")
