"""etb_plugin: the expected tight bound beside auto_LiRPA's bounds, and one command that compares them all.

>>> from etb_plugin import Box, bound, margin_spec
>>> box = Box.around(images, eps=0.1)
>>> interval = bound("expected", network, box, margin_spec(labels, 10))

Importing the package also adds `method="expected"` to auto_LiRPA's `BoundedModule.compute_bounds`, whenever that is
imported. The rooms, from the bottom: `graph`, `networks`, `bounds`, `objectives`, `training`, `evaluation`,
`comparison`, `cli`.
"""

from etb_plugin.bounds import Ball, Box, Interval, bound, margin_spec
from etb_plugin.lirpa import register

__version__ = "0.1.0"
__all__ = ["Ball", "Box", "Interval", "__version__", "bound", "margin_spec", "register"]

register()
