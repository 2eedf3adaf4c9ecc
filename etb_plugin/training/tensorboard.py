"""TensorBoard's logs: every figure of every epoch, beside metrics.jsonl, which has the same ones."""

from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from etb_plugin.errors import ConfigError
from etb_plugin.training.loop import Epoch

_GROUPS = {
    "loss": ("loss", "clean_loss", "robust_loss"),
    "training": (
        "accuracy",
        "gradient_norm",
        "unstable",
        "width",
        "certified_accuracy",
        "pgd_accuracy",
        "seconds",
        "step_ms",
    ),
    "schedule": ("eps", "kappa", "mix", "learning_rate"),
}


class TensorBoard:
    """Writes each epoch it is called with to `folder`. A run that resumes replaces what an epoch left half-way."""

    def __init__(self, folder: Path) -> None:
        check_tensorboard()
        self._folder = folder
        self._writer: Any = None

    def __call__(self, epoch: Epoch) -> None:
        """Log one epoch."""
        if self._writer is None:
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(self._folder, purge_step=epoch.epoch)
        values = asdict(epoch)
        for group, names in _GROUPS.items():
            for name in names:
                if values[name] is not None:
                    self._writer.add_scalar(f"{group}/{name}", values[name], epoch.epoch)
        self._writer.flush()


def check_tensorboard() -> None:
    """Raise ConfigError where the package is missing."""
    if find_spec("tensorboard") is None:
        raise ConfigError("tensorboard is not installed: pip install 'etb_plugin[tensorboard]', or leave the flag away")
