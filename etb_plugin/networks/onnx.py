"""ONNX in and out. What is read becomes a torch.fx graph of plain torch layers, which every bound here can take, and is
held against onnxruntime.

Read by our own code: onnx2torch imports torchvision, which does not import beside a CPU-only build of torch, fixes the
batch size that a file happens to hold, and hides what it does in modules of its own, which no bound could follow.
`onnx_operations` is what each operation becomes.
"""

import gzip
import math
import tempfile
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn

from etb_plugin.errors import CheckpointError, ConfigError, UnsupportedLayer
from etb_plugin.files import write_file
from etb_plugin.graph.pieces import CONDITIONS
from etb_plugin.graph.symbolic import symbolic
from etb_plugin.graph.tracing import shaken
from etb_plugin.networks.onnx_operations import OPERATIONS, Builder, Call, Operand, Value, made
from etb_plugin.networks.statistics import evaluating

OPSETS = range(7, 29)
"""Of ONNX, that are understood."""
_OPSET_OUT = 17
_DTYPES = {1: torch.float32, 11: torch.float64}
"""What an input may be, by ONNX's numbers of its types."""
_AGREEMENT = 1e-5
"""How far, relative to the largest output, onnxruntime may be from torch on an exported file."""
_MOST_STEPS = 1000
"""Of a loop, which is written out."""
_READ_AGREEMENT = 1e-4
"""The same on a file that was read: rounding apart, in whatever order the two add up."""
_EVALUATED = {"DequantizeLinear": 21, "QuantizeLinear": 21}
"""Operations that onnx evaluates from some opset on only, though they were the same before."""
_JUMPS = CONDITIONS | {torch.sign, torch.round, torch.floor, torch.ceil}
_CHECKED = 3
"""Points in [0, 1], and as many around it, on which a file that was read is checked."""


Names = Sequence[str | None] | None
"""Tensors of a file, by name; None among them stands for the next of the file's own inputs or outputs, None by itself
for all of these."""


@dataclass(frozen=True)
class Tensors:
    """A network that takes and gives some tensors of a file: [batch, *shape] -> [batch, outputs], in eval mode.

    Several inputs are one of [batch, elements], and several outputs too, one behind the other; `inputs` and `outputs`
    are how many elements each has.
    """

    network: nn.Module
    shape: tuple[int, ...]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]


def read_onnx(path: Path) -> tuple[nn.Module, tuple[int, ...]]:
    """Return the network in an ONNX file of one input, in eval mode, and the shape of that, without the batch.

    Raises what `read_tensors` does, and UnsupportedLayer where there are several inputs, or outputs of floats.
    """
    read = read_tensors(path)
    if (len(read.inputs), len(read.outputs)) != (1, 1):
        raise UnsupportedLayer(
            f"{path} has {len(read.inputs)} inputs and {len(read.outputs)} outputs of floats; a classifier has one of "
            f"each, and VNN-LIB properties alone may be about more"
        )
    return read.network, read.shape


def read_tensors(path: Path, inputs: Names = None, outputs: Names = None) -> Tensors:
    """Return the network from an ONNX file's inputs, in this order, to some of its tensors.

    `outputs` may name any tensor that depends on the inputs, or a node that gives one; the file's own outputs are those
    of floats, without a classifier's labels. The first dimension of an input is the batch: 1, or any; an input of one
    dimension has none, and gets one. What was read is held against onnxruntime on random points. Raises CheckpointError
    where the file is no ONNX, ConfigError where onnx is not installed or the file has no such tensors, and
    UnsupportedLayer for an operation that is not taken, by its name, for a dimension that is not fixed, and for a
    network that came out differently.
    """
    onnx = _package("onnx")
    try:
        model = _loaded(path)
        onnx.checker.check_model(model)
    except Exception as error:  # protobuf's and onnx's own kinds
        raise CheckpointError(f"{path} is no ONNX file: {str(error).partition(chr(10))[0]}") from error
    version = next((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), 0)
    if version not in OPSETS:
        raise UnsupportedLayer(f"{path} is of opset {version}; {OPSETS[0]} to {OPSETS[-1]} are understood")
    given, names = _given(path, model.graph, inputs), _wanted(path, model.graph, outputs)
    kinds = [value.type.tensor_type.elem_type for value in given]
    for value, kind in zip(given, kinds, strict=True):
        if kind not in _DTYPES or kind != kinds[0]:
            raise UnsupportedLayer(f"{path}: input {value.name!r} is neither float nor double, or not what others are")
    shapes = [_fixed_shape(path, value) for value in given]
    sizes = tuple(math.prod(shape) for shape in shapes)
    whole = shapes[0] if len(shapes) == 1 else (sum(sizes),)
    builder = Builder(whole, _DTYPES[kinds[0]])
    known: dict[str, Operand | None] = {"": None}
    for k, (value, shape) in enumerate(zip(given, shapes, strict=True)):
        own = builder.input
        if len(given) > 1:
            own = builder.run(torch.narrow, own, 1, sum(sizes[:k]), sizes[k])
        known[value.name] = own if own.probe.shape[1:] == shape else builder.run("unflatten", own, 1, shape)
    found: list[Value] = []
    for name, output in zip(names, _walked(onnx, builder, model.graph, names, known, version), strict=True):
        if not isinstance(output, Value) or not output.plain or output.probe.ndim < 2:
            raise UnsupportedLayer(
                f"{path}: the network must return one tensor of outputs, [batch, outputs], as {name!r}"
            )
        found.append(builder.run("flatten", output, 1) if output.probe.ndim > 2 else output)
    network = builder.network(found[0] if len(found) == 1 else builder.run(torch.cat, found, 1))
    _check(path, partial(_running, model, given, names), network, builder.input.probe)
    return Tensors(network, whole, sizes, tuple(output.probe.shape[1] for output in found))


def file_outputs(path: Path, points: Tensor, inputs: Names = None, outputs: Names = None) -> Tensor:
    """Return what onnxruntime, or onnx itself where that is missing, computes with the file at `path`, from and to
    these of its tensors.

    Shapes: points [points, *input], rounded to the file's own dtype -> [points, outputs], in float64. Raises
    CheckpointError where the file cannot be run.
    """
    try:
        model = _loaded(path)
        given, names = _given(path, model.graph, inputs), _wanted(path, model.graph, outputs)
        return _running(model, given, names)[0](points).double()
    except Exception as error:  # of either runtime
        raise CheckpointError(f"{path} cannot be run: {str(error).partition(chr(10))[0]}") from error


def _loaded(path: Path) -> Any:
    """Return the contents of a file, packed by gzip where its name ends in .gz."""
    onnx = _package("onnx")
    return onnx.load_from_string(gzip.decompress(path.read_bytes())) if path.suffix == ".gz" else onnx.load(str(path))


def _given(path: Path, graph: Any, names: Names) -> list[Any]:
    """Return what a graph is given, in the order of `names`: older files list their constants among its inputs."""
    constants = {tensor.name for tensor in graph.initializer}
    own = {value.name: value for value in graph.input if value.name not in constants}
    found = _named(path, "input", names, list(own))
    if sorted(found) != sorted(own):
        raise ConfigError(f"{path} has inputs {_listed(own)}: each has to be declared once; declared: {_listed(found)}")
    return [own[name] for name in found]


def _wanted(path: Path, graph: Any, names: Names) -> list[str]:
    """Return the names of tensors that `names` stand for, some of which may be of nodes."""
    of_nodes = {node.name: node.output[0] for node in graph.node if node.name and len(node.output) == 1}
    tensors = of_nodes | {name: name for node in graph.node for name in node.output}
    own = [value.name for value in graph.output if value.type.tensor_type.elem_type in _DTYPES]
    found = _named(path, "output", names, own)
    for name in found:
        if name not in tensors:
            raise ConfigError(f"{path} has no tensor and no node {name!r}; its outputs are {_listed(own)}")
    return [tensors[name] for name in found]


def _named(path: Path, kind: str, names: Names, own: list[str]) -> list[str]:
    if names is None:
        return own
    missing = sum(name is None for name in names)
    if missing not in (0, len(own)):
        raise ConfigError(f"{path} has {len(own)} {kind}s, {_listed(own)}; without a name {missing} are declared")
    following = iter(own)
    return [next(following) if name is None else name for name in names]


def _listed(names: Iterable[str]) -> str:
    return ", ".join(map(repr, names))


def _walked(
    onnx: Any, builder: Builder, graph: Any, outputs: list[str], known: Mapping[str, Operand | None], version: int
) -> list[Operand | None]:
    """Return some of a graph's outputs, by the nodes that they depend on."""
    operands = dict(known)
    operands |= {t.name: torch.from_numpy(onnx.numpy_helper.to_array(t).copy()) for t in graph.initializer}
    nodes, wanted = _needed(graph, outputs)
    for node in nodes:
        inputs = [operands[name] for name in node.input]
        if node.op_type == "Loop":
            operands |= zip(node.output, _looped(onnx, builder, node, inputs, operands, version), strict=True)
            continue
        chosen = _chosen(node, inputs)
        if chosen is None:
            operands |= _outputs(onnx, builder, node, inputs, wanted, version)
            continue
        names = [value.name for value in chosen.output]
        operands |= dict(zip(node.output, _walked(onnx, builder, chosen, names, operands, version), strict=True))
    return [operands[name] for name in outputs]


def _needed(graph: Any, outputs: list[str]) -> tuple[list[Any], set[str]]:
    """Return the nodes that some of a graph's outputs depend on, in their order, and the names that they take."""
    wanted, nodes = set(outputs), []
    for node in reversed(graph.node):
        if wanted & set(node.output):
            inner = [part for a in node.attribute for part in a.g.node]  # which take values from around them
            wanted |= {name for part in (node, *inner) for name in part.input}
            nodes.append(node)
    return nodes[::-1], wanted


def _chosen(node: Any, inputs: Sequence[Operand | None]) -> Any:
    """Return the graph that an If of a constant condition comes to, as torch's exporter writes a squeeze; else None."""
    if node.op_type != "If" or not isinstance(inputs[0], Tensor):
        return None
    wanted = "then_branch" if bool(inputs[0]) else "else_branch"
    return next(a.g for a in node.attribute if a.name == wanted)


def _looped(
    onnx: Any,
    builder: Builder,
    node: Any,
    inputs: Sequence[Operand | None],
    around: Mapping[str, Operand | None],
    version: int,
) -> list[Operand | None]:
    """Return what a Loop gives whose conditions and number of steps are constants, as recurrent layers come from Keras:
    its body once for each step, then what is carried, and what each step gives, one behind the other."""
    call = Call(builder, node.op_type, node.name or node.output[0], inputs, {}, len(node.output))
    limit, condition, *carried = inputs
    body = node.attribute[0].g
    names, results = [value.name for value in body.input], [value.name for value in body.output]
    given: list[list[Operand | None]] = []
    while condition is None or isinstance(condition, Value) or bool(condition):
        if isinstance(limit, Value) or isinstance(condition, Value):
            raise call.refused("its number of steps depends on the input")
        if limit is not None and len(given) >= int(limit):
            break
        if len(given) >= _MOST_STEPS:
            raise call.refused(f"takes more than {_MOST_STEPS} steps")
        at_start = (torch.tensor(len(given)), torch.tensor(True), *carried)
        condition, *rest = _walked(
            onnx, builder, body, results, dict(around) | dict(zip(names, at_start, strict=True)), version
        )
        carried, one = rest[: len(carried)], rest[len(carried) :]
        given.append(one)
    return [*carried, *(_one_behind_the_other(call, list(parts)) for parts in zip(*given, strict=True))]


def _one_behind_the_other(call: Call, parts: list[Operand | None]) -> Operand:
    values = [part for part in parts if isinstance(part, Value)]
    if not values:
        return torch.stack([part for part in parts if isinstance(part, Tensor)])
    if len(values) < len(parts) or any(any(value.merged) for value in values):
        raise call.refused("gives constants at some steps, or values that hold the batch in a dimension with others")
    return call.run_at(values[0].batch + 1, torch.stack, values, 1)


def _outputs(
    onnx: Any, builder: Builder, node: Any, inputs: Sequence[Operand | None], wanted: set[str], version: int
) -> Mapping[str, Operand]:
    """Return what an ONNX node gives, by name: constants from constants alone are what onnx itself computes. Refuses
    one that does not give all that is `wanted`."""
    constants = [operand for operand in inputs if not isinstance(operand, Value)]
    inner = any(attribute.type == onnx.AttributeProto.GRAPH for attribute in node.attribute)  # which may take values
    if len(constants) == len(inputs) and not inner:
        return _folded(onnx, node, constants, version)
    make = OPERATIONS.get(node.op_type)
    label = node.name or node.output[0]
    if make is None:
        raise UnsupportedLayer(
            f"operation {label!r} ({node.op_type}) is not taken; "
            f"the {len(OPERATIONS)} that are: networks/onnx_operations.py"
        )
    attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
    call = Call(builder, node.op_type, label, inputs, attributes, len(node.output))
    try:
        results = made(make, call)
    except (RuntimeError, IndexError, TypeError, ValueError) as error:
        raise call.refused(str(error).partition("\n")[0]) from error
    for result in results:
        if isinstance(result, Value) and result.probe.shape[:1] != (1,):
            raise call.refused("it mixes the batch into the features")
    beyond = [name for name in node.output[len(results) :] if name in wanted]
    if beyond:
        raise call.refused(f"its output {beyond[0]!r} is not taken")
    return {name: result for name, result in zip(node.output, results, strict=False) if name}


def _folded(onnx: Any, node: Any, inputs: Sequence[Tensor | None], version: int) -> Mapping[str, Operand]:
    """Return the constants that a node makes of constants."""
    from onnx.reference import ReferenceEvaluator

    given = {name: operand for name, operand in zip(node.input, inputs, strict=True) if operand is not None}
    values = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in given]
    outputs = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in node.output if name]
    graph = onnx.helper.make_graph([node], "constant", values, outputs)
    version = max(version, _EVALUATED.get(node.op_type, 0))
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", version)])
    try:
        results = ReferenceEvaluator(model).run(None, {name: operand.numpy() for name, operand in given.items()})
    except Exception as error:  # of onnx's many kinds
        why = str(error).partition("\n")[0]
        raise UnsupportedLayer(f"operation {node.name or node.output[0]!r} ({node.op_type}): {why}") from error
    return {
        value.name: torch.from_numpy(np.array(result))  # a copy: some results are views, or cannot be written to
        for value, result in zip(outputs, results, strict=True)
    }


def _running(model: Any, given: Sequence[Any], names: Sequence[str]) -> tuple[Callable[[Tensor], Tensor], str]:
    """Return points [points, *input] -> outputs [points, outputs] of a file's contents, one point at a time and in the
    file's dtype, by onnxruntime, or by onnx where that is missing; and by whom. Adds to the model's outputs."""
    kinds = [value.type.tensor_type for value in given]
    shapes = [[dimension.dim_value or 1 for dimension in kind.shape.dim] for kind in kinds]
    listed = {value.name for value in model.graph.output}
    for name in dict.fromkeys(name for name in names if name not in listed):
        model.graph.output.append(_package("onnx").helper.make_empty_tensor_value_info(name))
    try:
        runtime = __import__("onnxruntime")
        options = runtime.SessionOptions()
        options.log_severity_level = 3  # its warnings of how a file could be better are not ours to show
        if any(node.op_type == "QuantizeLinear" for node in model.graph.node):
            # Fused into kernels of whole numbers, some of which saturate, the file would be another function.
            options.graph_optimization_level = runtime.GraphOptimizationLevel.ORT_ENABLE_BASIC
        session = runtime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    except Exception:  # not installed, or older than the file
        from onnx.reference import ReferenceEvaluator

        session = ReferenceEvaluator(model)

    def outputs(points: Tensor) -> Tensor:
        flat = points.detach().cpu().to(_DTYPES[kinds[0].elem_type]).flatten(1)
        parts = flat.split([math.prod(shape) for shape in shapes], 1)
        values = [part.reshape(-1, *shape).numpy() for part, shape in zip(parts, shapes, strict=True)]
        rows = [
            session.run(list(names), {one.name: value[i] for one, value in zip(given, values, strict=True)})
            for i in range(len(points))
        ]
        return torch.from_numpy(np.stack([np.concatenate([one.reshape(-1) for one in row]) for row in rows]))

    return outputs, f"{type(session).__name__} of {type(session).__module__.partition('.')[0]}"


@torch.no_grad()
def _check(
    path: Path, running: Callable[[], tuple[Callable[[Tensor], Tensor], str]], network: fx.GraphModule, like: Tensor
) -> None:
    """Raise UnsupportedLayer where onnxruntime, or onnx itself where that is missing, finds other outputs than
    `network` on points in [0, 1] and around it, or cannot run the file at all."""
    generator = torch.Generator().manual_seed(0)
    shape = (_CHECKED, *like.shape[1:])
    points = torch.cat(
        [torch.rand(shape, generator=generator), 3 * torch.randn(shape, generator=generator)]
    ).to(like.dtype)  # fmt: skip
    try:
        ours = network(points)
        outputs, who = running()
        theirs = outputs(points)
    except Exception as error:  # of torch and of either runtime
        raise UnsupportedLayer(f"{path} cannot be run: {str(error).partition(chr(10))[0]}") from error
    known = ~(ours.isnan() & theirs.isnan()) if ours.shape == theirs.shape else torch.tensor(False)
    largest = ours[known].abs().max() if known.any() else torch.tensor(0.0)
    difference = (ours - theirs)[known].abs().max() if known.any() else torch.tensor(torch.inf)
    jumps = any(node.target in _JUMPS for node in network.graph.nodes)  # which rounding may take a value across
    if not bool(difference <= _READ_AGREEMENT * (largest + 1e-6)) and not (
        jumps and bool(difference <= 1000 * shaken(network, points, ours, generator))
    ):
        raise UnsupportedLayer(
            f"{path} was read wrongly: outputs are up to {float(largest):.3g}, and {who} differs by "
            f"{float(difference):.3g}"
        )


def tensor_proto(name: str, values: Tensor) -> bytes:
    """Return a tensor as ONNX has it in files of their own."""
    content: bytes = _package("onnx").numpy_helper.from_array(values.numpy(), name).SerializeToString()
    return content


def write_onnx(network: nn.Module, input_shape: tuple[int, ...], path: Path) -> float:
    """Write the network to `path`, for batches of any size, and return how far onnxruntime's outputs are from torch's.

    Raises ConfigError where onnx or onnxruntime is not installed, or fails on the network, or the two differ by more
    than 1e-5 of the largest output; then nothing is written.
    """
    _package("onnx")
    runtime = _package("onnxruntime")
    generator = torch.Generator().manual_seed(0)
    example = torch.rand(4, *input_shape, generator=generator)
    network = network.cpu().float()
    with tempfile.TemporaryDirectory() as folder, evaluating(network), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's own deprecations
        file = Path(folder) / "network.onnx"
        try:  # attention in operations, and lengths that are the batch's
            written: nn.Module = symbolic(network, example[:2]).eval()
        except Exception:  # the exporter has its own way to trace
            written = network
        torch.onnx.export(
            written,
            (example[:1],),
            str(file),
            dynamo=False,
            opset_version=_OPSET_OUT,
            input_names=["input"],
            output_names=["output"],
            dynamic_axes={"input": {0: "batch"}, "output": {0: "batch"}},
        )
        content = file.read_bytes()
        options = runtime.SessionOptions()
        options.log_severity_level = 4  # what goes wrong is said below
        try:
            session = runtime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
            theirs = torch.from_numpy(session.run(None, {"input": example.numpy()})[0])
        except Exception as error:
            why = str(error).partition("\n")[0]
            raise ConfigError(f"onnxruntime fails on the exported network: {why}; {path} was not written") from error
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
    if len(sizes) == 1 and sizes[0]:
        return (int(sizes[0]),)
    if len(sizes) < 2 or sizes[0] not in (1, None, 0) or not all(sizes[1:]):
        shown = [d.dim_param or "?" if size is None else size for d, size in zip(dimensions, sizes, strict=True)]
        raise UnsupportedLayer(
            f"{path}: input {value.name!r} has shape {shown}; the first dimension has to be the batch (1, or free), "
            f"and all others fixed"
        )
    return tuple(int(size) for size in sizes[1:] if size)
