"""The values that every bound takes and returns beside a region: intervals, and the specs of margins."""

from dataclasses import dataclass

import torch
from torch import Tensor

from etb_plugin.errors import ConfigError


@dataclass(frozen=True)
class Interval:
    """What a bound returns: `lower` and `upper`, [batch, rows], and whether it is a certificate.

    `sound` says that the true range of every row lies inside. Only a sound interval may fill a column
    called certified or verified.
    """

    lower: Tensor
    upper: Tensor
    sound: bool

    @property
    def width(self) -> Tensor:
        """upper - lower, [batch, rows]."""
        return self.upper - self.lower


def margin_spec(labels: Tensor, classes: int, dtype: torch.dtype | None = None) -> Tensor:
    """Return the spec of the margins e_y - e_j over the classes j != y, in ascending order of j.

    Shapes: labels [batch] (integers), result [batch, classes - 1, classes]. A prediction is right on a whole
    box when every row is positive on it. Raises ConfigError for fewer than two classes.
    """
    if classes < 2:
        raise ConfigError(f"a margin needs at least 2 classes, got {classes}")
    dtype = dtype or torch.get_default_dtype()
    eye = torch.eye(classes, dtype=dtype, device=labels.device)
    return eye[labels].unsqueeze(1) - eye[other_classes(labels, classes)]


def check_spec(spec: Tensor | None, classes: int) -> None:
    """Raise ConfigError where `spec` is not over `classes` logits."""
    if spec is not None and spec.shape[2] != classes:
        raise ConfigError(f"a spec has shape [batch, rows, classes]; got {list(spec.shape)} for {classes} classes")


def identity_rows(like: Tensor, classes: int) -> Tensor:
    """Return the rows of the logits themselves, [1, classes, classes], in the dtype and on the device of `like`."""
    return torch.eye(classes, dtype=like.dtype, device=like.device).unsqueeze(0)


def other_classes(labels: Tensor, classes: int) -> Tensor:
    """Return every class but the true one in ascending order, [batch, classes - 1]: the rows of `margin_spec`.

    By arithmetic, as a mask would have to be counted, for which a GPU is waited for.
    """
    before = torch.arange(classes - 1, device=labels.device)
    return before + (before >= labels.unsqueeze(1))
