"""Files from elsewhere: what is read is what onnxruntime runs, and what bounds say of it is true."""

import warnings

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from etb_plugin import Box, bound
from etb_plugin.errors import UnsupportedLayer
from etb_plugin.networks import onnx as files
from etb_plugin.networks.onnx import read_onnx, write_onnx

RNG = np.random.default_rng(0)


def f(*shape):
    return RNG.normal(size=shape).astype(np.float32)


def i(*values):
    return np.array(values, np.int64)


def written(path, nodes, constants, shape, opset=13, kind=TensorProto.FLOAT):
    """Write a file of `nodes` (operation, inputs, outputs, attributes), from x to y; two blanks leave an input out."""
    graph = helper.make_graph(
        [helper.make_node(op, ins.split(" "), outs.split(" "), **attributes) for op, ins, outs, attributes in nodes],
        "g",
        [helper.make_tensor_value_info("x", kind, shape)],
        [helper.make_tensor_value_info("y", kind, ["batch", "outputs"] if len(shape) > 1 else ["outputs"])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8), str(path))
    return path


IMAGE, FLAT = [1, 2, 6, 6], [1, 6]
RANK = {"r": i(1, -1)}
# name: nodes, constants, input shape, opset. Those on images end in a Reshape to [1, -1].
CORPUS = {
    "gemm": ([("Gemm", "x w b", "y", {"transB": 1, "alpha": 0.5})], {"w": f(4, 6), "b": f(4)}, FLAT, 13),
    "matmul left": ([("MatMul", "w x", "0", {}), ("Relu", "0", "y", {})], {"w": f(4, 6)}, [1, 6, 1], 13),
    "gather one": ([("Gather", "x k", "0", {"axis": 1}), ("Unsqueeze", "0 a", "y", {})], {"k": np.int64(2), "a": i(1)}, FLAT, 13),
    "gather some": ([("Gather", "x k", "y", {"axis": 1})], {"k": i(2, 0, -1)}, FLAT, 13),
    "slice": ([("Slice", "x s e a t", "y", {})], {"s": i(4), "e": i(0), "a": i(1), "t": i(-2)}, FLAT, 13),
    "slice old": ([("Slice", "x", "y", {"starts": [1], "ends": [100], "axes": [1]})], {}, FLAT, 9),
    "split": ([("Split", "x s", "a b", {"axis": 1}), ("Concat", "b a", "y", {"axis": 1})], {"s": i(2, 4)}, FLAT, 13),
    "split old": ([("Split", "x", "a b", {"axis": 1, "split": [3, 3]}), ("Max", "b a", "y", {})], {}, FLAT, 11),
    "concat constant": ([("Concat", "c x c", "y", {"axis": 1})], {"c": f(1, 2)}, FLAT, 13),
    "where": ([("Where", "m x c", "y", {})], {"m": np.array([True, False] * 3), "c": f(1, 6)}, FLAT, 13),
    "expand": ([("Unsqueeze", "x a", "0", {}), ("Expand", "0 s", "1", {}), ("Reshape", "1 r", "y", {})], {"a": i(1), "s": i(1, 3, 6)} | RANK, FLAT, 13),
    "tile": ([("Tile", "x s", "y", {})], {"s": i(1, 2)}, FLAT, 13),
    "reduce mean": ([("ReduceMean", "x", "y", {"axes": [2, 3], "keepdims": 0})], {}, IMAGE, 13),
    "reduce mean new": ([("ReduceMean", "x a", "0", {}), ("Reshape", "0 r", "y", {})], {"a": i(2, 3)} | RANK, IMAGE, 18),
    "reduce sum": ([("ReduceSum", "x a", "y", {"keepdims": 0})], {"a": i(2, 3)}, IMAGE, 13),
    "reduce max": ([("ReduceMax", "x", "y", {"axes": [2, 3], "keepdims": 0})], {}, [1, 2, 2, 3], 13),
    "reduce min": ([("ReduceMin", "x", "0", {"axes": [1]}), ("Flatten", "0", "y", {})], {}, [1, 3, 2], 13),
    "pow sqrt": ([("Pow", "c two", "0", {}), ("Sqrt", "0", "1", {}), ("Mul", "x 1", "y", {})], {"c": f(1, 6), "two": np.float32(2)}, FLAT, 13),
    "div": ([("Div", "x c", "y", {})], {"c": f(1, 6)}, FLAT, 13),
    "sub left": ([("Sub", "c x", "y", {})], {"c": f(6)}, FLAT, 13),
    "neg abs": ([("Neg", "x", "0", {}), ("Abs", "0", "y", {})], {}, FLAT, 13),
    "min max": ([("Min", "x c", "0", {}), ("Max", "0 d x", "y", {})], {"c": f(1, 6), "d": f(1, 6)}, FLAT, 13),
    "clip one-sided": ([("Clip", "x low", "y", {})], {"low": np.float32(0.3)}, FLAT, 13),
    "clip old": ([("Clip", "x", "y", {"min": -0.5, "max": 0.5})], {}, FLAT, 9),
    "leaky": ([("LeakyRelu", "x", "y", {"alpha": 0.2})], {}, FLAT, 13),
    "prelu": ([("PRelu", "x s", "0", {}), ("Reshape", "0 r", "y", {})], {"s": abs(f(2, 1, 1))} | RANK, IMAGE, 13),
    "prelu elementwise": ([("PRelu", "x s", "0", {}), ("Reshape", "0 r", "y", {})], {"s": abs(f(2, 6, 6))} | RANK, IMAGE, 13),
    "hard sigmoid": ([("HardSigmoid", "x", "y", {"alpha": 0.3, "beta": 0.4})], {}, FLAT, 13),
    "sum mean": ([("Sum", "x c x", "0", {}), ("Mean", "0 x", "y", {})], {"c": f(1, 6)}, FLAT, 13),
    "conv same": ([("Conv", "x w b", "0", {"auto_pad": "SAME_UPPER", "strides": [2, 2]}), ("Reshape", "0 r", "y", {})], {"w": f(3, 2, 3, 3), "b": f(3)} | RANK, IMAGE, 13),
    "conv uneven pads": ([("Conv", "x w", "0", {"pads": [0, 1, 1, 0]}), ("Reshape", "0 r", "y", {})], {"w": f(3, 2, 3, 3)} | RANK, IMAGE, 13),
    "conv groups": ([("Conv", "x w", "0", {"group": 2, "dilations": [2, 2]}), ("Relu", "0", "1", {}), ("Flatten", "1", "y", {})], {"w": f(4, 1, 3, 3)}, IMAGE, 13),
    "conv 1d": ([("Conv", "x w", "0", {"pads": [1, 1]}), ("Flatten", "0", "y", {})], {"w": f(3, 2, 3)}, [1, 2, 6], 13),
    "conv transpose": ([("ConvTranspose", "x w b", "0", {"strides": [2, 2], "pads": [1, 1, 1, 1], "output_padding": [1, 1]}), ("Reshape", "0 r", "y", {})], {"w": f(2, 3, 3, 3), "b": f(3)} | RANK, [1, 2, 3, 3], 13),
    "conv transpose uneven": ([("ConvTranspose", "x w b", "0", {"strides": [2, 2], "pads": [0, 2, 1, 1]}), ("Reshape", "0 r", "y", {})], {"w": f(2, 3, 3, 3), "b": f(3)} | RANK, [1, 2, 3, 3], 13),
    "conv transpose same": ([("ConvTranspose", "x w", "0", {"strides": [2, 3], "auto_pad": "SAME_UPPER"}), ("Reshape", "0 r", "y", {})], {"w": f(2, 3, 4, 4)} | RANK, [1, 2, 3, 3], 13),
    "conv transpose to a shape": ([("ConvTranspose", "x w", "0", {"strides": [2, 2], "output_shape": [6, 5], "group": 2}), ("Reshape", "0 r", "y", {})], {"w": f(2, 3, 3, 3)} | RANK, [1, 2, 3, 3], 13),
    "batch norm": ([("BatchNormalization", "x s b m v", "0", {"epsilon": 0.1}), ("Flatten", "0", "y", {})], {"s": f(2), "b": f(2), "m": f(2), "v": abs(f(2))}, IMAGE, 13),
    "max pool": ([("MaxPool", "x", "0", {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1]}), ("Flatten", "0", "y", {})], {}, IMAGE, 13),
    "max pool same": ([("MaxPool", "x", "0", {"kernel_shape": [3, 2], "strides": [2, 2], "auto_pad": "SAME_UPPER"}), ("Flatten", "0", "y", {})], {}, [1, 2, 6, 5], 13),
    "max pool uneven": ([("MaxPool", "x", "0", {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [2, 0, 0, 1], "ceil_mode": 1}), ("Flatten", "0", "y", {})], {}, IMAGE, 13),
    "average pool uneven": ([("AveragePool", "x", "0", {"kernel_shape": [3, 2], "strides": [2, 2], "auto_pad": "SAME_LOWER"}), ("Flatten", "0", "y", {})], {}, [1, 2, 6, 5], 13),
    "average pool uneven, counted": ([("AveragePool", "x", "0", {"kernel_shape": [3, 3], "pads": [0, 0, 1, 2], "count_include_pad": 1}), ("Flatten", "0", "y", {})], {}, IMAGE, 13),
    "global max": ([("GlobalMaxPool", "x", "0", {}), ("Flatten", "0", "y", {})], {}, [1, 2, 2, 3], 13),
    "limits far away": ([("Min", "x c", "0", {}), ("Max", "d 0", "y", {})], {"c": np.float32(1e30), "d": f(1) - 1e30}, FLAT, 13),
    "average pool": ([("AveragePool", "x", "0", {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1], "strides": [2, 2]}), ("Flatten", "0", "y", {})], {}, IMAGE, 13),
    "average pool ceil": ([("AveragePool", "x", "0", {"kernel_shape": [3, 3], "ceil_mode": 1, "strides": [2, 2]}), ("Flatten", "0", "y", {})], {}, IMAGE, 13),
    "global average": ([("GlobalAveragePool", "x", "0", {}), ("Flatten", "0", "y", {})], {}, IMAGE, 13),
    "pad": ([("Pad", "x p v", "0", {}), ("Flatten", "0", "y", {})], {"p": i(0, 0, 1, 0, 0, 0, 0, 2), "v": np.float32(0.5)}, IMAGE, 13),
    "pad reflect": ([("Pad", "x p", "0", {"mode": "reflect"}), ("Flatten", "0", "y", {})], {"p": i(0, 0, 1, 2, 0, 0, 0, 1)}, IMAGE, 13),
    "pad edge": ([("Pad", "x p", "0", {"mode": "edge"}), ("Flatten", "0", "y", {})], {"p": i(0, 0, 1, 2, 0, 0, 0, 1)}, IMAGE, 13),
    "resize nearest": ([("Resize", "x  s", "0", {"mode": "nearest"}), ("Flatten", "0", "y", {})], {"s": np.array([1, 1, 2, 1.5], np.float32)}, IMAGE, 13),
    "resize linear": ([("Resize", "x  s", "0", {"mode": "linear"}), ("Flatten", "0", "y", {})], {"s": np.array([1, 1, 2, 1.5], np.float32)}, [1, 1, 4, 4], 13),
    "upsample old": ([("Upsample", "x s", "0", {"mode": "nearest"}), ("Flatten", "0", "y", {})], {"s": np.array([1, 1, 2, 2], np.float32)}, IMAGE, 9),
    "depth to space": ([("DepthToSpace", "x", "0", {"blocksize": 2, "mode": "CRD"}), ("Flatten", "0", "y", {})], {}, [1, 8, 2, 2], 13),
    "space to depth": ([("SpaceToDepth", "x", "0", {"blocksize": 2}), ("Flatten", "0", "y", {})], {}, IMAGE, 13),
    "squeeze all": ([("ReduceMean", "x", "0", {"axes": [2, 3]}), ("Squeeze", "0", "1", {}), ("Reshape", "1 r", "2", {}), ("Gemm", "2 w", "y", {})], {"w": f(2, 3), "r": i(1, 2)}, IMAGE, 13),
    "largest": ([("TopK", "x k", "y j", {})], {"k": i(3)}, FLAT, 13),
    "smallest, behind one another": ([("TopK", "x k", "0 j", {"axis": 1, "largest": 0}), ("Flatten", "0", "y", {})], {"k": i(2)}, [1, 4, 3], 13),
    "transpose squeeze": ([("Transpose", "x", "0", {"perm": [0, 2, 1]}), ("Squeeze", "0 a", "y", {})], {"a": i(1)}, [1, 6, 1], 13),
    "shape": ([("Shape", "x", "0", {}), ("Gather", "0 z", "1", {"axis": 0}), ("Unsqueeze", "1 z1", "2", {}), ("Concat", "2 m", "3", {"axis": 0}), ("Reshape", "x 3", "y", {})], {"z": np.int64(0), "z1": i(0), "m": i(-1)}, IMAGE, 13),
    "cast constant of shape": ([("ConstantOfShape", "s", "0", {}), ("Cast", "0", "1", {"to": 1}), ("Add", "x 1", "y", {})], {"s": i(1, 6)}, FLAT, 13),
    "identity dropout": ([("Identity", "x", "0", {}), ("Dropout", "0", "y", {})], {}, FLAT, 13),
}  # fmt: skip
SMOOTH = {
    name.lower(): ([(name, "x", "0", attributes), ("Gemm", "0 w", "y", {})], {"w": f(6, 4)}, FLAT, opset)
    for name, attributes, opset in (
        *(("Sigmoid", {}, 13), ("Tanh", {}, 13), ("Softplus", {}, 13), ("Elu", {"alpha": 0.5}, 13), ("Selu", {}, 13)),
        *(("Gelu", {}, 20), ("Gelu", {"approximate": "tanh"}, 20), ("HardSwish", {}, 14), ("Mish", {}, 18)),
        *(("Erf", {}, 13), ("Sin", {}, 13), ("Cos", {}, 13), ("Atan", {}, 13), ("Softsign", {}, 13)),
    )
}
ONE = {"half": np.float32(0.5), "one": np.float32(1), "root": np.float32(2**0.5), "three": np.float32(3)}
SMOOTH |= {
    "silu written out": ([("Sigmoid", "x", "0", {}), ("Mul", "x 0", "y", {})], {}, FLAT, 13),
    "gelu written out": ([("Div", "x root", "0", {}), ("Erf", "0", "1", {}), ("Add", "1 one", "2", {}), ("Mul", "x 2", "3", {}), ("Mul", "3 half", "y", {})], ONE, FLAT, 13),
    "gelu tanh written out": ([("Pow", "x three", "0", {}), ("Mul", "0 a", "1", {}), ("Add", "x 1", "2", {}), ("Mul", "2 b", "3", {}), ("Tanh", "3", "4", {}), ("Add", "4 one", "5", {}), ("Mul", "half x", "6", {}), ("Mul", "6 5", "y", {})], ONE | {"a": np.float32(0.044715), "b": np.float32((2 / np.pi) ** 0.5)}, FLAT, 13),
    "celu": ([("Celu", "x", "y", {"alpha": 0.5})], {}, FLAT, 13),
    "softplus past a threshold": ([("Mul", "x c", "0", {}), ("Softplus", "0", "1", {}), ("Greater", "0 t", "2", {}), ("Where", "2 0 1", "y", {})], {"c": 30 * f(1, 6), "t": np.float32(20)}, FLAT, 18),
    "mish written out": ([("Softplus", "x", "0", {}), ("Tanh", "0", "1", {}), ("Mul", "x 1", "y", {})], {}, FLAT, 13),
    "hard swish written out": ([("HardSigmoid", "x", "0", {"alpha": 1 / 6, "beta": 0.5}), ("Mul", "x 0", "y", {})], {}, FLAT, 13),
}  # fmt: skip
TOKENS = [1, 2, 6]
VECTOR = {
    "no batch": ([("MatMul", "x w", "0", {}), ("Add", "0 b", "1", {}), ("Relu", "1", "2", {}), ("MatMul", "2 v", "y", {})], {"w": f(6, 4), "b": f(4), "v": f(4, 2)}, [6], 13),
    "no batch, one number": ([("Mul", "x a", "0", {}), ("Relu", "0", "y", {})], {"a": np.float32(-2)}, [1], 13),
}  # fmt: skip
CURVED = {
    "exp": ([("Exp", "x", "y", {})], {}, FLAT, 13),
    "logarithm": ([("Exp", "x", "0", {}), ("Add", "0 one", "1", {}), ("Log", "1", "y", {})], ONE, FLAT, 13),
    "reciprocal": ([("Exp", "x", "0", {}), ("Reciprocal", "0", "y", {})], {}, FLAT, 13),
    "root": ([("Mul", "x x", "0", {}), ("Add", "0 one", "1", {}), ("Sqrt", "1", "y", {})], ONE, FLAT, 13),
    "powers": ([("Pow", "x two", "0", {}), ("Pow", "x three", "1", {}), ("Sub", "0 1", "y", {})], ONE | {"two": np.float32(2)}, FLAT, 13),
    "quotient": ([("Exp", "x", "0", {}), ("Div", "x 0", "y", {})], {}, FLAT, 13),
    "softmax inside": ([("Softmax", "x", "0", {"axis": -1}), ("Mul", "0 x", "1", {}), ("Flatten", "1", "y", {})], {}, TOKENS, 13),
    "log-softmax inside": ([("LogSoftmax", "x", "0", {"axis": 1}), ("Flatten", "0", "y", {})], {}, TOKENS, 13),
    "attention": ([("Transpose", "x", "0", {"perm": [0, 2, 1]}), ("MatMul", "x 0", "1", {}), ("Softmax", "1", "2", {"axis": -1}), ("MatMul", "2 x", "3", {}), ("Flatten", "3", "y", {})], {}, TOKENS, 13),
    "einsum": ([("Einsum", "x x", "0", {"equation": "bij,bkj->bik"}), ("Flatten", "0", "y", {})], {}, TOKENS, 13),
    "layer norm": ([("LayerNormalization", "x s b", "0", {"epsilon": 1e-2}), ("Flatten", "0", "y", {})], {"s": f(6), "b": f(6)}, TOKENS, 17),
    "layer norm of all": ([("LayerNormalization", "x s", "0", {"axis": 1}), ("Flatten", "0", "y", {})], {"s": f(2, 6)}, TOKENS, 17),
    "instance norm": ([("InstanceNormalization", "x s b", "0", {"epsilon": 1e-2}), ("Flatten", "0", "y", {})], {"s": f(2), "b": f(2)}, TOKENS, 13),
    "group norm": ([("GroupNormalization", "x s b", "0", {"num_groups": 1}), ("Flatten", "0", "y", {})], {"s": f(2), "b": f(2)}, TOKENS, 21),
}  # fmt: skip
CORPUS |= SMOOTH | CURVED | VECTOR
CHOSEN = {
    "leaky by a choice": ([("GreaterOrEqual", "x z", "0", {}), ("Mul", "x c", "1", {}), ("Where", "0 x 1", "y", {})], {"z": np.float32(0), "c": np.float32(0.1)}, FLAT, 13),
    "soft shrink by choices": ([("Less", "x low", "0", {}), ("Add", "x t", "1", {}), ("Greater", "x t", "2", {}), ("Sub", "x t", "3", {}), ("Where", "2 3 z", "4", {}), ("Where", "0 1 4", "y", {})], {"z": np.float32(0), "t": np.float32(0.3), "low": np.float32(-0.3)}, FLAT, 13),
    "hard tanh by masks": ([("Less", "x low", "0", {}), ("Not", "0", "1", {}), ("Cast", "1", "2", {"to": 1}), ("Mul", "x 2", "3", {}), ("Cast", "0", "4", {"to": 1}), ("Mul", "4 low", "5", {}), ("Add", "3 5", "y", {})], {"low": np.float32(-0.5)}, FLAT, 13),
    "between two numbers": ([("Greater", "x low", "0", {}), ("Less", "x t", "1", {}), ("And", "0 1", "2", {}), ("Sign", "x", "3", {}), ("Mul", "3 t", "4", {}), ("Where", "2 x 4", "y", {})], {"t": np.float32(0.3), "low": np.float32(-0.3)}, FLAT, 13),
    "outside two numbers": ([("LessOrEqual", "x low", "0", {}), ("GreaterOrEqual", "x t", "1", {}), ("Or", "0 1", "2", {}), ("Abs", "x", "3", {}), ("Where", "2 3 t", "y", {})], {"t": np.float32(0.3), "low": np.float32(-0.3)}, FLAT, 13),
    "shrink": ([("Shrink", "x", "y", {"lambd": 0.3, "bias": 0.3})], {}, FLAT, 13),
    "a threshold of 0": ([("ThresholdedRelu", "x", "y", {"alpha": 0.0})], {}, FLAT, 13),
    "elu by a choice": ([("Greater", "x z", "0", {}), ("Exp", "x", "1", {}), ("Sub", "1 one", "2", {}), ("Where", "0 x 2", "y", {})], {"z": np.float32(0), "one": np.float32(1)}, FLAT, 13),
}  # fmt: skip
MAXIMUM = [
    ("ReduceMax", "x", "0", {"axes": [-1]}),
    ("Max", "far 0", "m", {}),
    ("Sub", "x m", "u", {}),
    ("Exp", "u", "e", {}),
]
TOTAL = [("ReduceSum", "e one", "1", {"keepdims": 0}), ("Reshape", "1 s", "t", {})]
JAX = {
    "softmax written out": ([*MAXIMUM, *TOTAL, ("Div", "e t", "2", {}), ("MatMul", "2 w", "y", {})], {"s": i(1, 1), "one": i(1)}, FLAT),
    "log-softmax written out": ([*MAXIMUM, *TOTAL, ("Log", "t", "2", {}), ("Sub", "u 2", "3", {}), ("MatMul", "3 w", "y", {})], {"s": i(1, 1), "one": i(1)}, FLAT),
    "log sum exp written out": ([*MAXIMUM, *TOTAL, ("Abs", "t", "2", {}), ("Log", "2", "3", {}), ("Add", "3 m", "4", {}), ("Sub", "x 4", "y", {})], {"s": i(1, 1), "one": i(1)}, FLAT),
    "softmax over tokens": ([*MAXIMUM, *TOTAL, ("Expand", "t q", "2", {}), ("Div", "e 2", "3", {}), ("Flatten", "3", "y", {})], {"s": i(1, 2, 1), "one": i(2), "q": i(1, 2, 6)}, [1, 2, 6]),
    "softplus, where it is a number": ([("Max", "x z", "0", {}), ("Sub", "x z", "1", {}), ("Equal", "1 1", "2", {}), ("Not", "2", "3", {}), ("Abs", "1", "4", {}), ("Neg", "4", "5", {}), ("Exp", "5", "6", {}), ("Add", "6 o", "7", {}), ("Log", "7", "8", {}), ("Add", "0 8", "9", {}), ("Where", "3 x 9", "y", {})], {}, FLAT),
    "where it is finite": ([("IsInf", "x", "0", {}), ("IsNaN", "x", "1", {}), ("Or", "0 1", "2", {}), ("Where", "2 z x", "3", {}), ("Relu", "3", "y", {})], {}, FLAT),
    "tokens through a linear layer": ([("Reshape", "x flat", "0", {}), ("Gemm", "0 w b", "1", {}), ("Add", "1 b", "2", {}), ("Tanh", "2", "3", {}), ("Reshape", "3 back", "4", {}), ("Flatten", "4", "y", {})], {"flat": i(-1, 6), "back": i(-1, 2, 2, 2), "b": f(4)}, [1, 2, 6]),
}  # fmt: skip
JAX = {
    name: (
        nodes,
        {"z": np.float32(0), "o": np.float32(1), "far": np.float32(-np.inf), "w": f(6, 4)} | constants,
        shape,
        13,
    )
    for name, (nodes, constants, shape) in JAX.items()
}
SUMMED = {
    name: ([(name, "x", "0", {"axes": [1], "keepdims": 0}), ("Flatten", "0", "y", {})], {}, [1, 2, 6], 13)
    for name in ("ReduceL1", "ReduceLogSumExp", "ReduceSumSquare")
}
SUMMED |= {
    "ReduceL2": ([("Exp", "x", "0", {}), ("ReduceL2", "0", "1", {"axes": [1]}), ("Flatten", "1", "y", {})], {}, [1, 2, 6], 13),
    "ReduceLogSum": ([("Exp", "x", "0", {}), ("ReduceLogSum", "0", "1", {"axes": [1]}), ("Flatten", "1", "y", {})], {}, [1, 2, 6], 13),
}  # fmt: skip
LATER = {
    "cosh and sinh": ([("Cosh", "x", "0", {}), ("Sinh", "x", "1", {}), ("Add", "0 1", "y", {})], {}, FLAT, 13),
    "sums so far": ([("CumSum", "x a", "0", {}), ("CumSum", "0 a", "y", {"reverse": 1})], {"a": np.int64(1)}, FLAT, 14),
    "local response": ([("LRN", "x", "0", {"size": 3, "alpha": 2.0, "bias": 1.5}), ("Flatten", "0", "y", {})], {}, IMAGE, 13),
    "unit length": ([("LpNormalization", "x", "0", {"axis": 1}), ("Flatten", "0", "y", {})], {}, [1, 2, 6], 13),
    "products": ([("ReduceProd", "x", "0", {"axes": [1, 2], "keepdims": 1}), ("Flatten", "0", "y", {})], {}, [1, 2, 2, 2], 13),
    "products, dropped": ([("ReduceProd", "x", "y", {"axes": [1, 3], "keepdims": 0})], {}, [1, 2, 2, 2], 13),
    "triangles": ([("Trilu", "x k", "0", {"upper": 0}), ("Trilu", "0", "1", {}), ("Flatten", "1", "y", {})], {"k": np.int64(1)}, [1, 3, 4], 14),
    "rms norm": ([("RMSNormalization", "x s", "0", {"epsilon": 1e-2}), ("Flatten", "0", "y", {})], {"s": f(6)}, [1, 2, 6], 23),
    "swish": ([("Swish", "x", "0", {}), ("Swish", "0", "y", {"alpha": 1.5})], {}, FLAT, 24),
    "attention of heads": ([("Attention", "x x x", "0", {"is_causal": 1}), ("Attention", "0 x x m", "1", {"scale": 0.5}), ("Flatten", "1", "y", {})], {"m": f(3, 3)}, [1, 2, 3, 4], 23),
    "attention with a mask": ([("Attention", "x x x m", "0", {}), ("Flatten", "0", "y", {})], {"m": np.tri(3, dtype=bool)}, [1, 2, 3, 4], 23),
}  # fmt: skip
JUMPS = {
    "signs": ([("Sign", "x", "0", {}), ("Mul", "0 c", "y", {})], {"c": f(1, 6)}, FLAT, 13),
    "rounding": ([("Mul", "x c", "0", {}), ("Round", "0", "1", {}), ("Floor", "0", "2", {}), ("Ceil", "0", "3", {}), ("Sum", "1 2 3 3", "y", {})], {"c": 5 * f(1, 6)}, FLAT, 13),
    "a hard shrink": ([("Shrink", "x", "y", {"lambd": 0.3})], {}, FLAT, 13),
    "a threshold": ([("ThresholdedRelu", "x", "y", {"alpha": 0.7})], {}, FLAT, 13),
    "which is larger": ([("Split", "x", "0 1", {"axis": 1}), ("Greater", "0 1", "2", {}), ("Where", "2 0 c", "y", {})], {"c": f(1, 3)}, FLAT, 13),
    "quantized": ([("QuantizeLinear", "x s z", "0", {}), ("DequantizeLinear", "0 s z", "y", {})], {"s": np.float32(0.01), "z": np.uint8(100)}, FLAT, 13),
    "quantized, of 8 bits with a sign": ([("QuantizeLinear", "x s z", "0", {}), ("DequantizeLinear", "0 s z", "y", {})], {"s": np.float32(0.02), "z": np.int8(-3)}, FLAT, 13),
    "quantized by channels": ([("QuantizeLinear", "x s z", "0", {"axis": 1}), ("DequantizeLinear", "0 s z", "1", {"axis": 1}), ("Flatten", "1", "y", {})], {"s": np.array([0.01, 0.05], np.float32), "z": np.array([7, 120], np.uint8)}, IMAGE, 13),
    "quantized to 16 bits": ([("QuantizeLinear", "x s", "0", {"output_dtype": 4}), ("DequantizeLinear", "0 s", "y", {})], {"s": np.float32(0.001)}, FLAT, 21),
}  # fmt: skip
CORPUS |= CHOSEN | JAX | SUMMED | LATER | JUMPS
REFUSED = {
    "conditions joined": ([("Greater", "x c", "0", {}), ("Less", "x d", "1", {}), ("And", "0 1", "2", {}), ("Where", "2 d x", "y", {})], {"c": f(1, 6), "d": f(1, 6)}, FLAT, 13),
    "one of two conditions": ([("Greater", "x c", "0", {}), ("Less", "x d", "1", {}), ("Or", "0 1", "2", {}), ("Cast", "2", "y", {"to": 1})], {"c": f(1, 6), "d": f(1, 6)}, FLAT, 13),
}  # fmt: skip


def file_of(case, folder):
    nodes, constants, shape, opset = case
    return written(folder / "n.onnx", nodes, constants, shape, opset)


@pytest.mark.parametrize("name", CORPUS)
def test_an_operation_is_read_as_onnxruntime_runs_it_and_bounded_soundly(name, tmp_path):
    network, shape = read_onnx(file_of(CORPUS[name], tmp_path))  # refuses a difference
    x = torch.rand(3, *shape)
    box = Box.around(x, 0.2, clip=None)
    points = box.lower + (box.upper - box.lower) * torch.rand(200, *x.shape).round()
    values = torch.stack([network(p) for p in points])
    for method in ("ibp", "crown"):
        interval = bound(method, network, box)
        assert (interval.lower <= values.amin(0) + 1e-4).all()
        assert (values.amax(0) <= interval.upper + 1e-4).all()


@pytest.mark.parametrize(
    ("name", "target"),
    [
        ("softmax written out", torch.nn.functional.softmax),
        ("softmax over tokens", torch.nn.functional.softmax),
        ("log-softmax written out", torch.nn.functional.log_softmax),
        ("log sum exp written out", torch.logsumexp),
    ],
)
def test_what_jax_writes_out_is_one_operation(name, target, tmp_path):
    """Exponentials over their sum, which no bound knows to lie between 0 and 1, are what the bounds know as softmax."""
    network, _ = read_onnx(file_of(JAX[name], tmp_path))
    targets = [node.target for node in network.graph.nodes]
    assert target in targets
    assert torch.exp not in targets


def test_exponentials_over_another_sum_are_no_softmax(tmp_path):
    """Sums along the other of two dimensions of one size, and of other exponentials."""
    constants = {"s": i(1, 3, 1), "one": i(1), "far": np.float32(-np.inf)}
    nodes = [*MAXIMUM, *TOTAL, ("Div", "e t", "2", {}), ("Flatten", "2", "y", {})]
    network, _ = read_onnx(written(tmp_path / "n.onnx", nodes, constants, [1, 3, 3]))
    assert torch.exp in [node.target for node in network.graph.nodes]
    nodes = [
        *MAXIMUM,
        ("Exp", "x", "e2", {}),
        ("ReduceSum", "e2 one", "t", {}),
        ("Div", "e t", "2", {}),
        ("Flatten", "2", "y", {}),
    ]
    network, _ = read_onnx(written(tmp_path / "n.onnx", nodes, constants, [1, 3, 3]))
    assert torch.exp in [node.target for node in network.graph.nodes]


class Frames(nn.Module):
    """Convolutions and attention over what is in the batch, and a way back."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.tokens, self.last = nn.Linear(9, 12), nn.Linear(3 * 4 * 4, 3)
        nn.init.uniform_(self.norm.running_mean, -0.2, 0.2)

    def forward(self, x):
        h = torch.nn.functional.max_pool2d(torch.relu(self.norm(self.conv(x.flatten(0, 1)))), 2)
        q, k, v = self.tokens(h.flatten(2)).chunk(3, -1)
        h = torch.softmax(q @ k.transpose(1, 2), -1) @ v
        return self.last(h.reshape(x.shape[0], -1))


@pytest.mark.parametrize("free", [True, False])
def test_layers_of_what_a_network_puts_into_the_batch_are_read(free, tmp_path):
    network, file = Frames().eval(), tmp_path / "n.onnx"
    names = {
        "input_names": ["x"],
        "output_names": ["y"],
        "dynamic_axes": {"x": {0: "n"}, "y": {0: "n"}} if free else None,
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(network, (torch.rand(1, 3, 1, 6, 6),), str(file), dynamo=False, opset_version=17, **names)
    read, shape = read_onnx(file)
    box = Box.around(torch.rand(2, *shape), 0.01)
    for method in ("ibp", "crown"):
        ours, theirs = (bound(method, one, box) for one in (network, read))
        torch.testing.assert_close((ours.lower, ours.upper), (theirs.lower, theirs.upper), rtol=1e-4, atol=1e-5)


def test_tokens_that_stay_in_the_batch_are_refused(tmp_path):
    constants = {"flat": i(-1, 6), "w": f(6, 4), "k": i(0)}
    for after in ([("Flatten", "1", "y", {})], [("Gather", "1 k", "y", {"axis": 0})], [("Transpose", "1", "y", {})]):
        nodes = [("Reshape", "x flat", "0", {}), ("MatMul", "0 w", "1", {}), *after]
        with pytest.raises(UnsupportedLayer, match=r"mixes the batch into the features|must return one tensor"):
            read_onnx(written(tmp_path / "n.onnx", nodes, constants, [1, 2, 6]))


def test_the_newest_opset_is_read_as_the_older_ones_are(tmp_path):
    newest = min(28, onnx.defs.onnx_opset_version())
    for name, (nodes, constants, shape, _) in (SMOOTH | CURVED).items():
        file = written(tmp_path / "n.onnx", nodes, constants, shape, newest)
        model = onnx.load(file)
        model.ir_version = onnx.helper.find_min_ir_version_for(list(model.opset_import))
        onnx.save(model, file)
        assert read_onnx(file)[1] == tuple(shape[1:]), name


@pytest.mark.parametrize("name", REFUSED)
def test_what_no_bound_takes_is_read_all_the_same_and_refused_by_name_by_the_bound(name, tmp_path):
    network, shape = read_onnx(file_of(REFUSED[name], tmp_path))
    assert network(torch.rand(2, *shape)).shape == (2, 6)
    with pytest.raises(UnsupportedLayer, match=r"neither affine nor|decides by values"):
        bound("ibp", network, Box.around(torch.rand(1, *shape), 0.1))


def test_a_constant_that_two_nodes_share_is_not_taken_for_another(tmp_path):
    """Counted among torch's buffers, which leave repeats out, the name of the third constant was the second's."""
    constants = {"b": f(1, 6), "c": f(1, 6), "d": f(1, 6)}
    nodes = [("Add", "x b", "0", {}), ("Mul", "0 c", "1", {}), ("Add", "1 b", "2", {}), ("Mul", "2 d", "y", {})]
    network, _ = read_onnx(written(tmp_path / "n.onnx", nodes, constants, FLAT))
    x = torch.rand(2, 6)
    want = ((x.numpy() + constants["b"]) * constants["c"] + constants["b"]) * constants["d"]
    np.testing.assert_allclose(network(x).detach().numpy(), want, rtol=1e-5, atol=1e-6)


def test_a_classifier_of_scikit_learn_is_read_beside_its_labels(tmp_path):
    """Scaled features, probabilities, and labels by operations that are not taken: no bound needs them."""
    constants = {"w": f(6, 5), "b": f(5), "v": f(5, 3), "names": i(4, 5, 6)}
    nodes = [
        helper.make_node("Scaler", ["x"], ["0"], domain="ai.onnx.ml", offset=[0.5] * 6, scale=[2.0, 1, 1, 1, 1, 3]),
        helper.make_node("MatMul", ["0", "w"], ["1"]),
        helper.make_node("Add", ["1", "b"], ["2"]),
        helper.make_node("Tanh", ["2"], ["3"]),
        helper.make_node("MatMul", ["3", "v"], ["4"]),
        helper.make_node("Softmax", ["4"], ["probabilities"], axis=1),
        helper.make_node("ArgMax", ["probabilities"], ["5"], axis=1),
        helper.make_node("ArrayFeatureExtractor", ["names", "5"], ["label"], domain="ai.onnx.ml"),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [None, 6])],
        [
            helper.make_tensor_value_info("label", TensorProto.INT64, [None]),
            helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, [None, 3]),
        ],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    opsets = [helper.make_opsetid("", 13), helper.make_opsetid("ai.onnx.ml", 1)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8), str(tmp_path / "n.onnx"))
    network, shape = read_onnx(tmp_path / "n.onnx")
    x = torch.rand(2, *shape)
    assert torch.allclose(network(x).sum(1), torch.ones(2))
    torch.testing.assert_close(files.file_outputs(tmp_path / "n.onnx", x).float(), network(x))


def test_a_network_that_came_out_differently_is_refused_with_the_difference(tmp_path, monkeypatch):
    file = written(tmp_path / "n.onnx", [("Abs", "x", "y", {})], {}, FLAT)
    monkeypatch.setitem(files.OPERATIONS, "Abs", lambda call: call.x)
    with pytest.raises(UnsupportedLayer, match=r"was read wrongly: outputs are up to .* onnxruntime differs by"):
        read_onnx(file)
    monkeypatch.setitem(__import__("sys").modules, "onnxruntime", None)
    with pytest.raises(UnsupportedLayer, match=r"was read wrongly: outputs are up to .* onnx differs by"):
        read_onnx(file)


@pytest.mark.parametrize(
    ("node", "words"),
    [
        (("MeanVarianceNormalization", "x", "y", {}), r"operation 'y' \(MeanVarianceNormalization\) is not taken"),
        (("LayerNormalization", "x x", "y", {}), "its input 1 has to be constant"),
        (("ReduceSum", "x z", "y", {}), "works along the batch"),
        (("MatMul", "x x", "y", {}), "mat1 and mat2|multiplies two|cannot be multiplied"),
    ],
)
def test_what_is_not_taken_is_refused_in_a_line(tmp_path, node, words):
    shape = [1, 2, 6] if "Norm" in node[0] else FLAT
    file = written(tmp_path / "n.onnx", [node], {"s": f(6 if node[0].startswith("L") else 2), "z": i(0)}, shape, 17)
    with pytest.raises(UnsupportedLayer, match=words) as refused:
        read_onnx(file)
    assert "\n" not in str(refused.value)


def test_places_of_the_largest_are_refused_where_something_takes_them(tmp_path):
    nodes = [("TopK", "x k", "v j", {}), ("Gather", "c j", "y", {})]
    with pytest.raises(UnsupportedLayer, match=r"operation 'v' \(TopK\): its output 'j' is not taken"):
        read_onnx(written(tmp_path / "n.onnx", nodes, {"k": i(3), "c": f(6)}, FLAT))


class Steps(nn.Module):
    """A sequence through a recurrent layer, and what is read of it."""

    def __init__(self, layer, read):
        super().__init__()
        self.layer, self.read = layer, read

    def forward(self, x):
        return self.read(*self.layer(x if self.layer.batch_first else x.transpose(0, 1)))


def read_again(network, shape, batch, file):
    """Return what is read of a network that torch has written, which is that network, and examples."""
    axes = {"x": {0: "b"}, "y": {0: "b"}} if batch == "free" else None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the old exporter, and of a batch that is not fixed
        torch.onnx.export(
            network, (torch.rand(1, *shape),), str(file), dynamo=False, opset_version=14,
            input_names=["x"], output_names=["y"], dynamic_axes=axes,
        )  # fmt: skip
    found, shape = read_onnx(file)
    x = torch.rand(3, *shape)
    torch.testing.assert_close(found(x), network(x))
    return found, x


def hidden(states):
    return states[0] if isinstance(states, tuple) else states


LAYERS = {"tanh": nn.RNN, "relu": lambda *a, **o: nn.RNN(*a, nonlinearity="relu", **o), "lstm": nn.LSTM, "gru": nn.GRU}
READ = {
    "outputs": ({}, lambda out, states: out.flatten(1)),
    "the last output": ({"bias": False}, lambda out, states: out[:, -1]),
    "both ways": ({"bidirectional": True}, lambda out, states: out.flatten(1)),
    "the last states": (
        {"bidirectional": True},
        lambda out, states: torch.cat((hidden(states)[-2], hidden(states)[-1]), 1),
    ),
    "two layers": ({"num_layers": 2}, lambda out, states: hidden(states).permute(1, 0, 2).flatten(1)),
    "time first": ({"batch_first": False}, lambda out, states: out[-1]),
    "the only state": ({}, lambda out, states: (states[1] if isinstance(states, tuple) else states).squeeze(0)),
}


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("read", READ)
@pytest.mark.parametrize("batch", ["free", pytest.param("fixed", marks=pytest.mark.slow)])
def test_recurrent_layers_that_torch_exports_are_read(kind, read, batch, tmp_path):
    torch.manual_seed(0)
    options, taken = READ[read]
    network = Steps(LAYERS[kind](3, 4, **{"batch_first": True} | options), taken).eval()
    found, x = read_again(network, (5, 3), batch, tmp_path / "n.onnx")
    here, there = (bound("ibp", one, Box.around(x, 0.1)) for one in (found, network))
    torch.testing.assert_close(here.lower, there.lower, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(here.upper, there.upper, atol=1e-5, rtol=1e-4)


class Attending(nn.Module):
    def __init__(self, kind):
        super().__init__()
        options = {"dropout": 0.0, "batch_first": True}
        self.kind, self.later = kind, torch.ones(4, 4, dtype=torch.bool).triu(1)
        self.heads = nn.MultiheadAttention(6, 2, batch_first=True)
        layer = nn.TransformerEncoderLayer(6, 2, 5, norm_first=True, **options)
        self.encoder = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)
        self.decoder = nn.TransformerDecoderLayer(6, 2, 5, **options)

    def forward(self, x):
        found = {
            "heads": lambda: self.heads(x, x, x, need_weights=False)[0],
            "encoder": lambda: self.encoder(x),
            "masked encoder": lambda: self.encoder(x, mask=self.later),
            "decoder": lambda: self.decoder(x, 2 * x, tgt_mask=self.later),
        }[self.kind]()
        return found.flatten(1)


@pytest.mark.parametrize(
    "kind", ["heads", "masked encoder", "decoder", pytest.param("encoder", marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("batch", ["free", pytest.param("fixed", marks=pytest.mark.slow)])
def test_attention_that_torch_exports_is_read(kind, batch, tmp_path):
    """torch puts the batch into one dimension with heads, and with tokens."""
    network = Attending(kind).eval()
    found, x = read_again(network, (4, 6), batch, tmp_path / "n.onnx")
    box = Box.around(x, 0.01)
    points = box.lower + (box.upper - box.lower) * torch.rand(200, *x.shape)
    for method in ("ibp", "crown"):
        interval = bound(method, found, box)
        assert all(
            (interval.lower <= found(p) + 1e-4).all() and (found(p) <= interval.upper + 1e-4).all() for p in points
        )


SEQUENCE = [1, 4, 3]
TURNED = ("Transpose", "x", "t", {"perm": [1, 0, 2]})


def recurrent(kind, gates, outputs="h", **attributes):
    ways = 2 if attributes.get("direction") == "bidirectional" else 1
    constants = {"w": f(ways, gates * 2, 3), "u": f(ways, gates * 2, 2), "b": f(ways, gates * 4), "a": i(0), "a1": i(1)}
    return (kind, "t w u b", outputs, {"hidden_size": 2} | attributes), constants


def of_recurrent(kind, gates, *after, outputs="h", **attributes):
    node, constants = recurrent(kind, gates, outputs, **attributes)
    return [TURNED, node, *after], constants | RANK, SEQUENCE, 14


TIMED = {
    "all states of both ways": of_recurrent("LSTM", 4, ("Transpose", "h", "0", {"perm": [2, 0, 1, 3]}), ("Flatten", "0", "y", {}), direction="bidirectional"),
    "states by step and way": of_recurrent("GRU", 3, ("Transpose", "h", "0", {"perm": [0, 2, 1, 3]}), ("Reshape", "0 s", "1", {}), ("Transpose", "1", "2", {"perm": [1, 0, 2]}), ("Flatten", "2", "y", {}), direction="bidirectional", linear_before_reset=1),
    "backwards, the last state": of_recurrent("RNN", 1, ("Squeeze", "l a", "y", {}), outputs=" l", direction="reverse", activations=["Relu"]),
    "a step of all": of_recurrent("RNN", 1, ("Squeeze", "h a1", "0", {}), ("Gather", "0 k", "1", {"axis": 0}), ("Relu", "1", "y", {})),
    "shifted, normalized and averaged": (*of_recurrent("RNN", 1, ("Squeeze", "h a1", "0", {}), ("Add", "0 shift", "1", {}), ("LayerNormalization", "1 c", "2", {}), ("ReduceMean", "2", "3", {"axes": [0], "keepdims": 0}), ("Relu", "3", "y", {}))[:3], 17),
    "the largest, kept, and scaled by step": of_recurrent("GRU", 3, ("Squeeze", "h a1", "0", {}), ("Mul", "shift 0", "1", {}), ("ReduceMax", "1", "2", {"axes": [0]}), ("Transpose", "2", "3", {"perm": [1, 0, 2]}), ("Flatten", "3", "y", {}), linear_before_reset=1),
    "steps cut, scaled and split": of_recurrent("LSTM", 4, ("Squeeze", "h a1", "0", {}), ("Slice", "0 one three a", "1", {}), ("Mul", "1 c", "2", {}), ("Split", "2", "3 4", {"axis": 0}), ("Concat", "4 3", "5", {"axis": 0}), ("MatMul", "5 m", "6", {}), ("Transpose", "6", "7", {"perm": [1, 2, 0]}), ("Flatten", "7", "y", {})),
}  # fmt: skip
EXTRA = {"shift": f(4, 1, 1), "k": np.int64(-2), "one": i(1), "three": i(3), "c": f(2), "m": f(2, 3), "s": i(0, 0, 4)}


@pytest.mark.parametrize("name", TIMED)
def test_values_whose_batch_comes_second_are_read(name, tmp_path):
    nodes, constants, shape, opset = TIMED[name]
    used = {part for node in nodes for part in node[1].split(" ")}
    known = {key: value for key, value in (constants | EXTRA).items() if key in used}
    found, shape = read_onnx(written(tmp_path / "n.onnx", nodes, known, shape, opset))  # refuses a difference
    x = torch.rand(4, *shape)
    torch.testing.assert_close(found(x), torch.cat([found(one) for one in x.split(1)]))  # examples stay apart


@pytest.mark.parametrize(
    ("after", "attributes", "words"),
    [
        ([("Flatten", "h", "y", {})], {}, "takes a value whose batch is dimension 2; it has to be the first"),
        ([("Squeeze", "h a1", "0", {}), ("Reshape", "0 r", "y", {})], {}, "must return one tensor of outputs"),
        ([("Squeeze", "h a1", "0", {}), ("ReduceSum", "0 a", "y", {})], {}, "must return one tensor of outputs"),
        ([("Squeeze", "h a1", "0", {}), ("ReduceSum", "0 a1", "y", {})], {}, "works along the batch"),
        ([("Flatten", "h", "y", {})], {"activations": ["Relu", "Tanh", "Tanh"]}, "other activations than torch's"),
        ([("Flatten", "h", "y", {})], {"clip": 1.0}, "other activations than torch's"),
    ],
)
def test_what_a_recurrent_network_does_to_its_batch_is_not_taken(after, attributes, words, tmp_path):
    nodes, constants, shape, opset = of_recurrent("LSTM", 4, *after, **attributes)
    with pytest.raises(UnsupportedLayer, match=words):
        read_onnx(written(tmp_path / "n.onnx", nodes, constants, shape, opset))


def loop(path, nodes, carried, after, constants, trips=3):
    """Write a file of a Loop from h, whose body has `nodes`; it gives the last h as `last`, and what each step gives as
    `all`, one behind the other."""
    body = helper.make_graph(
        [helper.make_node(op, ins.split(" "), outs.split(" "), **attributes) for op, ins, outs, attributes in nodes],
        "body",
        [
            helper.make_tensor_value_info("n", TensorProto.INT64, []),
            helper.make_tensor_value_info("on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("h", TensorProto.FLOAT, [1, 2]),
        ],
        [
            helper.make_tensor_value_info(name, TensorProto.BOOL if name == "on2" else TensorProto.FLOAT, None)
            for name in ("on2", "h2", "step")
        ],
    )
    before = [("Transpose", "x", "t", {"perm": [1, 0, 2]})]
    known = {"trips": np.int64(trips), "true": np.array(True), "zero": np.zeros((1, 2), np.float32)} | constants
    return written(
        path, [*before, ("Loop", f"trips true {carried}", "last all", {"body": body}), *after], known, [1, 3, 4]
    )


STEP = [
    ("Gather", "t n", "xt", {"axis": 0}), ("MatMul", "xt w", "0", {}), ("MatMul", "h u", "1", {}), ("Add", "0 1", "2", {}),
    ("Tanh", "2", "h2", {}), ("Identity", "h2", "step", {}), ("Identity", "on", "on2", {}),
]  # fmt: skip
OUT = [
    ("Transpose", "all", "3", {"perm": [1, 0, 2]}),
    ("Flatten", "3", "4", {}),
    ("Concat", "4 last", "y", {"axis": 1}),
]


def test_a_loop_of_a_known_number_of_steps_is_written_out(tmp_path):
    """A recurrent layer, as Keras has it: its last state, and all of them one behind the other."""
    weights = {"w": f(4, 2), "u": f(2, 2)}
    found, shape = read_onnx(loop(tmp_path / "n.onnx", STEP, "zero", OUT, weights))
    layer = nn.RNN(4, 2, bias=False, batch_first=True)
    layer.weight_ih_l0.data, layer.weight_hh_l0.data = (torch.from_numpy(weights[name].T.copy()) for name in "wu")
    x = torch.rand(5, *shape)
    states, last = layer(x)
    torch.testing.assert_close(found(x), torch.cat([states.flatten(1), last[0]], 1))
    interval = bound("crown", found, Box.around(x, 0.05))
    assert (interval.lower <= found(x)).all()
    assert (found(x) <= interval.upper).all()


def test_a_loop_ends_where_its_condition_does(tmp_path):
    nodes = [*STEP[:-1], ("Less", "n one", "on2", {})]
    found, _ = read_onnx(
        loop(tmp_path / "n.onnx", nodes, "zero", OUT, {"w": f(4, 2), "u": f(2, 2), "one": np.int64(1)})
    )
    assert found(torch.rand(5, 3, 4)).shape == (5, 2 * 2 + 2)


@pytest.mark.parametrize(
    ("nodes", "trips", "words"),
    [
        ([*STEP[:-1], ("ReduceSum", "h2", "5", {}), ("Greater", "5 zero", "6", {}), ("Squeeze", "6", "on2", {})], 3, "along the batch"),
        ([*STEP[:-1], ("ReduceMax", "h2", "5", {"axes": [1]}), ("Greater", "5 five", "on2", {})], 3, "depends on the input"),
        ([("Identity", "h", "h2", {}), ("Add", "h h", "step", {}), ("Identity", "on", "on2", {})], 5000, "takes more than 1000 steps"),
    ],
)  # fmt: skip
def test_a_loop_whose_steps_are_not_known_is_refused(nodes, trips, words, tmp_path):
    weights = {"w": f(4, 2), "u": f(2, 2), "five": np.float32(-5)}
    file = loop(tmp_path / "n.onnx", nodes, "zero", OUT, weights, trips)
    with pytest.raises(UnsupportedLayer, match=words):
        read_onnx(file)


class Exported(nn.Module):
    """What exporters make much of: shapes that are asked for, slices, padding, means, concatenation, upsampling."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 4, 3, padding="same"), nn.Conv2d(8, 4, 3, stride=2)
        self.norm, self.last = nn.BatchNorm2d(4), nn.Linear(4 * 3 * 3 + 4, 5)

    def forward(self, x):
        h = torch.relu(self.norm(self.first(x)))
        h = torch.cat([h[:, :, ::2, 1:7:2], nn.functional.max_pool2d(h, 2)[:, :, :, :3].clamp(max=2.0)], 1)
        h = nn.functional.interpolate(nn.functional.pad(h, (1, 1, 0, 1), value=0.1), scale_factor=2.0)[:, :, :8, :8]
        h = torch.relu(self.second(h))
        return self.last(torch.cat([h.reshape(h.size(0), -1), h.mean((2, 3))], 1))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("opset", [11, 13, 17, 20])
@pytest.mark.parametrize("batch", ["fixed", "free"])
def test_what_torch_exports_is_read(opset, batch, tmp_path):
    network, x = Exported().eval(), torch.rand(1, 1, 8, 8)
    axes = {"x": {0: "n"}, "y": {0: "n"}} if batch == "free" else None
    torch.onnx.export(
        network, (x,), str(tmp_path / "n.onnx"), dynamo=False, opset_version=opset, input_names=["x"],
        output_names=["y"], dynamic_axes=axes,
    )  # fmt: skip
    back, shape = read_onnx(tmp_path / "n.onnx")
    x = torch.rand(3, *shape)
    torch.testing.assert_close(back(x), network(x), rtol=1e-4, atol=1e-5)
    box = Box.around(x, 0.01)
    for name in ("ibp", "crown"):
        mine, theirs = bound(name, network, box), bound(name, back, box)
        assert (mine.lower - theirs.lower).abs().max() < 1e-3


class Transformer(nn.Module):
    """Four tokens and one for the class, whose place in the batch is asked for by its length."""

    def __init__(self):
        super().__init__()
        layer = nn.TransformerEncoderLayer(6, 2, 8, batch_first=True, norm_first=True, activation="gelu")
        self.token, self.last = nn.Parameter(torch.randn(1, 1, 6)), nn.Linear(6, 3)
        self.encoder = nn.TransformerEncoder(layer, 1, nn.LayerNorm(6), enable_nested_tensor=False)

    def forward(self, x):
        return self.last(self.encoder(torch.cat([self.token.expand(len(x), -1, -1), x.view(-1, 4, 6)], 1))[:, 0])


def test_a_transformer_is_written_read_and_bounded_alike(tmp_path):
    torch.manual_seed(0)
    network = Transformer().eval()
    assert write_onnx(network, (24,), tmp_path / "n.onnx") < 1e-5
    again, shape = read_onnx(tmp_path / "n.onnx")
    box = Box.around(torch.rand(2, 24), 0.01)
    assert shape == (24,)
    for method in ("ibp", "crown"):
        ours, read = (bound(method, one, box) for one in (network, again))
        torch.testing.assert_close(read.lower, ours.lower, rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(read.upper, ours.upper, rtol=1e-3, atol=1e-3)


def test_a_file_that_no_runtime_runs_is_refused_in_a_line(tmp_path, monkeypatch):
    def fails(*_):
        raise RuntimeError("no kernel for it\nin any of them")

    monkeypatch.setattr("etb_plugin.networks.onnx._running", fails)
    file = written(tmp_path / "n.onnx", [("Relu", "x", "y", {})], {}, FLAT)
    with pytest.raises(UnsupportedLayer, match=r"n\.onnx cannot be run: no kernel for it$"):
        read_onnx(file)
