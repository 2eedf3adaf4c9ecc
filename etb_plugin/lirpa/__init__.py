"""All that knows auto_LiRPA: the method `expected` that we add to it, and its own bounds beside ours.

Nothing here imports auto_LiRPA before somebody asks for it. Start at `hook`; `graph` reads auto_LiRPA's graph as ours,
`bounds` registers its IBP, CROWN, ... as `crown:by=auto_LiRPA`, `compat` supplies what its release 0.3 expects of older
libraries.
"""

from etb_plugin.lirpa import bounds  # registers
from etb_plugin.lirpa.hook import register

__all__ = ["bounds", "register"]
