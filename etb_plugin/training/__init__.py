"""Training: one loop for every method, its schedule, what a step costs, and the state that a run resumes from.

Start at `loop.train`. Everything that differs between methods is in the objective and the recipe; everything that
differs between runs is in `Settings`.
"""

from etb_plugin.training.estimates import Estimate, estimate
from etb_plugin.training.loop import (
    Epoch,
    Progress,
    Settings,
    Training,
    check_training,
    read_metrics,
    schedule_of,
    train,
)
from etb_plugin.training.own_loop import TrainingLoss, check_radius, objective
from etb_plugin.training.schedule import last_point
from etb_plugin.training.team import Team, joined

__all__ = [
    "Epoch",
    "Estimate",
    "Progress",
    "Settings",
    "Team",
    "Training",
    "TrainingLoss",
    "check_radius",
    "check_training",
    "estimate",
    "joined",
    "last_point",
    "objective",
    "read_metrics",
    "schedule_of",
    "train",
]
