"""Evaluation: what a network is worth, measured in one way for every method.

`accuracy` counts right, attacked and certified images; `calibration` widens the expected interval until it covers.
"""

from etb_plugin.evaluation.accuracy import Evaluation, Exam, check_certifiers, evaluate, prepare_certifier

__all__ = ["Evaluation", "Exam", "check_certifiers", "evaluate", "prepare_certifier"]
