"""Attacks in an l_inf box, one a file. An attack proves an image not robust; it never proves one robust.

Start at `pgd`.
"""

from etb_plugin.attacks.apgd import apgd_ce, apgd_targeted
from etb_plugin.attacks.autoattack import autoattack
from etb_plugin.attacks.captured import CapturedPgd
from etb_plugin.attacks.fgsm import fgsm
from etb_plugin.attacks.pgd import LOSSES, Pgd, falsify, margin, perturb, pgd, polished, reach
from etb_plugin.attacks.square import square

__all__ = [
    "LOSSES",
    "CapturedPgd",
    "Pgd",
    "apgd_ce",
    "apgd_targeted",
    "autoattack",
    "falsify",
    "fgsm",
    "margin",
    "perturb",
    "pgd",
    "polished",
    "reach",
    "square",
]
