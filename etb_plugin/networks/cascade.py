"""Several networks that answer in turn (Wong et al. 2018, section 3.3)."""

from collections.abc import Iterable

from torch import Tensor, nn

from etb_plugin.errors import UnsupportedLayer


class NetworkCascade(nn.Module):
    """`networks` in turn: an image is answered by the first that is robust there, or else by the last.

    Which one that is takes a verifier, so the cascade is no function to call: `verification.turns` decides it.
    """

    def __init__(self, networks: Iterable[nn.Module]) -> None:
        super().__init__()
        self.networks = nn.ModuleList(networks)

    def forward(self, x: Tensor) -> Tensor:
        raise UnsupportedLayer("a cascade of networks answers only through a verifier: use etb verify")
