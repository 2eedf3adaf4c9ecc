"""ONNX and VNN-LIB, in and out, and what is wrong with them said by line and column."""

import math

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from etb_plugin import Box, bound
from etb_plugin.errors import CheckpointError, ConfigError, UnsupportedLayer
from etb_plugin.networks import build
from etb_plugin.networks import onnx as files
from etb_plugin.networks.onnx import read_onnx, write_onnx
from etb_plugin.verification import Cascade, Case, PropertyCheck, Settings, Verdict, robustness
from etb_plugin.verification.posed import Posed
from etb_plugin.verification.vnnlib import read_vnnlib, vnnlib_text
from tests.conftest import fully_connected


@pytest.mark.parametrize("name", ["tiny", "cnn7-bn", "wk-resnet", "mlp-10x2"])
def test_a_network_comes_back_from_onnx_as_it_was(name, tmp_path):
    shape = (1, 8, 8)
    network = build(name, shape, 10, seed=0, normalization=((0.1,), (0.3,))).eval()
    assert write_onnx(network, shape, tmp_path / "n.onnx") <= 1e-5
    back, found = read_onnx(tmp_path / "n.onnx")
    assert found == shape
    x = torch.rand(5, *shape)
    torch.testing.assert_close(back(x), network(x), rtol=1e-5, atol=1e-5)
    box = Box.around(x[:2], 0.01)
    for one in () if name in ("cnn7-bn", "wk-resnet") else ("ibp", "crown", "expected"):
        mine, theirs = bound(one, network, box), bound(one, back, box)
        torch.testing.assert_close((mine.lower, mine.upper), (theirs.lower, theirs.upper), rtol=1e-4, atol=1e-4)


def onnx_file(path, nodes, constants, shape, opset=13):
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", "outputs"])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8), str(path))
    return path


def test_the_competitions_way_of_writing_networks_is_read(tmp_path):
    """A constant on the left of MatMul, biases as Add, a Reshape to a fixed batch, LeakyRelu, Clip: as ACAS Xu."""
    rng = np.random.default_rng(0)
    A, b = rng.normal(size=(6, 5)).astype(np.float32), rng.normal(size=(6, 1)).astype(np.float32)
    B, c = rng.normal(size=(6, 3)).astype(np.float32), rng.normal(size=3).astype(np.float32)
    constants = {"A": A, "b": b, "B": B, "c": c, "s": np.array([1, 6], np.int64), "m": np.float32(0.25)}
    constants |= {"low": np.float32(0), "high": np.float32(2)}
    nodes = [
        helper.make_node("Sub", ["x", "m"], ["0"]),
        helper.make_node("MatMul", ["A", "0"], ["1"]),
        helper.make_node("Add", ["1", "b"], ["2"]),
        helper.make_node("LeakyRelu", ["2"], ["3"], alpha=0.1),
        helper.make_node("Clip", ["3", "low", "high"], ["4"]),
        helper.make_node("Reshape", ["4", "s"], ["5"]),
        helper.make_node("MatMul", ["5", "B"], ["6"]),
        helper.make_node("Add", ["6", "c"], ["y"]),
    ]
    network, shape = read_onnx(onnx_file(tmp_path / "n.onnx", nodes, constants, [1, 5, 1]))
    x = torch.rand(7, 5, 1)
    z = A @ (x.numpy() - 0.25) + b
    want = np.clip(np.where(z > 0, z, 0.1 * z), 0, 2).reshape(7, 6) @ B + c
    np.testing.assert_allclose(network(x).detach().numpy(), want, rtol=1e-5, atol=1e-5)
    exact, seen = (bound(name, network, Box.around(x[:1], 0.1)) for name in ("exact", "sampled"))
    assert shape == (5, 1)
    assert (exact.lower <= seen.lower + 1e-5).all()


@pytest.mark.parametrize(
    ("node", "shape", "opset", "words"),
    [
        (("Sign", ["x"], ["y"]), [1, 4], 13, r"'sign' \(sign\) is not piecewise linear"),
        (("Relu", ["x"], ["y"]), [1, "n"], 13, r"has shape \[1, 'n'\].*all others fixed"),
        (("Relu", ["x"], ["y"]), [3, 4], 13, r"the first dimension has to be the batch"),
        (("Relu", ["x"], ["y"]), [1, 4], 6, "is of opset 6; 7 to 28"),
        (("Mul", ["x", "x"], ["y"]), [1, 4], 13, "is not piecewise linear"),
    ],
)
def test_onnx_files_that_cannot_be_taken_are_refused_by_name(tmp_path, node, shape, opset, words):
    kind, inputs, outputs = node
    file = onnx_file(tmp_path / "n.onnx", [helper.make_node(kind, inputs, outputs)], {}, shape, opset)
    with pytest.raises(UnsupportedLayer, match=words):
        Cascade(*read_onnx(file), Settings(("exact",)))


def test_what_is_no_onnx_and_what_is_not_installed_is_said(tmp_path, monkeypatch):
    (tmp_path / "n.onnx").write_bytes(b"no protobuf")
    with pytest.raises(CheckpointError, match="is no ONNX file"):
        read_onnx(tmp_path / "n.onnx")
    monkeypatch.setitem(__import__("sys").modules, "onnx", None)
    with pytest.raises(ConfigError, match=r"need onnx: pip install 'etb_plugin\[onnx\]'"):
        files.read_onnx(tmp_path / "n.onnx")


def test_properties_of_images_are_verified_from_files_as_they_are_in_memory(tmp_path):
    torch.manual_seed(1)
    network = fully_connected(16, 20, 12, 4).eval()
    with torch.no_grad():
        network[1].weight *= 4  # so that a large box holds several predictions
    write_onnx(network, (1, 4, 4), tmp_path / "n.onnx")
    words = set()
    for image in range(8):
        x = torch.rand(1, 1, 4, 4).double()
        label = int(network(x.float()).argmax())
        box = Box.around(x, 0.02 if image % 2 else 0.6)
        problem = robustness(box, label, 4)
        (tmp_path / "p.vnnlib").write_text(vnnlib_text(box, label, 4, "test"))
        (read,) = problems(tmp_path / "p.vnnlib", (1, 4, 4), 4)
        assert torch.equal(read.box.lower, box.lower)
        assert torch.equal(read.box.upper, box.upper)
        case, cascade = Case.of(problem), Cascade(network, (1, 4, 4), Settings(seconds=30))
        cascade.decide_together([case])
        cascade.decide_alone(case)
        answer = PropertyCheck(tmp_path / "n.onnx", tmp_path / "p.vnnlib", Settings(seconds=30), drop=True).run()
        words.add(answer.word)
        assert answer.word == {Verdict.ROBUST: "unsat", Verdict.FALSIFIED: "sat"}[case.verdict]
        if answer.point is not None:
            with torch.no_grad():
                y = network.double()(answer.point)
            network.float()
            assert y.argmax() != label or y.sort().values[0, -1] == y.sort().values[0, -2]
            assert (answer.point >= box.lower).all()
            assert (answer.point <= box.upper).all()
            assert answer.text.startswith("sat\n((X_0 ")
    assert words == {"sat", "unsat"}


def problems(path, shape, outputs):
    network = nn.Sequential(nn.Flatten(), nn.Linear(math.prod(shape), outputs))
    return Posed(read_vnnlib(path), [network], [shape]).problems


PROPERTY = """; a comment
(declare-const X_0 Real) (declare-const X_1 Real)
(declare-const Y_0 Real)
(declare-const Y_1 Real)
(assert (>= X_0 -1e-1)) (assert (<= X_0 0.1))
(assert (or (and (>= X_1 0) (<= X_1 1) (<= Y_0 Y_1))
            (and (>= X_1 2) (<= X_1 3) (<= (+ Y_0 (* -2.0 Y_1)) 5) (>= Y_1 (- 1)))))
"""


def test_conjunctions_disjunctions_and_linear_terms_are_read(tmp_path):
    (tmp_path / "p.vnnlib").write_text(PROPERTY)
    first, second = problems(tmp_path / "p.vnnlib", (2,), 2)
    assert first.box.lower.tolist() == [[-0.1, 0.0]]
    assert second.box.upper.tolist() == [[0.1, 3.0]]
    assert first.unsafe[0].rows.tolist() == [[1.0, -1.0]]
    assert second.unsafe[0].rows.tolist() == [[1.0, -2.0], [0.0, -1.0]]
    assert second.unsafe[0].most.tolist() == [5.0, 1.0]
    point, outputs = torch.tensor([[0.5, 1e-7]], dtype=torch.float64), torch.tensor([[2.0, -1.0]])
    query = read_vnnlib(tmp_path / "p.vnnlib")
    text = query.counterexample(query.assignment([point], [outputs]))
    assert text == "((X_0 0.5)\n (X_1 0.0000001)\n (Y_0 2.0)\n (Y_1 -1.0))"


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("(declare-const Y_0 Real)", "(declare-const Y_0 Real", "line 3, column 1: '\\(' is never closed"),
        ("(declare-const Y_0 Real)", "(declare-const Y_0 Real))", "line 3, column 25: '\\)' closes nothing"),
        ("(<= Y_0 Y_1)", "(=> Y_0 Y_1)", "line 6, column 41: '=>' is not understood"),
        ("(<= Y_0 Y_1)", "(<= Y_0 Y_7)", "line 6, column 48: 'Y_7' is neither a number nor a declared variable"),
        ("Y_1 Real", "Z_1 Real", "line 4, column 16: 'Z_1' is no variable of a network"),
        ("Y_1 Real", "Y_2 Real", "line 6, column 48: 'Y_1' is neither"),
        ("(declare-const X_0 Real)", "(declare-const X_7 Real)", "line 5, column 13: 'X_0' is neither"),
        ("(declare-const Y_1 Real)", "(declare-const Y_1 Real) (declare-const Y_2 Real)", "3 outputs; .* 2 outputs"),
        ("(declare-const Y_0 Real)", "", "line 6, column 44: 'Y_0' is neither"),
        ("(assert (<= X_0 0.1))", "", "gives X_0 no upper bound"),
        ("(<= Y_0 Y_1)", "(<= Y_0 1e999)", "'1e999' is neither a number"),
        ("(assert (or", "(check (or", "line 6, column 1: 'check' is not understood"),
        ("(* -2.0 Y_1)", "(/ Y_0 Y_1)", "line 7, column 52: '/' makes no term"),
    ],
)
def test_a_malformed_property_is_refused_by_line_and_column(tmp_path, old, new, words):
    assert old in PROPERTY
    (tmp_path / "p.vnnlib").write_text(PROPERTY.replace(old, new))
    with pytest.raises(ConfigError, match=words):
        problems(tmp_path / "p.vnnlib", (2,), 2)


def test_a_softmax_at_the_end_is_left_out_where_only_the_order_of_outputs_matters(tmp_path):
    torch.manual_seed(0)
    network = fully_connected(4, 8, 3)
    weights = [p.detach().numpy() for p in network.parameters()]
    nodes = [
        helper.make_node("Gemm", ["x", "a", "b"], ["0"], transB=1),
        helper.make_node("Relu", ["0"], ["1"]),
        helper.make_node("Gemm", ["1", "c", "d"], ["2"], transB=1),
        helper.make_node("Softmax", ["2"], ["y"], axis=1),
    ]
    file = onnx_file(tmp_path / "n.onnx", nodes, dict(zip("abcd", weights, strict=True)), [1, 4])
    x = torch.rand(1, 4)
    label = int(network(x).argmax())
    for eps, word in ((0.001, "unsat"), (3.0, "sat")):
        box = Box.around(x.double(), eps, clip=None)
        (tmp_path / "p.vnnlib").write_text(vnnlib_text(box, label, 3, ""))
        answer = PropertyCheck(file, tmp_path / "p.vnnlib", Settings(seconds=20), drop=True).run()
        assert answer.word == word
    torch.testing.assert_close(answer.outputs.sum(), torch.ones((), dtype=torch.float64))  # the file's own outputs
    before = (tmp_path / "p.vnnlib").read_text().partition("(assert (or")[0]
    for most, word in ((float(answer.outputs[0, label]), "sat"), (0.0, "unknown")):  # the attack is all that takes it
        (tmp_path / "p.vnnlib").write_text(f"{before}(assert (<= Y_{label} {most + 0.01 * (most > 0):.9f}))")
        check = PropertyCheck(file, tmp_path / "p.vnnlib", Settings(seconds=20), drop=True)
        assert check.settings.stages == ("pgd",)
        assert "softmax" in check.left_out["crown"]
        assert check.run().word == word
    with pytest.raises(UnsupportedLayer, match="stage 'ibp' cannot take the network"):
        PropertyCheck(file, tmp_path / "p.vnnlib", Settings(seconds=20), drop=False)


def test_a_counterexample_counts_where_the_file_itself_confirms_it(tmp_path, monkeypatch):
    """The margin of a point that float64 finds may be nothing in the file's float32."""
    network = fully_connected(3, 8, 2)
    write_onnx(network, (3,), tmp_path / "n.onnx")
    box = Box.around(torch.rand(1, 3).double(), 0.3, clip=None)
    corner = box.lower
    most = float(network.double()(corner)[0, 0].detach())
    text = vnnlib_text(box, 0, 2, "").partition("(assert (or")[0]
    for above, word in ((0.1, "sat"), (-50.0, "unknown")):
        (tmp_path / "p.vnnlib").write_text(f"{text}(assert (<= Y_0 {most + above:.9f}))")
        check = PropertyCheck(tmp_path / "n.onnx", tmp_path / "p.vnnlib", Settings(("pgd",), seconds=20), drop=True)
        monkeypatch.setattr(check._cascade, "_attack", lambda cases: setattr(cases[0], "witness", corner))
        answer = check.run()
        assert answer.word == word
        if word == "sat":
            assert torch.equal(answer.outputs, files.file_outputs(tmp_path / "n.onnx", answer.point))
            assert float(answer.outputs[0, 0]) <= most + above
        else:
            assert "does not confirm" in answer.failed[0]
