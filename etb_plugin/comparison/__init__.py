"""Comparisons: an experiment's cells, the engines that run them, and their results.

`cells` says what there is to do, `work` does one piece of it, `engines` decide where, `journal` is what other processes
see of it, `run` puts the results together, and `status` says how far they are. `reevaluation` puts networks from disk
to the same exam.
"""

from etb_plugin.comparison.cells import Cell, Entry, Task
from etb_plugin.comparison.journal import Journal, Overview, Watch, Word
from etb_plugin.comparison.reevaluation import Reevaluation
from etb_plugin.comparison.run import Comparison
from etb_plugin.comparison.status import Planned, overview, planned
from etb_plugin.comparison.work import Workshop

__all__ = [
    "Cell",
    "Comparison",
    "Entry",
    "Journal",
    "Overview",
    "Planned",
    "Reevaluation",
    "Task",
    "Watch",
    "Word",
    "Workshop",
    "overview",
    "planned",
]
