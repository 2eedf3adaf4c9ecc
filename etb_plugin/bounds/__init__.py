"""Bounds: functions from a network, a box and a spec to an interval.

Words owned here: spec, interval, bound, sound (design, section 1). Start at `types` and `registry`; `expected` is the
bound that this project exists for, and `masks` its choice of pieces. The walks that all bounds stand on are in
`etb_plugin.graph`; `linear` is what the relaxations share, `program` and `solvers` what the exact ones do. Everything
else in the folder is one bound a file.
"""

from etb_plugin.bounds.registry import (
    BoundFunction,
    PreparedBound,
    bound,
    bounds,
    get_bound,
    load_bounds,
    prepare,
    prepare_lower,
    prepare_signs,
    register_bound,
)
from etb_plugin.bounds.types import Interval, margin_spec, other_classes
from etb_plugin.graph.regions import Ball, Box, Region

__all__ = [
    "Ball",
    "BoundFunction",
    "Box",
    "Interval",
    "PreparedBound",
    "Region",
    "bound",
    "bounds",
    "get_bound",
    "load_bounds",
    "margin_spec",
    "other_classes",
    "prepare",
    "prepare_lower",
    "prepare_signs",
    "register_bound",
]

load_bounds()
