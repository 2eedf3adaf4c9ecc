"""All that knows auto_LiRPA: the method `expected` that we add to it, and its own bounds beside ours.

Nothing here imports auto_LiRPA before somebody asks for it: `register` waits for that. Start at `hook`; `graph` reads
auto_LiRPA's graph as ours, `bounds` registers its IBP, CROWN, ... as `crown:by=auto_LiRPA`, `compat` supplies what its
release 0.3 expects of older libraries.
"""

from etb_plugin.lirpa.arrival import register

__all__ = ["register"]
