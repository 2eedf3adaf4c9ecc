"""Experiments: what flags and YAML files may say, checked once, before any work starts.

Flags override the file, the file overrides the recipe (a method's own defaults). Inside, everything is a frozen record;
`Experiment.resolved` fills what was left open. `schema` lists the keys, `variant` is what stands under `methods`,
`values` are the numbers and lists, and `reading` turns files and flags into records, or into an error that names file,
line and key. What stands on torch is imported where it is needed: help, and most refusals, come without.
"""

from etb_plugin.experiment.reading import (
    Read,
    read_evaluation,
    read_experiment,
    read_keywords,
    read_mapping,
    read_verification,
    trace_experiment,
)
from etb_plugin.experiment.schema import (
    Engine,
    Evaluated,
    EvaluationSection,
    Experiment,
    Resolved,
    TrainingSection,
    Verifying,
    VerifyRequest,
    resolve_device,
)
from etb_plugin.experiment.values import eps_text, read_eps
from etb_plugin.experiment.variant import Variant, changed_text, ramp_text

__all__ = [
    "Engine",
    "Evaluated",
    "EvaluationSection",
    "Experiment",
    "Read",
    "Resolved",
    "TrainingSection",
    "Variant",
    "VerifyRequest",
    "Verifying",
    "changed_text",
    "eps_text",
    "ramp_text",
    "read_eps",
    "read_evaluation",
    "read_experiment",
    "read_keywords",
    "read_mapping",
    "read_verification",
    "resolve_device",
    "trace_experiment",
]
