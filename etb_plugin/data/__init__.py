"""Data: whole data sets on the device, and batches cut from them.

Start at `sets.load`. A data set that needs a reader of its own is one file here, with `register_source` in it.
"""

from etb_plugin.data.own import register_own_data
from etb_plugin.data.sets import (
    Arrays,
    Batches,
    Dataset,
    Source,
    Split,
    beyond,
    describe,
    load,
    middle,
    pixels,
    register_source,
    sources,
)
from etb_plugin.registry import load_all

__all__ = [
    "Arrays",
    "Batches",
    "Dataset",
    "Source",
    "Split",
    "beyond",
    "describe",
    "load",
    "middle",
    "pixels",
    "register_own_data",
    "register_source",
    "sources",
]

load_all(__name__, "dataset")
