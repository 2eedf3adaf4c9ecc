"""etb_plugin: the expected tight bound beside auto_LiRPA's bounds, and one command that compares them all.

>>> from etb_plugin import Box, bound, margin_spec
>>> box = Box.around(images, eps=0.1)
>>> interval = bound("expected", network, box, margin_spec(labels, 10))
>>> train(network, (images, labels), method="mtl-expected", eps=0.1, epochs=20)
>>> evaluate(network, (images, labels), eps=0.1, certify=["crown"])
>>> verify(network, images[0], 7, eps=0.1).verdict
>>> compare(dataset="digits", methods=["ibp", "expected"])
>>> loss = objective("ibp", network, (1, 28, 28), 10, eps=0.1, epochs=20, batches=len(loader))

Importing the package also adds `method="expected"` to auto_LiRPA's `BoundedModule.compute_bounds`, whenever that is
imported. The rooms, from the bottom: `graph`, `networks`, `bounds`, `objectives`, `training`, `evaluation`,
`comparison`, `cli`; `api` is what is shown here.
"""

import importlib
from typing import TYPE_CHECKING, Any

from etb_plugin.lirpa import register
from etb_plugin.registry import announce

if TYPE_CHECKING:
    from etb_plugin.api import compare, evaluate, train, verify
    from etb_plugin.bounds import Ball, Box, Interval, bound, margin_spec
    from etb_plugin.training import objective

__version__ = "0.2.0"
__all__ = [
    "Ball",
    "Box",
    "Interval",
    "__version__",
    "bound",
    "compare",
    "evaluate",
    "margin_spec",
    "objective",
    "register",
    "train",
    "verify",
]

_HOMES = {"compare": "api", "evaluate": "api", "objective": "training", "train": "api", "verify": "api"}
"""Where a name is from, if not from `bounds`."""

announce("etb_plugin.bounds", "etb_plugin.lirpa.bounds")
register()


def __getattr__(name: str) -> Any:
    """Import torch, and what stands on it, once something of it is asked for: `etb --help` needs none of that."""
    if name not in __all__:
        raise AttributeError(f"module 'etb_plugin' has no attribute {name!r}")
    return getattr(importlib.import_module(f"etb_plugin.{_HOMES.get(name, 'bounds')}"), name)
