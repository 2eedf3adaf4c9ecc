"""What a search keeps waiting: branches, or boxes, side by side."""

from typing import Self

import torch
from torch import Tensor

from etb_plugin.memory import fitting

_NUMBERS = 2**26
"""Numbers that may wait before those come first that are nearest to proved."""


class Waiting:
    """Base of dataclasses of tensors, [waiting, ...] each: `above` says how far each is proved to lie above its limit,
    [waiting]."""

    above: Tensor

    def __len__(self) -> int:
        return len(self.above)

    def __getitem__(self, index: Tensor | slice) -> Self:
        return type(self)(*(value[index] for value in vars(self).values()))

    def joined(self, other: Self) -> Self:
        """Return these and the others."""
        pairs = zip(vars(self).values(), vars(other).values(), strict=True)
        return type(self)(*(torch.cat(pair) for pair in pairs))

    def order(self) -> Tensor:
        """Return the order to work in, as indices [waiting]: the worst first, as a counterexample is met there; where
        there is no room for more, the nearest to proved."""
        each = sum(value.shape[1:].numel() for value in vars(self).values())
        return self.above.argsort(descending=len(self) > fitting(_NUMBERS) // each)
