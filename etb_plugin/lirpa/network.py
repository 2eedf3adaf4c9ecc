"""What the bounds of auto_LiRPA share: converting a network once, calling it cleanly, naming what it refuses."""

import contextlib
import functools
import logging
import math
import re
import warnings
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from etb_plugin.bounds.types import check_spec, identity_rows
from etb_plugin.errors import ConfigError, UnsupportedLayer
from etb_plugin.graph.regions import Box
from etb_plugin.graph.tracing import example_input, refuse_training_mode
from etb_plugin.networks import evaluating, split_normalization

with warnings.catch_warnings(record=True):  # torch.jit's deprecation, and a filter set for the whole process
    try:
        from auto_LiRPA import BoundedModule, BoundedTensor, PerturbationLpNorm
        from auto_LiRPA.operators.pooling import BoundAveragePool
        from auto_LiRPA.utils import logger as lirpa_logger
    except ModuleNotFoundError as error:
        raise ConfigError(
            "by=auto_LiRPA needs it: pip install --no-deps auto_LiRPA==0.3 appdirs packaging tqdm, or upstream from "
            "its repository"
        ) from error

_PATCHES_TAKE = {
    "Input",
    "Params",
    "Buffers",
    "Conv",
    "Relu",
    "Flatten",
    "Linear",
    "Add",
    "BatchNormalization",
}
"""Operations that auto_LiRPA's patches mode takes: several times faster on convolutions, but not general."""


class LirpaNetwork:
    """A network converted to auto_LiRPA, that leaves the network's modes and grad flags as it found them.

    The converted graph holds the network's own parameters, so it follows training; buffers (batch norm's
    statistics) are copied anew before each call.
    """

    def __init__(self, network: nn.Module, input_shape: torch.Size) -> None:
        refuse_training_mode(network)
        for name, layer in network.named_modules():
            if isinstance(layer, nn.modules.dropout._DropoutNd):
                raise UnsupportedLayer(f"layer '{name}' ({type(layer).__name__}): auto_LiRPA needs it removed")
        self._normalize, self._network = split_normalization(network)
        self._example = example_input(network, input_shape)
        self._bounded = self._converted(sparse=True)
        self._classes = self._bounded.final_shape[-1]

    def _converted(self, sparse: bool) -> BoundedModule:
        mode = "matrix" if _unsound_in_patches(self._network) else "patches"
        bounded = _convert(self._network, self._example, mode, sparse)
        if {type(node).__name__.removeprefix("Bound") for node in bounded._modules.values()} - _PATCHES_TAKE:
            bounded = _convert(self._network, self._example, "matrix", sparse)
        for node in bounded._modules.values():
            if type(node).__name__ == "BoundLeakyRelu" and node.alpha < 0:
                raise UnsupportedLayer(f"node {node.name}: auto_LiRPA takes a LeakyReLU that falls for one that rises")
            positive = type(node).__name__ == "BoundDiv" and type(node.inputs[0]).__name__ == "BoundExp"  # a softmax
            if type(node).__name__ == "BoundDiv" and not node.is_constant_op and not positive:
                raise UnsupportedLayer(f"node {node.name}: auto_LiRPA's interval of a quotient of values is not sound")
        bounded.eval()
        _check_forward(bounded, self._network, self._example)
        _repair_pooling(bounded)
        return bounded

    def compute(
        self, method: str, box: Box, spec: Tensor | None, *, lower_only: bool = False, frozen: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Return lower and upper, [batch, rows], by auto_LiRPA's `method`.

        With `lower_only` the upper end is not computed and comes back as +inf. With `frozen` the weights
        take no gradient.
        """
        check_spec(spec, self._classes)
        box = box.mapped(self._normalize)
        if spec is None and method != "IBP":
            spec = identity_rows(box.lower, self._classes).expand(len(box), -1, -1)
        region = PerturbationLpNorm(norm=math.inf, x_L=box.lower, x_U=box.upper)

        def run() -> tuple[Tensor, Tensor]:
            with self._own_weights(frozen), _default_dtype(box.lower.dtype):
                return self._bounded.compute_bounds(
                    x=(BoundedTensor(box.center, region),), C=spec, method=method, bound_upper=not lower_only
                )

        try:
            lower, upper = run()
        except AssertionError:
            if method != "alpha-CROWN":
                raise
            # auto_LiRPA 0.3 stops where no unit of a layer is unstable and alphas are stored sparsely. Dense ones give
            # the same bound, at eight times the cost on `small`, so they are made only then.
            sparsely, self._bounded = self._bounded, self._converted(sparse=False)
            try:
                lower, upper = run()
            finally:
                self._bounded = sparsely
        return lower, torch.full_like(lower, math.inf) if upper is None or lower_only else upper

    @contextlib.contextmanager
    def _own_weights(self, frozen: bool) -> Iterator[None]:
        """Refresh the buffers, and let each weight take a gradient just where the network's own does."""
        state = self._network.state_dict(keep_vars=True)
        for node in self._bounded._modules.values():
            if getattr(node, "buffer", None) is not None and node.ori_name in state:
                node.buffer.copy_(state[node.ori_name])
            if getattr(node, "param", None) is not None:
                node.training = node.param.requires_grad and not frozen
        with _kept_grad_flags(self._network):
            yield


def _unsound_in_patches(network: nn.Module) -> bool:
    """Whether a layer is one whose rows auto_LiRPA's patches, 0.3's and 0.7.1's, get wrong: see docs/soundness.md."""
    return any(
        isinstance(layer, nn.Conv2d) and (layer.groups > 1 or set(layer.dilation) != {1}) for layer in network.modules()
    )


def _convert(network: nn.Module, example: Tensor, mode: str, sparse: bool) -> BoundedModule:
    with evaluating(network), _kept_grad_flags(network), _refusals_named(network), _default_dtype(example.dtype):
        # auto_LiRPA 0.3 mixes up its ways to store alphas where more than this share of a layer is unstable.
        options = {"conv_mode": mode, "sparse_spec_alpha": sparse, "minimum_sparsity": 1.0}
        return BoundedModule(network, example, bound_opts=options)


@torch.no_grad()
def _check_forward(bounded: BoundedModule, network: nn.Module, example: Tensor) -> None:
    """Refuse a converted graph that does not compute the network: auto_LiRPA drops options of layers in silence."""
    x = torch.rand(example.shape, generator=torch.Generator().manual_seed(0), dtype=example.dtype).to(example.device)
    with evaluating(network), _kept_grad_flags(network), _default_dtype(example.dtype):
        want, got = network(x), bounded(x)
    if not torch.allclose(got, want, rtol=1e-3, atol=1e-3 * float(want.abs().max())):
        suspects = [
            f"layer '{name}' ({layer})" for name, layer in network.named_modules() if isinstance(layer, nn.AvgPool2d)
        ]
        raise UnsupportedLayer(
            f"{', '.join(suspects) or 'a layer'}: auto_LiRPA's graph does not compute what the network does; it knows "
            f"average pooling without ceil_mode, divisor_override and with count_include_pad only"
        )


def _repair_pooling(bounded: BoundedModule) -> None:
    """Give overlapping, gapped or padded average pooling its own adjoint: auto_LiRPA's backward rule takes each
    kernel for a tile of its own, and the bounds that come out are not sound."""
    for node in bounded._modules.values():
        if isinstance(node, BoundAveragePool) and (list(node.stride) != list(node.kernel_size) or any(node.padding)):
            node.bound_backward = functools.partial(_pooling_backward, node)


def _pooling_backward(
    node: BoundAveragePool, lower: Tensor | None, upper: Tensor | None, *_: object, **__: object
) -> tuple[list[tuple[Tensor | None, Tensor | None]], float, float]:
    """Return the rows of both sides, [rows, batch, *input of the pooling], and no bias."""
    channels, *size = node.input_shape[1:]
    kernel = torch.ones(channels, 1, *node.kernel_size) / math.prod(node.kernel_size)

    def transposed(rows: Tensor | None) -> Tensor | None:
        if rows is None:
            return None
        over = [
            n - ((out - 1) * s - 2 * p + k)
            for n, out, s, p, k in zip(size, rows.shape[3:], node.stride, node.padding, node.kernel_size, strict=True)
        ]
        flat = F.conv_transpose2d(
            rows.flatten(0, 1), kernel.to(rows), None, node.stride, node.padding, over, groups=channels
        )
        return flat.unflatten(0, rows.shape[:2])

    return [(transposed(lower), transposed(upper))], 0.0, 0.0


@contextlib.contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """auto_LiRPA makes its own constants in torch's default dtype; float64 networks need float64 ones."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@contextlib.contextmanager
def _kept_grad_flags(network: nn.Module) -> Iterator[None]:
    """auto_LiRPA's parameter nodes set `requires_grad` to their own training mode whenever they are read."""
    flags = {p: p.requires_grad for p in network.parameters()}
    try:
        yield
    finally:
        for parameter, flag in flags.items():
            parameter.requires_grad_(flag)


@contextlib.contextmanager
def _refusals_named(network: nn.Module) -> Iterator[None]:
    """Turn auto_LiRPA's log lines about unsupported operations into one UnsupportedLayer that names them."""
    lines: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())  # type: ignore[method-assign]
    handlers, propagate = lirpa_logger.handlers, lirpa_logger.propagate
    lirpa_logger.handlers, lirpa_logger.propagate = [handler], False
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch.jit's tracer warns of every Python value that it fixes
            yield
    except NotImplementedError as error:
        names = re.findall(r"Name: (\S+), Attr: (?:\{'operator': '(\w+)')?", "\n".join(lines))
        operations = {(operator or kind.split("::")[-1]).lower() for kind, operator in names}
        layers = [
            f"layer '{name}' ({type(layer).__name__})"
            for name, layer in network.named_modules()
            if type(layer).__name__.lower() in operations
        ]
        what = ", ".join(layers or sorted(f"operation {o}" for o in operations)) or str(error)
        raise UnsupportedLayer(f"{what}: auto_LiRPA has no rule for it") from error
    except RuntimeError as error:  # an option of a layer that it drops may leave shapes that do not fit
        raise UnsupportedLayer(f"auto_LiRPA cannot convert the network: {str(error).partition(chr(10))[0]}") from error
    finally:
        lirpa_logger.handlers, lirpa_logger.propagate = handlers, propagate
