"""The recipe that the methods of 2023 and later share: that of their benchmark, in shares of the run."""

from etb_plugin.attacks import Pgd
from etb_plugin.objectives.recipe import Ramp, Recipe

RECIPE = Recipe(
    "Mao et al. 2024 (CTBench) for MNIST, in shares of its 70 epochs: the radius grows over the first 20, Adam 5e-4 "
    "cut to a fifth after 50 and 60, gradients cut at 10, initialisation and regularisers (0.5) of Shi et al. 2021, "
    "L1 of 1e-6, the clean batch's statistics of batch norm, and precise ones after each epoch",
    learning_rate=5e-4,
    decay_at=(5 / 7, 6 / 7),
    decay=0.2,
    gradient_clip=10.0,
    initialization="ibp",
    eps_ramp=Ramp(0.0, 1.0, length=2 / 7, form="smooth"),
    kappa=Ramp(0.0, 0.0),
    l1=1e-6,
    regulariser=0.5,
    bn="clean",
    precise_bn=True,
)

ATTACK = Pgd(steps=8, step=0.5, losses=("cross-entropy",))
