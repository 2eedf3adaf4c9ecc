"""What an installation is put to: the fuzz of all sound bounds, toolkits as referees, known figures, resuming.

Start at `examine`.
"""

from etb_plugin.selftest.checks import Checked, examine

__all__ = ["Checked", "examine"]
