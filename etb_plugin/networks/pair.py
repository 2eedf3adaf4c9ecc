"""Two networks that are trained against each other."""

from torch import Tensor, nn


class Pair(nn.Module):
    """`first` and `second`, of one architecture; as a function it is the first."""

    def __init__(self, first: nn.Module, second: nn.Module) -> None:
        super().__init__()
        self.first = first
        self.second = second

    def forward(self, x: Tensor) -> Tensor:
        return self.first(x)


def members(network: nn.Module) -> dict[str, nn.Module]:
    """Return the networks to evaluate, by what is added to the method's name: f and g of a pair."""
    return {" f": network.first, " g": network.second} if isinstance(network, Pair) else {"": network}
