"""ONNX in and out. What is read becomes a torch.fx graph of plain torch layers, which every bound here can take.

Read by our own code: onnx2torch imports torchvision, which does not import beside a CPU-only build of torch, and fixes
the batch size that a file happens to hold.
"""

import operator
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from etb_plugin.errors import CheckpointError, ConfigError, UnsupportedLayer
from etb_plugin.files import write_file
from etb_plugin.networks.layers import evaluating

_OPSETS = range(7, 26)
_OPSET_OUT = 17
_AGREEMENT = 1e-5
"""How far, relative to the largest output, onnxruntime may be from torch on an exported file."""


def read_onnx(path: Path) -> tuple[nn.Module, tuple[int, ...]]:
    """Return the network in an ONNX file, in eval mode, and the shape of one input, without the batch.

    The first dimension of the input is the batch: 1, or any. Raises CheckpointError where the file is no ONNX,
    ConfigError where onnx is not installed or a dimension is not fixed, and UnsupportedLayer, naming the operation.
    """
    onnx = _package("onnx")
    try:
        model = onnx.load(str(path))
        onnx.checker.check_model(model)
    except Exception as error:  # protobuf's and onnx's own kinds
        raise CheckpointError(f"{path} is no ONNX file: {str(error).partition(chr(10))[0]}") from error
    version = next((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), 0)
    if version not in _OPSETS:
        raise UnsupportedLayer(f"{path} is of opset {version}; {_OPSETS[0]} to {_OPSETS[-1]} are understood")
    constants = {t.name: torch.from_numpy(onnx.numpy_helper.to_array(t).copy()) for t in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in constants]
    if len(inputs) != 1 or len(model.graph.output) != 1:
        raise UnsupportedLayer(
            f"{path} has {len(inputs)} inputs and {len(model.graph.output)} outputs; networks have one of each here"
        )
    shape = _fixed_shape(path, inputs[0])
    builder = _Builder(inputs[0].name, shape, constants)
    for node in model.graph.node:
        attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
        for name, value in attributes.items():
            if isinstance(value, onnx.TensorProto):
                attributes[name] = torch.from_numpy(onnx.numpy_helper.to_array(value).copy())
        builder.add(node.op_type, node.name or node.output[0], list(node.input), list(node.output), attributes)
    return builder.network(model.graph.output[0].name), shape


def write_onnx(network: nn.Module, input_shape: tuple[int, ...], path: Path) -> float:
    """Write the network to `path`, for batches of any size, and return how far onnxruntime's outputs are from torch's.

    Raises ConfigError where onnx or onnxruntime is not installed, or the two differ by more than 1e-5 of the largest
    output; then nothing is written.
    """
    _package("onnx")
    runtime = _package("onnxruntime")
    generator = torch.Generator().manual_seed(0)
    example = torch.rand(4, *input_shape, generator=generator)
    network = network.cpu().float()
    with tempfile.TemporaryDirectory() as folder, evaluating(network), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's own deprecations
        file = Path(folder) / "network.onnx"
        torch.onnx.export(
            network,
            (example[:1],),
            str(file),
            dynamo=False,
            opset_version=_OPSET_OUT,
            input_names=["input"],
            output_names=["output"],
            dynamic_axes={"input": {0: "batch"}, "output": {0: "batch"}},
        )
        content = file.read_bytes()
        session = runtime.InferenceSession(content, providers=["CPUExecutionProvider"])
        theirs = torch.from_numpy(session.run(None, {"input": example.numpy()})[0])
        with torch.no_grad():
            ours = network(example)
    difference = float((ours - theirs).abs().max() / ours.abs().max().clamp(min=1e-30))
    if not difference <= _AGREEMENT:
        raise ConfigError(
            f"onnxruntime differs from torch by {difference:.1g} of the largest output, more than {_AGREEMENT:g}: "
            f"{path} was not written"
        )
    write_file(path, content)
    return difference


def _package(name: str) -> Any:
    try:
        return __import__(name)
    except ImportError:
        raise ConfigError(f"ONNX files need {name}: pip install 'etb_plugin[onnx]'") from None


def _fixed_shape(path: Path, value: Any) -> tuple[int, ...]:
    dimensions = value.type.tensor_type.shape.dim
    sizes = [d.dim_value if d.HasField("dim_value") else None for d in dimensions]
    if len(sizes) < 2 or sizes[0] not in (1, None, 0) or not all(sizes[1:]):
        shown = [d.dim_param or "?" if size is None else size for d, size in zip(dimensions, sizes, strict=True)]
        raise UnsupportedLayer(
            f"{path}: input {value.name!r} has shape {shown}; the first dimension has to be the batch (1, or free), "
            f"and all others fixed"
        )
    return tuple(int(size) for size in sizes[1:] if size)


class _Builder:
    """Turns ONNX nodes into an fx graph. `probe` holds what each tensor is for one input of zeros: constants are
    folded, and shapes are known, without the batch."""

    def __init__(self, name: str, shape: tuple[int, ...], constants: dict[str, Tensor]) -> None:
        self.root, self.graph = nn.Module(), fx.Graph()
        self.constants = constants
        self.nodes: dict[str, fx.Node] = {name: self.graph.placeholder("x")}
        self.probe: dict[str, Tensor] = {name: torch.zeros(1, *shape)}

    def add(self, kind: str, label: str, inputs: list[str], outputs: list[str], attributes: dict[str, Any]) -> None:
        """Add one ONNX node. Raises UnsupportedLayer that names it."""
        make = _OPERATIONS.get(kind)
        if make is None:
            raise UnsupportedLayer(f"operation {label!r} ({kind}) is not taken; taken are {', '.join(_OPERATIONS)}")
        call = _Call(self, kind, label, inputs, attributes)
        if not any(name in self.nodes for name in inputs):
            constant = attributes.get("value") if kind == "Constant" else call.constant(0)
            if kind not in ("Constant", "Identity") or not isinstance(constant, Tensor):
                raise call.refused("its inputs are all constant")
            self.constants[outputs[0]] = constant
            return
        node, value = make(call)
        if value.shape[0] != 1:
            raise call.refused("it mixes the batch into the features")
        self.nodes[outputs[0]], self.probe[outputs[0]] = node, value

    def network(self, output: str) -> nn.Module:
        """Return the network whose output is `output`."""
        if output not in self.nodes or self.probe[output].ndim != 2:
            raise UnsupportedLayer("the network must return one tensor of outputs, [batch, outputs]")
        self.graph.output(self.nodes[output])
        return fx.GraphModule(self.root, self.graph).eval()


class _Call:
    """One ONNX node: its operands, and ways to add torch's."""

    def __init__(self, builder: _Builder, kind: str, label: str, inputs: list[str], attributes: dict[str, Any]) -> None:
        self.builder, self.kind, self.label, self.inputs, self.attributes = builder, kind, label, inputs, attributes

    def refused(self, why: str) -> UnsupportedLayer:
        return UnsupportedLayer(f"operation {self.label!r} ({self.kind}): {why}")

    def get(self, name: str, default: Any) -> Any:
        return self.attributes.get(name, default)

    def constant(self, place: int) -> Tensor | None:
        """Return the constant operand at `place`, or None where there is none."""
        if place >= len(self.inputs) or not self.inputs[place]:
            return None
        name = self.inputs[place]
        if name not in self.builder.constants:
            raise self.refused(f"its input {name!r} has to be constant")
        return self.builder.constants[name]

    def numbers(self, place: int, name: str) -> list[int] | None:
        """Return integers that are an attribute in old opsets and an operand in new ones."""
        if name in self.attributes:
            return list(self.attributes[name])
        value = self.constant(place)
        return None if value is None else value.flatten().tolist()

    @property
    def value(self) -> Tensor:
        """The first operand for an input of zeros, [1, ...]."""
        return self.builder.probe[self.inputs[0]]

    @property
    def node(self) -> fx.Node:
        if self.inputs[0] not in self.builder.nodes:
            raise self.refused("its first input has to depend on the network's")
        return self.builder.nodes[self.inputs[0]]

    def layer(self, layer: nn.Module, after: fx.Node | None = None, at: Tensor | None = None) -> tuple[fx.Node, Tensor]:
        """Add a torch layer on the first operand, or behind `after` whose probe is `at`."""
        node, value = (self.node, self.value) if after is None or at is None else (after, at)
        name = f"layer{len(list(self.builder.root.children()))}"
        self.builder.root.add_module(name, layer.eval())
        with torch.no_grad():
            return self.builder.graph.call_module(name, (node,)), layer(value)

    def method(self, name: str, *arguments: Any) -> tuple[fx.Node, Tensor]:
        """Add a tensor's method on the first operand."""
        return self.builder.graph.call_method(name, (self.node, *arguments)), getattr(self.value, name)(*arguments)

    def binary(self, function: Callable[..., Tensor]) -> tuple[fx.Node, Tensor]:
        """Add a function of both operands, of which one may be constant."""
        nodes, values = [], []
        for name in self.inputs:
            if name in self.builder.nodes:
                nodes.append(self.builder.nodes[name])
                values.append(self.builder.probe[name])
            else:
                constant = self.builder.constants[name]
                held = f"constant{len(list(self.builder.root.buffers(recurse=False)))}"
                self.builder.root.register_buffer(held, constant)
                nodes.append(self.builder.graph.get_attr(held))
                values.append(constant)
        return self.builder.graph.call_function(function, tuple(nodes)), function(*values)


Result = tuple[fx.Node, Tensor]


def _linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, dtype=weight.dtype)
    layer.weight.data = weight.contiguous()
    if bias is not None:
        layer.bias.data = bias.expand(weight.shape[0]).contiguous()
    return layer


def _gemm(call: _Call) -> Result:
    weight, bias = call.constant(1), call.constant(2)
    if weight is None or call.get("transA", 0):
        raise call.refused("needs the input on the left, not transposed")
    if call.value.ndim != 2:
        raise call.refused("needs an input [batch, features]")
    scaled = call.get("alpha", 1.0) * (weight if call.get("transB", 0) else weight.T)
    return call.layer(_linear(scaled, None if bias is None else call.get("beta", 1.0) * bias.flatten()))


def _matmul(call: _Call) -> Result:
    if call.inputs[0] in call.builder.nodes:
        weight = call.constant(1)
        if weight is None or weight.ndim != 2:
            raise call.refused("needs a constant matrix")
        return call.layer(_linear(weight.T, None))
    weight = call.constant(0)
    node, value = call.builder.nodes[call.inputs[1]], call.builder.probe[call.inputs[1]]
    if weight is None or weight.ndim != 2 or value.ndim < 3:
        raise call.refused("needs a constant matrix, and an input [batch, features, columns]")
    turned = call.builder.graph.call_method("transpose", (node, -1, -2))
    inner, out = call.layer(_linear(weight, None), turned, value.transpose(-1, -2))
    return call.builder.graph.call_method("transpose", (inner, -1, -2)), out.transpose(-1, -2)


def _padded(call: _Call, size: int) -> tuple[tuple[int, ...], Result | None]:
    """Return symmetric padding, or none and the input padded already where its two sides differ."""
    if call.get("auto_pad", b"NOTSET") not in (b"NOTSET", b"VALID"):
        raise call.refused("has auto_pad; export it with explicit pads")
    pads = list(call.get("pads", [0] * (2 * size)))
    first, last = pads[:size], pads[size:]
    if first == last:
        return tuple(first), None
    flat = [side for pair in zip(reversed(first), reversed(last), strict=True) for side in pair]
    node = call.builder.graph.call_function(F.pad, (call.node, flat))
    return (0,) * size, (node, F.pad(call.value, flat))


def _conv(call: _Call) -> Result:
    weight, bias = call.constant(1), call.constant(2)
    if weight is None or not 3 <= weight.ndim <= 5:
        raise call.refused("needs constant weights over one to three dimensions")
    size = weight.ndim - 2
    padding, padded = _padded(call, size)
    groups = call.get("group", 1)
    kinds: tuple[Callable[..., nn.Conv1d | nn.Conv2d | nn.Conv3d], ...] = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
    layer = kinds[size - 1](
        weight.shape[1] * groups,
        weight.shape[0],
        tuple(weight.shape[2:]),
        tuple(call.get("strides", [1] * size)),
        padding,
        tuple(call.get("dilations", [1] * size)),
        groups,
        bias is not None,
        dtype=weight.dtype,
    )
    layer.weight.data = weight
    if bias is not None and layer.bias is not None:
        layer.bias.data = bias
    return call.layer(layer, *(padded or ()))


def _batch_norm(call: _Call) -> Result:
    scale, shift, mean, variance = (call.constant(place) for place in (1, 2, 3, 4))
    if scale is None or shift is None or mean is None or variance is None or call.get("training_mode", 0):
        raise call.refused("needs constant statistics")
    kinds = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}
    layer = kinds[call.value.ndim](len(scale), call.get("epsilon", 1e-5), dtype=scale.dtype)
    layer.load_state_dict(
        {
            "weight": scale,
            "bias": shift,
            "running_mean": mean,
            "running_var": variance,
            "num_batches_tracked": 0 * scale[0],
        }
    )
    return call.layer(layer)


def _average_pool(call: _Call) -> Result:
    kernel = call.get("kernel_shape", [])
    padding, padded = _padded(call, len(kernel))
    if len(kernel) != 2 or call.get("ceil_mode", 0) or (any(padding) and not call.get("count_include_pad", 0)):
        raise call.refused("needs two dimensions, no ceil_mode, and count_include_pad where it pads")
    if padded is not None:
        raise call.refused("pads its two sides differently")
    strides = call.get("strides", [1, 1])
    return call.layer(nn.AvgPool2d((kernel[0], kernel[1]), (strides[0], strides[1]), (padding[0], padding[1])))


def _reshape(call: _Call) -> Result:
    shape = call.numbers(1, "shape")
    if shape is None or call.get("allowzero", 0):
        raise call.refused("needs a constant shape, and no allowzero")
    sizes = [call.value.shape[i] if size == 0 else size for i, size in enumerate(shape)]
    return call.method("reshape", -1, *call.value.reshape(sizes).shape[1:])


def _flatten(call: _Call) -> Result:
    if call.get("axis", 1) % call.value.ndim != 1:
        raise call.refused("has an axis other than 1")
    return call.method("flatten", 1)


def _transpose(call: _Call) -> Result:
    order = call.get("perm", list(reversed(range(call.value.ndim))))
    if order[0] != 0:
        raise call.refused("moves the batch")
    return call.method("permute", *order)


def _squeezed(call: _Call) -> Result:
    axes = call.numbers(1, "axes")
    if axes is None:
        raise call.refused("needs its axes")
    value = call.value
    if call.kind == "Squeeze":
        value = value.squeeze(tuple(axes))
    else:
        for axis in sorted(axis % (value.ndim + len(axes)) for axis in axes):
            value = value.unsqueeze(axis)
    return call.method("reshape", -1, *value.shape[1:])


def _clip(call: _Call) -> Result:
    ends = []
    for place, name in ((1, "min"), (2, "max")):
        found = call.attributes.get(name, call.constant(place))
        ends.append(None if found is None else float(found))
    if ends == [0.0, None]:
        return call.layer(nn.ReLU())
    if ends[0] is None or ends[1] is None:
        raise call.refused("needs both ends, or a min of 0 alone")
    return call.layer(nn.Hardtanh(ends[0], ends[1]))


def _concat(call: _Call) -> Result:
    if not all(name in call.builder.nodes for name in call.inputs):
        raise call.refused("joins constants")
    axis = call.get("axis", 1)
    nodes = [call.builder.nodes[name] for name in call.inputs]
    values = [call.builder.probe[name] for name in call.inputs]
    return call.builder.graph.call_function(torch.cat, (nodes, axis)), torch.cat(values, axis)


def _same(call: _Call) -> Result:
    return call.node, call.value


_OPERATIONS: dict[str, Callable[[_Call], Result]] = {
    "Add": lambda call: call.binary(operator.add),
    "AveragePool": _average_pool,
    "BatchNormalization": _batch_norm,
    "Clip": _clip,
    "Concat": _concat,
    "Constant": _same,
    "Conv": _conv,
    "Div": lambda call: call.binary(operator.truediv),
    "Dropout": _same,
    "Flatten": _flatten,
    "Gemm": _gemm,
    "GlobalAveragePool": lambda call: call.layer(nn.AdaptiveAvgPool2d(1)),
    "Identity": _same,
    "LeakyRelu": lambda call: call.layer(nn.LeakyReLU(call.get("alpha", 0.01))),
    "MatMul": _matmul,
    "Mul": lambda call: call.binary(operator.mul),
    "Neg": lambda call: call.method("neg"),
    "Relu": lambda call: call.layer(nn.ReLU()),
    "Reshape": _reshape,
    "Squeeze": _squeezed,
    "Sub": lambda call: call.binary(operator.sub),
    "Transpose": _transpose,
    "Unsqueeze": _squeezed,
}
