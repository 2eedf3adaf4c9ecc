"""VNN-LIB 2.0, several networks, and conditions on inputs and products: what a file asks against what it says."""

import gzip
import itertools
import math
import re

import onnx
import pytest
import torch
from torch import nn

from etb_plugin import Box, bound
from etb_plugin.errors import ConfigError
from etb_plugin.networks.onnx import file_outputs, read_onnx, write_onnx
from etb_plugin.verification import PropertyCheck, Settings
from etb_plugin.verification.posed import Posed
from etb_plugin.verification.vnnlib import read_vnnlib, vnnlib_text
from tests.command import etb
from tests.conftest import fully_connected
from tests.verification.formulas import Written, boxed

TWO = """(vnnlib-version <2.0>)
(declare-network f
  (declare-input X_f float32 [1,1,3])
  (declare-output Y_f float32 [1,2])
)
(declare-network g
  ({relation} f)
  (declare-input X_g float32 [1,1,3])
  (declare-output Y_g float32 [1,2])
)
"""


@pytest.mark.parametrize("seed", range(40))
def test_a_query_asks_what_its_file_says(seed, tmp_path):
    """Random formulas of two networks' inputs and outputs, one of the inputs shared, against Python's own logic."""
    torch.manual_seed(seed)
    networks = [nn.Sequential(nn.Flatten(), nn.Linear(3, 2)).double() for _ in range(2)]
    x = [[f"X_{n}[0,0,{i}]" for i in range(3)] for n in "fg"]
    y = [[f"Y_{n}[0,{j}]" for j in range(2)] for n in "fg"]
    formula, truth = Written(seed, [*itertools.chain(*x, *y)]).formula(2)
    text = TWO.format(relation="isomorphic-to") + boxed([*x[0], x[1][0], x[1][2]], -1.0, 1.0)
    (tmp_path / "p.vnnlib").write_text(
        f"{text}\n(assert (== {x[0][1]} {x[1][1]}))\n(assert (<= Y_f[0,0] 9.0))\n(assert {formula})"
    )
    try:
        posed = Posed(read_vnnlib(tmp_path / "p.vnnlib"), networks, [(1, 3)] * 2)
    except ConfigError as error:
        pytest.fail(f"{formula}: {error}")
    assert posed.shape == (5,)
    said = []
    for _ in range(200):
        point = torch.rand(1, 5, dtype=torch.float64) * 2 - 1
        inputs = posed.inputs(point)
        assert inputs[0][0, 0, 1] == inputs[1][0, 0, 1]
        outputs = [network(one).detach() for network, one in zip(networks, inputs, strict=True)]
        values = {}
        for names, tensors in ((x, inputs), (y, outputs)):
            for own, tensor in zip(names, tensors, strict=True):
                values |= dict(zip(own, tensor.flatten().tolist(), strict=True))
        want = truth(values) and values["Y_f[0,0]"] <= 9
        given = posed.values(point, outputs)
        for form in posed.forms:
            torch.testing.assert_close(form(point).detach(), given)
        found = any(
            bool(problem.broken(given))
            for problem in posed.problems
            if ((point >= problem.box.lower) & (point <= problem.box.upper)).all()
        )
        assert found == want, formula
        said.append(want)


def two_files(tmp_path, seed=0, hidden=8):
    torch.manual_seed(seed)
    for name in "fg":
        write_onnx(nn.Sequential(nn.Flatten(), *fully_connected(3, hidden, 2)[1:]), (1, 3), tmp_path / f"{name}.onnx")
    return {name: tmp_path / f"{name}.onnx" for name in "fg"}


def fulfils(text, files):
    """Return whether a counterexample as version 2.0 writes it lies in [-1, 1], and what its files compute there."""
    lines, found = text.splitlines(), {}
    while lines:
        name, kind, shape = re.fullmatch(r"(\w+) (\w+) \[([\d,]+)\]", lines.pop(0)).groups()
        sizes = [int(size) for size in shape.split(",")]
        values = [float(lines.pop(0)) for _ in range(math.prod(sizes))]
        assert kind == "float32"
        found[name] = torch.tensor(values, dtype=torch.float64).view(sizes)
    for name, file in files.items():
        assert (found[f"X_{name}"].abs() <= 1).all()
        assert torch.equal(found[f"X_{name}"], found[f"X_{name}"].float().double())  # the file's own precision
        torch.testing.assert_close(file_outputs(file, found[f"X_{name}"]), found[f"Y_{name}"], rtol=0, atol=0)
    return found


@pytest.mark.parametrize("seed", [0, 1, 2, *(pytest.param(seed, marks=pytest.mark.slow) for seed in (3, 4, 5))])
def test_two_networks_are_as_far_apart_as_sampling_finds_and_no_farther(seed, tmp_path):
    files = two_files(tmp_path, seed)
    text = TWO.format(relation="isomorphic-to") + boxed([f"X_f[0,0,{i}]" for i in range(3)], -1, 1)
    text += "".join(f"(assert (== X_f[0,0,{i}] X_g[0,0,{i}]))" for i in range(3))
    x = torch.rand(20_000, 1, 3) * 2 - 1
    seen = (file_outputs(files["f"], x) - file_outputs(files["g"], x))[:, 0].max().item()
    words = []
    for most in (seen - 0.01, seen + 0.3):
        (tmp_path / "p.vnnlib").write_text(f"{text}(assert (> Y_f[0,0] (+ Y_g[0,0] {most:.6f})))")
        answer = PropertyCheck(files, tmp_path / "p.vnnlib", Settings(seconds=30), drop=True).run()
        words.append(answer.word)
        if answer.word == "sat":
            found = fulfils(answer.written, files)
            assert torch.equal(found["X_f"], found["X_g"])
            assert found["Y_f"][0, 0] - found["Y_g"][0, 0] > most
    assert words == ["sat", "unsat"]


def test_a_network_and_a_rounded_one_are_proved_to_be_nearly_the_same(tmp_path):
    """What bounds of each by itself do not show at all."""
    torch.manual_seed(0)
    f = nn.Sequential(nn.Flatten(), *fully_connected(3, 40, 40, 40, 2)[1:])
    with torch.no_grad():
        for p in f.parameters():
            p.mul_(3)
    for name in "fg":
        write_onnx(f, (1, 3), tmp_path / f"{name}.onnx")
        with torch.no_grad():
            for p in f.parameters():
                p.copy_((p * 512).round() / 512)
    text = TWO.format(relation="isomorphic-to") + boxed([f"X_f[0,0,{i}]" for i in range(3)], -1, 1)
    text += "".join(f"(assert (== X_f[0,0,{i}] X_g[0,0,{i}]))" for i in range(3))
    pairs = " ".join(f"(> Y_{a}[0,{j}] (+ Y_{b}[0,{j}] 1.5))" for a, b in ("fg", "gf") for j in range(2))
    (tmp_path / "p.vnnlib").write_text(f"{text}(assert (or {pairs}))")
    files = {name: tmp_path / f"{name}.onnx" for name in "fg"}
    check = PropertyCheck(files, tmp_path / "p.vnnlib", Settings(("crown", "inputs"), seconds=60), drop=True)
    assert check.run().word == "unsat"
    for settings in (Settings(("exact",), seconds=1), Settings(("ibp", "crown"), seconds=9, rigorous=True)):
        PropertyCheck(files, tmp_path / "p.vnnlib", settings, drop=False)  # which take it as it is
    posed = Posed(read_vnnlib(tmp_path / "p.vnnlib"), *zip(*(read_onnx(file) for file in files.values()), strict=True))
    box, margin = posed.problems[0].box, torch.tensor([[[1.0, 0.0, -1.0, 0.0]]])
    alone, beside = (bound("crown", form, Box(box.lower.float(), box.upper.float()), margin) for form in posed.forms)
    assert beside.width < alone.width / 10


def test_a_network_is_held_against_itself_at_other_inputs(tmp_path):
    """Monotone by its weights: no larger input gives a clearly smaller output, and none of a network that is not."""
    f = nn.Sequential(nn.Flatten(), *fully_connected(3, 6, 2)[1:])
    with torch.no_grad():
        for p in f.parameters():
            p.abs_()
    text = TWO.format(relation="equal-to") + boxed([f"X_f[0,0,{i}]" for i in range(3)], -1, 1)
    text += "(assert (>= X_g[0,0,0] -1.0))(assert (>= X_f[0,0,0] X_g[0,0,0]))"
    text += "".join(f"(assert (== X_f[0,0,{i}] X_g[0,0,{i}]))" for i in (1, 2))
    (tmp_path / "p.vnnlib").write_text(f"{text}(assert (<= Y_f[0,1] (- Y_g[0,1] 0.1)))")
    for sign, word in ((1, "unsat"), (-1, "sat")):
        with torch.no_grad():
            f[1].weight[:, 0] *= sign
        write_onnx(f, (1, 3), tmp_path / "f.onnx")
        answer = PropertyCheck({"f": tmp_path / "f.onnx"}, tmp_path / "p.vnnlib", Settings(seconds=30), drop=True).run()
        assert answer.word == word
    found = fulfils(answer.written, dict.fromkeys("fg", tmp_path / "f.onnx"))
    assert found["X_f"][0, 0, 0] >= found["X_g"][0, 0, 0]
    assert found["Y_f"][0, 1] <= found["Y_g"][0, 1] - 0.1


ONE = """(vnnlib-version <2.0>)
(declare-network N (declare-input X real [1,2]) (declare-output Y real [1,1]))
(assert (and (>= X[0,0] 0.0) (<= X[0,0] 1.0)))
(assert (and (>= X[0,1] 0.0) (<= X[0,1] 1.0)))
"""


@pytest.mark.parametrize(
    ("condition", "highest"),
    [
        ("(<= (+ X[0,0] X[0,1]) 0.5)", 0.5),
        ("(<= (* X[0,0] X[0,0]) (* 0.25 X[0,1]))", 1.5),
        ("(and (<= (* X[0,0] X[0,1]) 0.16) (== X[0,0] X[0,1]))", 0.8),
        ("(< (* 2.0 X[0,0]) X[0,1])", 1.5),
    ],
)
def test_conditions_on_inputs_count(condition, highest, tmp_path):
    """|x0| + |x1| by ReLUs, under conditions that are no box, of which some are of second degree."""
    network = nn.Sequential(nn.Flatten(), nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 1))
    with torch.no_grad():
        network[1].weight.copy_(torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]]))
        network[1].bias.zero_()
        network[3].weight.fill_(1.0)
        network[3].bias.zero_()
    write_onnx(network, (2,), tmp_path / "n.onnx")
    for most, word in ((highest - 0.02, "sat"), (highest + 0.02, "unsat")):
        (tmp_path / "p.vnnlib").write_text(f"{ONE}(assert {condition})(assert (>= Y[0,0] {most:.2f}))")
        answer = PropertyCheck(tmp_path / "n.onnx", tmp_path / "p.vnnlib", Settings(seconds=30), drop=True).run()
        assert answer.word == word
        if word == "sat":
            assert re.match(r"sat\nX real \[1,2\]\n[\d.]+\n[\d.]+\nY real \[1,1\]\n", answer.text)


def test_what_is_strict_is_not_met_by_equality(tmp_path):
    write_onnx(nn.Sequential(nn.Flatten(), nn.Linear(2, 1)), (2,), tmp_path / "n.onnx")
    words = []
    for comparison in ("(< Y[0,0] Y[0,0])", "(<= Y[0,0] Y[0,0])", "(and (== Y[0,0] Y[0,0]) (<= Y[0,0] 99.0))"):
        (tmp_path / "p.vnnlib").write_text(f"{ONE}(assert (<= Y[0,0] 100.0))(assert {comparison})")
        words.append(PropertyCheck(tmp_path / "n.onnx", tmp_path / "p.vnnlib", Settings(seconds=9), drop=True).run())
    assert [answer.word for answer in words] == ["unsat", "sat", "sat"]


def test_a_property_written_in_2_0_is_the_one_of_1_0(tmp_path):
    box = Box.around(torch.rand(1, 1, 3, 3, dtype=torch.float64), 0.1)
    network = nn.Sequential(nn.Flatten(), nn.Linear(9, 4))
    posed = []
    for version in ("1.0", "2.0"):
        with gzip.open(tmp_path / f"{version}.vnnlib.gz", "wt") as file:
            file.write(vnnlib_text(box, 2, 4, "an image", version))
        posed.append(Posed(read_vnnlib(tmp_path / f"{version}.vnnlib.gz"), [network], [(1, 3, 3)]))
    (first,), (second,) = (one.problems for one in posed)
    assert torch.equal(first.box.lower, second.box.lower)
    assert torch.equal(first.box.upper, second.box.upper)
    for one, other in zip(first.unsafe, second.unsafe, strict=True):
        assert torch.equal(one.rows, other.rows)
        assert torch.equal(one.most, other.most)
    assert posed[0].forms == [network]  # nothing in between


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("<2.0>", "<3.1>", "line 1, column 17: version 3.1 is not known; 1.0 and 2.0 are"),
        ("(<= Y_f[0,1] 0.0)", "(<= Y_f[0,2] 0.0)", r"Y_f\[0,2\] is no element of Y_f, whose shape is \[1, 2\]"),
        ("(<= Y_f[0,1] 0.0)", "(<= Y_f[1] 0.0)", r"Y_f\[1\] is no element of Y_f"),
        ("(<= Y_f[0,1] 0.0)", "(<= Y_h[0,1] 0.0)", r"'Y_h\[0,1\]' is neither a number nor a declared variable"),
        ("(isomorphic-to f)", "(isomorphic-to h)", "line 7, column 18: no network 'h' is declared before"),
        ("X_g float32", "X_f float32", "line 8, column 18: 'X_f' is no name, or one that is declared already"),
        ("(declare-output Y_g float32 [1,2])", "", "network 'g' declares 1 inputs and 0 outputs"),
        ("(declare-output Y_g", '(declare-hidden H real [1] "h") (declare-output Y_g', "has no tensor and no node 'h'"),
        (
            "Y_f float32 [1,2]",
            "Y_f float32 [1,3]",
            r"declares 3 elements of Y_f; .*f.onnx has 2",
        ),
        ("X_f float32", "X_f float64", r"declares X_f as float64, but .*f.onnx has float32; real stands for any"),
        ("(assert (>= X_g[0,0,2] -1.0))", "", r"gives X_g\[0, 0, 2\] no lower bound"),
    ],
)
def test_a_malformed_query_is_refused(tmp_path, old, new, words):
    files = two_files(tmp_path)
    ends = "".join(f"(assert (>= X_{n}[0,0,{i}] -1.0))(assert (<= X_{n}[0,0,{i}] 1.0))" for n in "fg" for i in range(3))
    text = f"{TWO.format(relation='isomorphic-to')}{ends}\n(assert (<= Y_f[0,1] 0.0))"
    assert old in text
    (tmp_path / "p.vnnlib").write_text(text.replace(old, new))
    with pytest.raises(ConfigError, match=words):
        PropertyCheck(files, tmp_path / "p.vnnlib", Settings(), drop=True)


def test_several_networks_through_the_command(tmp_path):
    files = two_files(tmp_path)
    text = TWO.format(relation="isomorphic-to") + boxed([f"X_{n}[0,0,{i}]" for n in "fg" for i in range(3)], -1, 1)
    (tmp_path / "p.vnnlib").write_text(f"{text}(assert (<= Y_f[0,0] 99.0))")
    with gzip.open(tmp_path / "g.onnx.gz", "wb") as file:
        file.write((tmp_path / "g.onnx").read_bytes())
    (tmp_path / "g.onnx").unlink()
    done = etb("verify", "p.vnnlib", "--network", "f=f.onnx", "--network", "g=g.onnx.gz", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    word, _, rest = done.stdout.partition("\n")
    assert word == "sat"
    fulfils(rest, {"f": files["f"], "g": tmp_path / "g.onnx.gz"})
    (tmp_path / "list.csv").write_text("\"[('f', 'f.onnx'), ('g', 'g.onnx')]\",p.vnnlib,30\n")
    done = etb("verify", "--instances", "list.csv", "--out", "out", cwd=tmp_path)
    assert "f.onnx g.onnx.gz p.vnnlib" in done.stdout, done.stderr
    assert "1 sat" in done.stdout
    fulfils((tmp_path / "out/counterexamples/00000").read_text(), {"f": files["f"], "g": tmp_path / "g.onnx.gz"})


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("p.vnnlib",), "with --network for each network that the property declares"),
        (("f.onnx", "p.vnnlib", "--network", "f=f.onnx"), "write either etb verify network.onnx property.vnnlib"),
        (("p.vnnlib", "--network", "f"), "--network f: write NAME=FILE.onnx"),
        (("p.vnnlib", "--network", "f=f.onnx"), "declares a network 'g': write --network g=FILE.onnx"),
        (("p.vnnlib", "--network", "f=f.onnx", "--network", "f=f.onnx"), "--network names a network twice"),
        (("p.vnnlib", "--network", "f=f.onnx", "--network", "h=f.onnx", "--network", "g=f.onnx"), "no network 'h'"),
        (("p.vnnlib", "--network", "f=missing.onnx"), "there is no file or folder missing.onnx"),
        (
            ("f.onnx", "p.vnnlib"),
            "is about 2 networks: write etb verify p.vnnlib --network f=f.onnx --network g",
        ),
    ],
)
def test_networks_that_do_not_belong_to_the_property_are_refused(tmp_path, arguments, words):
    two_files(tmp_path)
    (tmp_path / "p.vnnlib").write_text(TWO.format(relation="isomorphic-to") + "(assert (<= Y_f[0,0] 99.0))")
    done = etb("verify", *arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert words in " ".join(done.stderr.split())
    assert onnx.load(tmp_path / "f.onnx")
