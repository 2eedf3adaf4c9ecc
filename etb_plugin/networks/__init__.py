"""Networks: the architectures of the papers, by name, and the layers they need beyond torch's.

Start at `build`. A new architecture is one file here with `@register_network` in it. Normalisation is the
network's first layer, so everything outside counts in pixels.
"""

from etb_plugin.networks.cascade import NetworkCascade
from etb_plugin.networks.initialization import initialize_for_ibp
from etb_plugin.networks.layers import Normalize, Residual, split_normalization
from etb_plugin.networks.own import register_own
from etb_plugin.networks.pair import Pair, members
from etb_plugin.networks.registry import (
    build,
    check_kind,
    check_network,
    classes_of,
    hidden_units,
    networks,
    parameters,
    register_network,
)
from etb_plugin.networks.softmax import before_softmax, bounded_before_logarithm
from etb_plugin.networks.statistics import (
    clean_statistics,
    evaluating,
    measure_statistics,
    normalisations,
    whole_batch_statistics,
)
from etb_plugin.registry import load_all

__all__ = [
    "NetworkCascade",
    "Normalize",
    "Pair",
    "Residual",
    "before_softmax",
    "bounded_before_logarithm",
    "build",
    "check_kind",
    "check_network",
    "classes_of",
    "clean_statistics",
    "evaluating",
    "hidden_units",
    "initialize_for_ibp",
    "measure_statistics",
    "members",
    "networks",
    "normalisations",
    "parameters",
    "register_network",
    "register_own",
    "split_normalization",
    "whole_batch_statistics",
]

load_all(__name__, "network")
