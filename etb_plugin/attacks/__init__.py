"""Attacks in an l_inf box, one a file. An attack proves an image not robust; it never proves one robust.

Start at `pgd`. What `--attack` names is one file here with `@register_attack` in it.
"""

from etb_plugin.attacks.apgd import apgd_ce, apgd_targeted
from etb_plugin.attacks.autoattack import autoattack
from etb_plugin.attacks.captured import CapturedPgd
from etb_plugin.attacks.fgsm import fgsm
from etb_plugin.attacks.pgd import LOSSES, Pgd, falsify, margin, perturb, pgd, polished, reach
from etb_plugin.attacks.registry import Attack, attacks, get_attack, register_attack
from etb_plugin.attacks.square import square
from etb_plugin.registry import load_all

__all__ = [
    "LOSSES",
    "Attack",
    "CapturedPgd",
    "Pgd",
    "apgd_ce",
    "apgd_targeted",
    "attacks",
    "autoattack",
    "falsify",
    "fgsm",
    "get_attack",
    "margin",
    "perturb",
    "pgd",
    "polished",
    "reach",
    "register_attack",
    "square",
]

load_all(__name__, "attack")
