"""Studies: one file for each figure or table of a paper, measured again here, with the paper's claim beside it.

A study is plain data and four functions (`registry.Study`): its cases, how one is measured, what the figures say about
the paper's claims, and how they are drawn. Start at `registry`; `run` keeps a study on disk and resumes it;
`random_networks` and `trained_networks` make what studies measure.
"""

from etb_plugin.registry import load_all
from etb_plugin.studies.registry import Claim, Study, get_study, studies
from etb_plugin.studies.run import run_study

__all__ = ["Claim", "Study", "get_study", "run_study", "studies"]

load_all(__name__, "study")
