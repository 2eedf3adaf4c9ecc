"""Epochs of CTRAIN, in an environment of its own: called by `compare/epochs.py`, which says how to make one.

    python ctrain_epochs.py ibp|crown-ibp DATA.npz EPS EPOCHS RAMP THREADS

Prints one line of JSON: the seconds of each epoch but the first, from one pass over the loader to the next. The network
is `small`; the radius grows over the first RAMP epochs.
"""

import json
import sys
import time
from collections.abc import Iterator
from typing import Any

import ctrain_runs  # noqa: F401  (before CTRAIN)
import numpy as np
import torch
from CTRAIN.model_wrappers.crown_ibp_model_wrapper import CrownIBPModelWrapper
from CTRAIN.model_wrappers.shi_ibp_model_wrapper import ShiIBPModelWrapper
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

WRAPPERS = {"ibp": ShiIBPModelWrapper, "crown-ibp": CrownIBPModelWrapper}


class Loader(DataLoader):
    """A loader with what CTRAIN reads off one, that notes when each pass begins."""

    normalised, mean, std = False, torch.zeros(1), torch.ones(1)
    min, max = torch.zeros(1, 1, 1, 1), torch.ones(1, 1, 1, 1)

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.begun = []

    def __iter__(self) -> Iterator[Any]:
        self.begun.append(time.perf_counter())
        return super().__iter__()


def small() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 16, 4, 2), nn.ReLU(), nn.Conv2d(16, 32, 4, 1), nn.ReLU(), nn.Flatten(),
        nn.Linear(32 * 10 * 10, 100), nn.ReLU(), nn.Linear(100, 10),
    )  # fmt: skip


def main(method: str, path: str, eps: str, epochs: str, ramp: str, threads: str) -> None:
    torch.set_num_threads(int(threads))
    torch.manual_seed(0)
    data = np.load(path)
    images, labels = torch.from_numpy(data["images"]), torch.from_numpy(data["labels"])
    loader = Loader(TensorDataset(images, labels), batch_size=100, shuffle=True)
    options = {"loss_fusion": False} if method == "crown-ibp" else {}
    schedule = {"warm_up_epochs": 0, "ramp_up_epochs": int(ramp)}
    device = torch.device("cpu")
    wrapper = WRAPPERS[method](small(), (1, 28, 28), float(eps), int(epochs), **schedule, **options, device=device)
    wrapper.train_model(loader)
    ends = [*loader.begun[1:], time.perf_counter()]
    print(json.dumps([end - begun for begun, end in zip(loader.begun, ends, strict=True)][1:]))


if __name__ == "__main__":
    main(*sys.argv[1:])
