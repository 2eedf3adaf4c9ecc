"""Attacks in an l_inf box, one a file. An attack proves an image not robust; it never proves one robust.

Start at `pgd`.
"""

from etb_plugin.attacks.fgsm import fgsm
from etb_plugin.attacks.pgd import LOSSES, Pgd, falsify, margin, perturb, pgd, polished, reach

__all__ = ["LOSSES", "Pgd", "falsify", "fgsm", "margin", "perturb", "pgd", "polished", "reach"]
