"""auto_LiRPA's own bounds, as `crown:by=auto_LiRPA` and the like: what ours are held against."""

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from etb_plugin.bounds.registry import BoundFunction, register_bound
from etb_plugin.errors import ConfigError, EtbError, UnsupportedLayer
from etb_plugin.graph.regions import Box

TOOLKIT = "auto_LiRPA"
_TAKES = "every graph that auto_LiRPA converts; boxes"


@register_bound("ibp", by=TOOLKIT, sound=True, differentiable=True, takes=_TAKES)
def ibp(network: nn.Module, input_shape: torch.Size) -> BoundFunction:
    """Interval bound propagation, by auto_LiRPA; the last linear layer folded into a spec."""
    return _by_method("IBP", network, input_shape)


@register_bound("crown-ibp", by=TOOLKIT, sound=True, differentiable=True, takes=_TAKES)
def crown_ibp(network: nn.Module, input_shape: torch.Size, *, lower_only: bool = False) -> BoundFunction:
    """CROWN over IBP's intervals, by auto_LiRPA."""
    return _by_method("CROWN-IBP", network, input_shape, lower_only=lower_only)


@register_bound("crown", by=TOOLKIT, sound=True, differentiable=True, takes=_TAKES)
def crown(network: nn.Module, input_shape: torch.Size, *, lower_only: bool = False) -> BoundFunction:
    """CROWN, by auto_LiRPA: its patches on convolutions where it takes all layers, its matrices elsewhere."""
    return _by_method("CROWN", network, input_shape, lower_only=lower_only)


@register_bound("alpha-crown", by=TOOLKIT, sound=True, differentiable=False, takes=_TAKES)
def alpha_crown(network: nn.Module, input_shape: torch.Size, *, lower_only: bool = False) -> BoundFunction:
    """alpha-CROWN, by auto_LiRPA: 20 steps. Refused with torch 2.14 and later, which turn it into CROWN."""
    if tuple(map(int, torch.__version__.split(".")[:2])) >= (2, 14):
        raise ConfigError(
            f"torch {torch.__version__} turns auto_LiRPA's alpha-CROWN into CROWN without a word; use alpha-crown, our "
            f"own, or a torch below 2.14"
        )
    apply = _by_method("alpha-CROWN", network, input_shape, lower_only=lower_only, frozen=True)

    def detached(box: Box, spec: Tensor | None) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            lower, upper = apply(box, spec)
        return lower.detach(), upper.detach()

    return detached


def _by_method(
    method: str, network: nn.Module, input_shape: torch.Size, *, lower_only: bool = False, frozen: bool = False
) -> BoundFunction:
    from etb_plugin.lirpa.network import LirpaNetwork  # only where it is asked for: importing auto_LiRPA takes seconds

    with _failures_named():
        converted = LirpaNetwork(network, input_shape)

    def apply(box: Box, spec: Tensor | None) -> tuple[Tensor, Tensor]:
        with _failures_named():
            return converted.compute(method, box, spec, lower_only=lower_only, frozen=frozen)

    return apply


@contextlib.contextmanager
def _failures_named() -> Iterator[None]:
    """Turn what auto_LiRPA stops with, on networks that it does not foresee, into one line."""
    try:
        yield
    except (EtbError, MemoryError):
        raise
    except Exception as error:
        what = str(error).partition("\n")[0] or "no message"
        raise UnsupportedLayer(f"auto_LiRPA fails on this network ({type(error).__name__}: {what})") from error
