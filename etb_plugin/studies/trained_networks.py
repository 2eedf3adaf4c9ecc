"""Networks that a study trains: kept in the study's folder, and trained once."""

import hashlib
from collections.abc import Callable
from pathlib import Path

from torch import nn

from etb_plugin.data import Dataset, load
from etb_plugin.objectives import Method
from etb_plugin.results.networks import untrained
from etb_plugin.studies.registry import Parameters
from etb_plugin.training import Epoch, Settings, train

PROOFS_FIRST = ("ibp", "crown", "pgd", "bab", "exact")
"""Stages for networks trained by IBP: proofs decide most images a thousand times as fast as the attack fails."""


def dataset(parameters: Parameters) -> Dataset:
    """Return the data set that the parameters name, on the CPU."""
    return load(
        parameters["dataset"],
        data_dir=parameters["data_dir"],
        train_limit=parameters["train_limit"],
        test_limit=parameters["images"],
    )


def trained(
    method: Method,
    data: Dataset,
    parameters: Parameters,
    folder: Path,
    *,
    seed: int,
    after_epoch: Callable[[nn.Module, Epoch], None] = lambda network, epoch: None,
) -> nn.Module:
    """Return the parameters' model trained by `method`; from `folder` where it is done.

    `after_epoch` sees the network, in training mode, after each epoch that is trained now.
    """
    settings = Settings(parameters["eps_train"], parameters["epochs"], parameters.get("batch_size", 100), seed=seed)
    digest = hashlib.sha256(repr((method, settings, parameters["model"], data.digest())).encode()).hexdigest()[:8]
    network = untrained(data, parameters["model"], seed, method.pair)
    place = folder / "cells" / f"{method.name}-seed{seed}-{digest}"
    train(network, method, data, settings, folder=place, after_epoch=lambda epoch: after_epoch(network, epoch))
    return network.eval()
