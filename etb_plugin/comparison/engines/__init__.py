"""Engines: what runs the tasks of a comparison. One file each, with its registration in it.

`local` runs them here, one after the other or in several processes; `ray` on a cluster; `print` writes a shell line for
each. Whatever the engine, a task is done by `Workshop.perform`, and its figures lie in the run folder.
"""

from etb_plugin.comparison.engines.registry import EngineRun, Finished, engine_of, engines, register_engine
from etb_plugin.registry import load_files

__all__ = ["EngineRun", "Finished", "engine_of", "engines", "register_engine"]

load_files(__name__)
