"""Evaluation: what a network is worth, measured in one way for every method.

`accuracy` counts right, attacked and certified images, `certifiers` says which are certified; `calibration` widens the
expected interval until it covers.
"""

from etb_plugin.evaluation.accuracy import Evaluation, Exam, evaluate
from etb_plugin.evaluation.certifiers import Certifier, check_certifiers, least_margins

__all__ = ["Certifier", "Evaluation", "Exam", "check_certifiers", "evaluate", "least_margins"]
