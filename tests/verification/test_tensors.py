"""Networks of several inputs and outputs, and values within them: what VNN-LIB 2.0 says of the tensors of a file."""

import itertools
import math
import re
import warnings

import onnx
import pytest
import torch
from torch import nn

from etb_plugin.errors import ConfigError, UnsupportedLayer
from etb_plugin.networks.onnx import file_outputs, read_onnx, read_tensors
from etb_plugin.verification import PropertyCheck, Settings
from etb_plugin.verification.posed import Posed
from etb_plugin.verification.vnnlib import read_vnnlib
from tests.command import etb
from tests.verification.formulas import Written, boxed

HIDDEN = "/relu/Relu_output_0"


class Camera(nn.Module):
    """An image and what is known of it to a place and classes."""

    def __init__(self):
        super().__init__()
        self.image, self.about = nn.Conv2d(1, 2, 2), nn.Linear(2, 3)
        self.relu = nn.ReLU()
        self.place, self.classes = nn.Linear(5, 1), nn.Linear(5, 2)

    def hidden(self, image, about):
        return self.relu(torch.cat([self.image(image).flatten(1), self.about(about)], 1))

    def forward(self, image, about):
        h = self.hidden(image, about)
        return self.place(h).unsqueeze(1), self.classes(h)


SIZES = {"image": (1, 1, 2, 2), "about": (1, 2), "place": (1, 1, 1), "classes": (1, 2), "h": (1, 5)}


def camera(tmp_path, seed=0):
    torch.manual_seed(seed)
    network = Camera().eval()
    examples = torch.rand(SIZES["image"]), torch.rand(SIZES["about"])
    names = {"input_names": ["image", "about"], "output_names": ["place", "classes"]}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own, of its older exporter, which needs no further package
        torch.onnx.export(network, examples, str(tmp_path / "n.onnx"), dynamo=False, **names)
    return network


def declared(order, *, named):
    """Return the declaration of a network that has these of the tensors, in this order."""
    kinds = {"image": "input", "about": "input", "h": "hidden"}
    lines = []
    for name in order:
        node = HIDDEN if name == "h" else name
        quoted = f' "{node}"' if named or name == "h" else ""
        shape = ",".join(map(str, SIZES[name]))
        lines.append(f"(declare-{kinds.get(name, 'output')} {name} float32 [{shape}]{quoted})")
    return "(vnnlib-version <2.0>)\n(declare-network n\n  " + "\n  ".join(lines) + "\n)\n"


def elements(name):
    return [f"{name}[{','.join(map(str, at))}]" for at in itertools.product(*map(range, SIZES[name]))]


@torch.no_grad()
def computed(network, image, about):
    """Return all tensors, by torch."""
    place, classes = network(image, about)
    return {"image": image, "about": about, "h": network.hidden(image, about), "place": place, "classes": classes}


def by_element(tensors):
    return {
        element: value
        for name, tensor in tensors.items()
        for element, value in zip(elements(name), tensor.flatten().tolist(), strict=True)
    }


@pytest.mark.parametrize("seed", range(12))
def test_a_query_asks_what_its_file_says_of_every_tensor(seed, tmp_path):
    """By order or by names, in whichever order these come."""
    network = camera(tmp_path, seed)
    order = ["image", "about", "h", "place", "classes"]
    if seed % 2:
        order = [["about", "image", "classes", "h", "place"], ["image", "about", "h", "classes"]][seed // 2 % 2]
    inputs = [e for name in ("image", "about") for e in elements(name)]
    formula, truth = Written(seed, [e for name in order for e in elements(name)]).formula(2)
    first = elements("classes")[0]
    text = declared(order, named=bool(seed % 2)) + boxed(inputs, -1, 1)
    (tmp_path / "p.vnnlib").write_text(f"{text}\n(assert (<= {first} 9.0))\n(assert {formula})")
    query = read_vnnlib(tmp_path / "p.vnnlib")
    names = [[one.node for one in tensors] for tensors in (query.networks[0].inputs, query.networks[0].outputs)]
    read = read_tensors(tmp_path / "n.onnx", *names)
    posed = Posed(query, [read.network], [read.shape])
    assert posed.shape == (6,)
    for _ in range(100):
        tensors = computed(network, torch.rand(SIZES["image"]) * 2 - 1, torch.rand(SIZES["about"]) * 2 - 1)
        own = torch.cat([tensors[name].flatten() for name in order if name in ("image", "about")]).view(1, -1)
        gives = torch.cat([tensors[name].flatten() for name in order if name not in ("image", "about")]).view(1, -1)
        torch.testing.assert_close(read.network(own), gives)
        given = posed.values(own, [gives])
        found = any(
            bool(problem.broken(given))
            for problem in posed.problems
            if ((own >= problem.box.lower) & (own <= problem.box.upper)).all()
        )
        assert found == truth(by_element(tensors)), formula


def test_several_tensors_are_decided_as_sampling_finds(tmp_path):
    """The highest place where a hidden value is small and the second class leads."""
    network = camera(tmp_path, 3)
    order = ["about", "image", "h", "classes", "place"]
    text = declared(order, named=True) + boxed([e for n in ("image", "about") for e in elements(n)], 0, 1)
    condition = "(and (<= h[0,3] 0.3) (>= classes[0,1] classes[0,0]))"
    image, about = torch.rand(50_000, 1, 2, 2), torch.rand(50_000, 2)
    with torch.no_grad():
        place, classes = network(image, about)
        chosen = (network.hidden(image, about)[:, 3] <= 0.3) & (classes[:, 1] >= classes[:, 0])
    assert 0 < chosen.sum() < len(chosen)
    highest = place.flatten()[chosen].max().item()
    for most, word in ((highest - 0.02, "sat"), (highest + 0.05, "unsat")):
        (tmp_path / "p.vnnlib").write_text(f"{text}(assert {condition})(assert (>= place[0,0,0] {most:.4f}))")
        done = etb("verify", "n.onnx", "p.vnnlib", cwd=tmp_path)
        assert done.stdout.partition("\n")[0] == word, done.stderr
        if word == "sat":
            found = assigned(done.stdout.partition("\n")[2])
            assert list(found) == order
            want = computed(network, found["image"], found["about"])
            for name in order:
                torch.testing.assert_close(found[name], want[name], rtol=0, atol=1e-6)
            assert found["h"][0, 3] <= 0.3
            assert found["place"] >= most
            done = etb("verify", "n.onnx", "p.vnnlib", "--serialise-assignments", "found", cwd=tmp_path)
            assert done.stdout == "sat\n", done.stderr
            for name in order:
                proto = onnx.load_tensor(str(tmp_path / "found" / f"{name}.pb"))
                assert (proto.name, proto.data_type) == (name, onnx.TensorProto.FLOAT)
                assert torch.equal(torch.from_numpy(onnx.numpy_helper.to_array(proto).copy()), found[name])


def assigned(text):
    lines, found = text.splitlines(), {}
    while lines:
        name, shape = re.fullmatch(r"(\w+) float32 \[([\d,]+)\]", lines.pop(0)).groups()
        sizes = [int(size) for size in shape.split(",")]
        found[name] = torch.tensor([float(lines.pop(0)) for _ in range(math.prod(sizes))]).view(sizes)
    return found


def test_version_1_numbers_all_tensors_of_a_file_in_its_order(tmp_path):
    network = camera(tmp_path)
    lines = [f"(declare-const X_{i} Real)" for i in range(6)] + [f"(declare-const Y_{j} Real)" for j in range(3)]
    lines += [f"(assert (>= X_{i} 0.25))(assert (<= X_{i} {0.25 + i / 8}))" for i in range(6)]
    (tmp_path / "p.vnnlib").write_text("\n".join([*lines, "(assert (<= Y_0 99.0))"]))
    answer = PropertyCheck(tmp_path / "n.onnx", tmp_path / "p.vnnlib", Settings(seconds=9), drop=True).run()
    assert answer.word == "sat"
    point = answer.point.float()
    want = computed(network, point[:, :4].view(SIZES["image"]), point[:, 4:])
    torch.testing.assert_close(answer.outputs.float(), torch.cat([want["place"].view(1, 1), want["classes"]], 1))
    with pytest.raises(UnsupportedLayer, match="has 2 inputs and 2 outputs of floats; a classifier has one of each"):
        read_onnx(tmp_path / "n.onnx")


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ('"about"', '"abuot"', "has inputs 'image', 'about': each has to be declared once; declared: 'image', 'abuot'"),
        ('"classes"', '"clases"', "has no tensor and no node 'clases'; its outputs are 'place', 'classes'"),
        (' "classes"', "", "network 'n' has names in its file for some inputs and outputs: all, or none"),
        (HIDDEN, "/image/Conv", r"declares 5 elements of h; .*n.onnx has 2"),
        (f'"{HIDDEN}"', HIDDEN, "line 5, column 35: a name in the network's file belongs here, in quotes"),
        (f' "{HIDDEN}"', "", "'declare-hidden' is not understood here; write declare-input"),
        (HIDDEN, "image.weight", "has no tensor and no node 'image.weight'"),
        (
            "classes float32 [1,2]",
            "classes float32 [1,3]",
            "declares 3 elements of classes; .* has 2",
        ),
        ("classes float32", "classes float64", "declares classes as float64, but .* has float32"),
    ],
)
def test_what_a_file_does_not_have_is_refused(old, new, words, tmp_path):
    camera(tmp_path)
    text = declared(["image", "about", "h", "place", "classes"], named=True)
    assert old in text
    text += boxed([e for n in ("image", "about") for e in elements(n)], 0, 1) + "(assert (<= classes[0,1] 0.0))"
    (tmp_path / "p.vnnlib").write_text(text.replace(old, new))
    with pytest.raises((ConfigError, UnsupportedLayer), match=words):
        PropertyCheck(tmp_path / "n.onnx", tmp_path / "p.vnnlib", Settings(), drop=True)


def test_by_order_there_are_as_many_as_the_file_has(tmp_path):
    camera(tmp_path)
    (tmp_path / "p.vnnlib").write_text(declared(["image", "place", "classes"], named=False))
    (query,) = read_vnnlib(tmp_path / "p.vnnlib").networks
    with pytest.raises(ConfigError, match=r"n\.onnx has 2 inputs, 'image', 'about'; without a name 1 are declared"):
        read_tensors(tmp_path / "n.onnx", [one.node for one in query.inputs])


def test_a_tensor_of_no_dimension_or_of_one_or_of_a_named_node(tmp_path):
    """Inputs without a batch beside one that has it; a node's name where no tensor has it; onnx in place of
    onnxruntime."""
    helper, float_ = onnx.helper, onnx.TensorProto.FLOAT
    nodes = [
        helper.make_node("Relu", ["a"], ["a_relu"], name="early"),
        helper.make_node("Add", ["a_relu", "b"], ["both"], name="sum"),
        helper.make_node("Neg", ["both"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("a", float_, [3]), helper.make_tensor_value_info("b", float_, [3])],
        [helper.make_tensor_value_info("y", float_, [3])],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), tmp_path / "n.onnx")
    selected = (["b", "a"], ["early", None, "sum"])
    read = read_tensors(tmp_path / "n.onnx", *selected)
    assert (read.shape, read.inputs, read.outputs) == ((6,), (3, 3), (3, 3, 3))
    x = torch.randn(4, 6)
    b, a = x.split(3, 1)
    want = torch.cat([a.relu(), -(a.relu() + b), a.relu() + b], 1)
    torch.testing.assert_close(read.network(x), want)
    torch.testing.assert_close(file_outputs(tmp_path / "n.onnx", x, *selected).float(), want)
