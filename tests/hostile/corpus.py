"""Files that want to do harm, or are broken, for every reader: written to a folder, and read one by one.

    python -m tests.hostile.corpus FOLDER

Every file has to be refused by an error of ours in two lines or fewer, within ten seconds, in less than 1 GiB beyond
what was there before, with nothing else on disk changed; or, where it is harmless after all, be read. One line of JSON
for each file: reader, name, outcome, seconds, MiB, the error.
"""

import gzip
import io
import json
import os
import pickle
import random
import struct
import sys
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

SECONDS, MIB = 10.0, 1024


class Harm:
    """What a pickle makes: a file named `harmed`, where code that it carries runs."""

    def __reduce__(self):
        return (os.system, ("touch harmed",))


def damaged(content: bytes, count: int = 6) -> Iterator[tuple[str, bytes]]:
    """Yield a good file truncated, with bytes changed, empty, repeated, and text in its place."""
    chance = random.Random(0)
    yield "empty", b""
    yield "text", b"this is no such file\n"
    yield "zeros", bytes(4096)
    yield "noise", chance.randbytes(4096)
    for share in (0.1, 0.5, 0.9, 0.99):
        yield f"cut-{share}", content[: int(len(content) * share)]
    for number in range(count):
        changed = bytearray(content)
        for _ in range(8):
            changed[chance.randrange(len(changed))] = chance.randrange(256)
        yield f"changed-{number}", bytes(changed)


def npz(**arrays: object) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)  # type: ignore[arg-type]
    return buffer.getvalue()


def zip_bomb(name: str, size: int) -> bytes:
    buffer = io.BytesIO()
    with (
        zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open(name, "w", force_zip64=True) as out,
    ):
        header = io.BytesIO()
        np.lib.format.write_array_header_1_0(
            header, {"descr": "|u1", "fortran_order": False, "shape": (size // 784, 28, 28)}
        )
        out.write(header.getvalue())
        block = bytes(2**20)
        for _ in range(size // 2**20):
            out.write(block)
    return buffer.getvalue()


def data_files() -> Iterator[tuple[str, bytes]]:
    images, labels = np.zeros((4, 8, 8), np.uint8), np.arange(4)
    good = {"x_train": images, "y_train": labels, "x_test": images, "y_test": labels}
    yield from damaged(npz(**good))
    yield "objects", npz(**good | {"y_test": np.array([Harm()] * 4, dtype=object)})
    yield "objects-images", npz(**good | {"x_train": np.array([[1], [2, 3]], dtype=object)})
    yield "negative-labels", npz(**good | {"y_train": -labels})
    yield "huge-labels", npz(**good | {"y_train": labels + 2**40})
    yield "wrong-count", npz(**good | {"y_train": labels[:2]})
    yield "no-images", npz(**good | {"x_test": images[:0], "y_test": labels[:0]})
    yield "no-training", npz(**good | {"x_train": images[:0], "y_train": labels[:0]})
    yield "nan", npz(**good | {"x_train": np.full((4, 8, 8), np.nan, np.float32)})
    yield "strings", npz(**good | {"y_train": np.array(list("abcd"))})
    yield "five-dimensions", npz(**good | {"x_train": np.zeros((4, 2, 2, 2, 2), np.uint8)})
    yield "out-of-range", npz(**good | {"x_train": images.astype(np.float32) + 7})
    yield "one-class", npz(**good | {"y_train": 0 * labels, "y_test": 0 * labels})
    yield "bomb", zip_bomb("x_train.npy", 2**31)
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("../../harmed", b"x")
        archive.writestr("x_train.npy", b"\x93NUMPY\x01\x00v\x00{'descr': '|u1', 'shape': (99999999999,), ")
    yield "escape", buffer.getvalue()
    header = b"{'descr': '|u1', 'fortran_order': False, 'shape': (99999999999, 28, 28), }"
    array = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for key in good:
            archive.writestr(f"{key}.npy", array)
    yield "huge-header", buffer.getvalue()


def yaml_files() -> Iterator[tuple[str, bytes]]:
    good = b"dataset: digits\nmodel: tiny\ntraining: {epochs: 1}\nmethods: [ibp]\n"
    yield from damaged(good)
    yield "python", b"dataset: !!python/object/apply:os.system ['touch harmed']\n"
    yield "python-name", b"dataset: !!python/name:os.system\n"
    laughs = ["a0: &a0 [lol, lol, lol, lol, lol, lol, lol, lol, lol]"]
    laughs += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 10)]
    yield "laughs", "\n".join(laughs).encode()
    yield "laughs-in-methods", ("\n".join(laughs) + "\nmethods: *a9\n").encode()
    yield "itself", b"methods: &a [*a]\n"
    yield "deep", b"methods: " + b"[" * 20_000 + b"]" * 20_000
    yield "deep-maps", b"{a: " * 5_000 + b"1" + b"}" * 5_000
    yield "long-line", b"dataset: " + b"d" * 10_000_000
    yield "many-keys", b"".join(b"k%d: 1\n" % i for i in range(100_000))
    yield "twice", b"dataset: digits\ndataset: mnist\n"
    yield "list", b"- 1\n- 2\n"
    yield "utf16", good.decode().encode("utf-16")
    yield "latin1", b"dataset: d\xe9j\xe0\n"
    yield "nul", b"dataset: dig\x00its\n"
    yield "huge-number", b"training: {epochs: 1" + b"0" * 5000 + b"}\nmethods: [ibp]\n"
    yield "infinite", b"eps: .inf\nmethods: [ibp]\n"
    yield "nan", b"eps: .nan\nmethods: [ibp]\n"
    yield "escape", b"dataset: ../../../etc/passwd\nmethods: [ibp]\n"
    yield "merge", b"methods: [ibp]\n<<: [1, 2]\n"
    yield "date", b"dataset: 2001-12-14\nmethods: [ibp]\n"


SAID = {
    # what a file may say of its weights, and should not
    "model": ["tiny"],
    "dataset": {"a": 1},
    "input_shape": 7,
    "classes": "ten",
    "normalization": [[0.5]],
    "eps": "wide",
    "pair": "both",
    "changes": [1],
}


def said_about(changes: dict[str, object]) -> dict[str, object]:
    about = {"method": "ibp", "model": "mlp-8x1", "dataset": "digits", "eps": 0.1, "seed": 0, "input_shape": [1, 8, 8]}
    about |= {"classes": 10, "normalization": None} | changes
    entry = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}
    return {"__metadata__": {"etb": json.dumps(about)}, "w": entry}


def safetensors_files() -> Iterator[tuple[str, bytes]]:
    import torch
    from safetensors.torch import save

    yield from damaged(save({"weight": torch.zeros(3, 4)}, metadata={"etb": "{}"}))
    yield "huge-header", struct.pack("<Q", 2**62) + b"{}"
    yield "long-header", struct.pack("<Q", 2**27) + b"{" + b" " * 1000
    entry = {"dtype": "F32", "shape": [2**40, 2**40], "data_offsets": [0, 4]}
    for name, header in (
        ("huge-shape", {"w": entry}),
        ("overlap", {k: entry | {"shape": [1]} for k in "ab"}),
        ("negative", {"w": entry | {"shape": [1], "data_offsets": [4, 0]}}),
        ("beyond", {"w": entry | {"shape": [1000], "data_offsets": [0, 4000]}}),
        ("about", {"__metadata__": {"etb": "[1, 2"}, "w": entry | {"shape": [1]}}),
        *((f"about-{key}", said_about({key: value})) for key, value in SAID.items()),
        ("about-list", {"__metadata__": {"etb": "[1, 2]"}, "w": entry | {"shape": [1]}}),
        (
            "about-path",
            {"__metadata__": {"etb": '{"model": "../../x", "dataset": "digits"}'}, "w": entry | {"shape": [1]}},
        ),
    ):
        text = json.dumps(header).encode()
        yield name, struct.pack("<Q", len(text)) + text + bytes(4)
    deep = b'{"__metadata__": {"etb": "' + b"[" * 100_000 + b'"}}'
    yield "deep-about", struct.pack("<Q", len(deep)) + deep


def torch_files() -> Iterator[tuple[str, bytes]]:
    import torch

    def saved(content: object) -> bytes:
        buffer = io.BytesIO()
        torch.save(content, buffer)
        return buffer.getvalue()

    yield from damaged(saved({"weight": torch.zeros(3, 4)}))
    yield "code", saved(Harm())
    yield "code-inside", saved({"state_dict": {"w": Harm()}})
    yield "plain-pickle", pickle.dumps(Harm())
    yield "old-pickle", pickle.dumps(Harm(), protocol=0)
    yield "number", saved(7)
    yield "strings", saved({"w": "x"})
    yield "nested", saved({"state_dict": {"state_dict": {"state_dict": 1}}})
    yield "deep-list", saved([[[[[[]]]]]])
    yield "nothing", saved({})
    yield "module", saved(torch.nn.Linear(2, 2))
    yield "deep-pickle", b"\x80\x02" + b"(" * 100_000 + b"."


def onnx_model(nodes: list, constants: list = (), shape: tuple = (1, 4), out: str = "y") -> bytes:  # type: ignore[assignment]
    from onnx import TensorProto, helper

    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(out, TensorProto.FLOAT, None)],
        constants,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8).SerializeToString()


def good_onnx() -> bytes:
    """A network of 4 inputs and 3 outputs."""
    from onnx import TensorProto, helper

    weight = helper.make_tensor("w", TensorProto.FLOAT, [4, 3], [0.5] * 12)
    return onnx_model([helper.make_node("MatMul", ["x", "w"], ["y"])], [weight])


def onnx_files() -> Iterator[tuple[str, bytes]]:
    from onnx import TensorProto, helper

    yield from damaged(good_onnx())
    outside = helper.make_tensor("w", TensorProto.FLOAT, [4, 3], [0.5] * 12)
    outside.ClearField("float_data")
    outside.data_location = TensorProto.EXTERNAL
    for name, place in (("up", "../../../../../../etc/passwd"), ("absolute", "/etc/passwd"), ("missing", "none.bin")):
        copy = TensorProto()
        copy.CopyFrom(outside)
        entry = copy.external_data.add()
        entry.key, entry.value = "location", place
        yield f"external-{name}", onnx_model([helper.make_node("MatMul", ["x", "w"], ["y"])], [copy])
    yield "unknown-operator", onnx_model([helper.make_node("Nothing", ["x"], ["y"])])
    yield "unknown-domain", onnx_model([helper.make_node("Relu", ["x"], ["y"], domain="evil.com")])
    yield "no-such-input", onnx_model([helper.make_node("Relu", ["z"], ["y"])])
    yield "cycle", onnx_model([helper.make_node("Relu", ["b"], ["y"]), helper.make_node("Relu", ["y"], ["b"])])
    yield "no-nodes", onnx_model([], out="x")
    yield "huge-input", onnx_model([helper.make_node("Relu", ["x"], ["y"])], shape=(1, 2**40))
    shape = helper.make_tensor("s", TensorProto.INT64, [2], [2**20, 2**20])
    yield (
        "huge-constant",
        onnx_model(
            [helper.make_node("ConstantOfShape", ["s"], ["c"]), helper.make_node("Add", ["x", "c"], ["y"])], [shape]
        ),
    )
    tiles = helper.make_tensor("s", TensorProto.INT64, [2], [1, 2**34])
    yield "huge-tile", onnx_model([helper.make_node("Tile", ["x", "s"], ["y"])], [tiles])
    short = helper.make_tensor("w", TensorProto.FLOAT, [4, 3], [0.5] * 12)
    del short.float_data[6:]
    yield "short-weight", onnx_model([helper.make_node("MatMul", ["x", "w"], ["y"])], [short])
    nan = helper.make_tensor("w", TensorProto.FLOAT, [4, 3], [float("nan")] * 12)
    yield "nan-weight", onnx_model([helper.make_node("MatMul", ["x", "w"], ["y"])], [nan])
    yield "loop", onnx_model([helper.make_node("Identity", ["x"], ["y"])] * 3)


NAMES = "".join(f"(declare-const X_{i} Real)\n" for i in range(4))
NAMES += "".join(f"(declare-const Y_{i} Real)\n" for i in range(3))
ENDS = "".join(f"(assert (>= X_{i} 0.0))\n(assert (<= X_{i} 1.0))\n" for i in range(4))
GOOD_VNNLIB = (NAMES + ENDS + "(assert (<= Y_0 Y_1))\n").encode()


def vnnlib_files() -> Iterator[tuple[str, bytes]]:
    good = GOOD_VNNLIB
    yield from damaged(good)
    yield "deep", good + b"(assert " + b"(and " * 50_000 + b")" * 50_000 + b")"
    yield "open", good + b"(" * 1_000_000
    pairs = " ".join(f"(or (<= Y_0 {i}) (<= Y_1 {i}))" for i in range(60))
    yield "exponential", good + f"(assert (and {pairs}))".encode()
    yield "huge-number", (NAMES + ENDS.replace("1.0", "1" + "0" * 5000) + "(assert (<= Y_0 Y_1))").encode()
    yield "nan", (NAMES + ENDS.replace("1.0", "nan") + "(assert (<= Y_0 Y_1))").encode()
    yield "empty-box", (NAMES + ENDS.replace("0.0", "2.0") + "(assert (<= Y_0 Y_1))").encode()
    yield "no-box", (NAMES + "(assert (<= Y_0 Y_1))").encode()
    yield "too-many", good + b"(declare-const X_99999999999 Real)"
    yield "let", good + b"(assert (let ((a 1)) (<= Y_0 a)))"
    yield "product", good + b"(assert (<= 0 (* " + b"(+ X_0 X_1 X_2 X_3 Y_0 Y_1 Y_2) " * 60 + b")))"
    network = "(declare-network f (declare-input X real [{}]) (declare-output Y real [1,3]))(assert (<= Y[0,0] 0.0))"
    yield "huge-shape", network.format("1,99999,99999").encode()
    yield "no-shape", network.format("").encode()
    yield "zero-shape", network.format("1,0").encode()
    yield "version", b"(vnnlib-version <99.0>)" + network.format("1,4").encode()
    yield (
        "hidden",
        network.format("1,4").replace("(declare-output", '(declare-hidden H real [1] "h") (declare-output').encode(),
    )
    yield "equal-to-itself", network.format("1,4").replace("f (", "f (equal-to f) (").encode()
    yield "twice", 2 * network.format("1,4").encode()
    yield "long-name", good + b"(declare-const X_" + b"9" * 1_000_000 + b" Real)"


def instances_files() -> Iterator[tuple[str, bytes]]:
    yield from damaged(b"a.onnx,b.vnnlib,10\n" * 20)
    yield "negative", b"a.onnx,b.vnnlib,-1\n"
    yield "nan", b"a.onnx,b.vnnlib,nan\n"
    yield "quotes", b'"' * 100_001
    yield "long-field", b"a" * 1_000_000 + b",b,1\n"


def results_files() -> Iterator[tuple[str, bytes]]:
    good = json.loads((Path(__file__).parents[2] / "compare/results/digits-demo.json").read_text())
    yield from damaged(json.dumps(good).encode())
    yield "deep", b"[" * 200_000
    yield "deep-maps", b'{"a":' * 200_000
    yield "list", b"[]"
    yield "schema", json.dumps(good | {"schema": 99}).encode()
    yield "cells-number", json.dumps(good | {"cells": 7}).encode()
    yield "cell-strings", json.dumps(good | {"cells": ["a"]}).encode()
    yield "nan", json.dumps(good | {"cells": [good["cells"][0] | {"clean_accuracy": float("nan")}]}).encode()
    yield "more-certified", json.dumps(good | {"cells": [good["cells"][0] | {"clean_accuracy": 0.0}]}).encode()
    yield "huge-integer", b'{"schema": ' + b"9" * 10_000 + b"}"
    yield "experiment-list", json.dumps(good | {"experiment": [1]}).encode()


def state_files() -> Iterator[tuple[str, bytes]]:
    import torch

    from etb_plugin.training.state import sealed

    def saved(content: object) -> bytes:
        buffer = io.BytesIO()
        torch.save(content, buffer)
        return buffer.getvalue()

    good = saved({"version": 3, "network": {}})
    yield from damaged(sealed(good))
    for name, content in damaged(good):
        yield f"sealed-{name}", sealed(content)
    yield "code", sealed(saved(Harm()))
    yield "list", sealed(saved([1, 2]))
    yield "no-version", sealed(saved({"network": {}}))
    yield "strings", sealed(saved({"version": 3, **dict.fromkeys(("network", "optimizer", "generator", "torch"), "x")}))


def picture() -> bytes:
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8)).save(buffer, "PNG")
    return buffer.getvalue()


def picture_files() -> Iterator[tuple[str, bytes]]:
    good = picture()
    yield from damaged(good)

    def sized(width: int, height: int) -> bytes:
        header = b"IHDR" + struct.pack(">2I", width, height) + good[24:29]
        return good[:12] + header + struct.pack(">I", zlib.crc32(header)) + good[33:]

    yield "huge", sized(2**30, 2**30)
    yield "large", sized(12_000, 12_000)
    yield "other-size", sized(8, 7)
    yield "svg", b"<svg xmlns='http://www.w3.org/2000/svg'><image href='file:///etc/passwd'/></svg>"
    yield "postscript", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n(harmed) (w) file closefile\n"


IDX = {
    "train-labels-idx1-ubyte": struct.pack(">HBBI", 0, 8, 1, 2) + b"\x01\x02",
    "t10k-labels-idx1-ubyte": struct.pack(">HBBI", 0, 8, 1, 2) + b"\x01\x02",
    "t10k-images-idx3-ubyte": struct.pack(">HBB3I", 0, 8, 3, 2, 28, 28) + bytes(2 * 784),
}
"""The good files beside the images."""


def idx_files() -> Iterator[tuple[str, bytes]]:
    good = struct.pack(">HBB3I", 0, 8, 3, 2, 28, 28) + bytes(2 * 784)
    yield from damaged(good, 3)
    yield "huge", struct.pack(">HBB3I", 0, 8, 3, 2**31, 2**15, 2**15)
    yield "dimensions", struct.pack(">HBB", 0, 8, 255) + bytes(1020)
    yield "bomb", gzip.compress(bytes(2**31), 1)


def readers(folder: Path) -> dict[str, tuple[str, Callable[[Path], object], Callable[[], Iterator[tuple[str, bytes]]]]]:
    """Return for each kind of file its name on disk, what reads it, and the corpus."""
    import torch

    from etb_plugin import data
    from etb_plugin.experiment import read_experiment
    from etb_plugin.networks import build
    from etb_plugin.networks.checkpoints import load_weights, read_weights
    from etb_plugin.networks.onnx import read_onnx
    from etb_plugin.objectives import Recipe
    from etb_plugin.report.runs import read_run
    from etb_plugin.training.optimizers import optimizer_of
    from etb_plugin.training.state import State, read_state
    from etb_plugin.verification.instances import read_instances
    from etb_plugin.verification.posed import Posed
    from etb_plugin.verification.vnnlib import read_vnnlib

    network = build("mlp-8x1", (1, 8, 8), 10, seed=0)

    def weights(path: Path) -> object:
        several, _ = read_weights(path)
        load_weights(network, several[0], path)
        return several

    def state(path: Path) -> object:
        optimizer = optimizer_of(Recipe("a test"), network.parameters(), 0.1)
        return State(network, optimizer, torch.Generator()).load(read_state(path, print) or b"", str(path))

    def mnist(path: Path) -> object:
        root = path.parent / "mnist"
        root.mkdir(exist_ok=True)
        for name, content in IDX.items():
            (root / name).write_bytes(content)
        for name in ("train-images-idx3-ubyte", "train-images-idx3-ubyte.gz"):
            (root / name).unlink(missing_ok=True)
        content = path.read_bytes()
        (root / f"train-images-idx3-ubyte{'.gz' if content[:2] == bytes((31, 139)) else ''}").write_bytes(content)
        return data.load("mnist", data_dir=path.parent)

    return {
        "experiment": ("e.yaml", lambda path: read_experiment(path, {}).resolved(), yaml_files),
        "data": ("d.npz", lambda path: data.load(str(path)), data_files),
        "idx": ("images", mnist, idx_files),
        "safetensors": ("w.safetensors", weights, safetensors_files),
        "torch": ("w.pt", weights, torch_files),
        "state": ("state.pt", state, state_files),
        "onnx": ("n.onnx", read_onnx, onnx_files),
        "vnnlib": ("p.vnnlib", lambda path: Posed(read_vnnlib(path), [torch.nn.Linear(4, 3)], [(4,)]), vnnlib_files),
        "instances": ("instances.csv", read_instances, instances_files),
        "results": ("results.json", lambda path: read_run(path.parent), results_files),
    }


def peak() -> int:
    line = next(s for s in Path("/proc/self/status").read_text().splitlines() if s.startswith("VmHWM:"))
    return int(line.split()[1]) // 1024


def main(folder: Path, only: list[str]) -> None:
    from etb_plugin.errors import EtbError

    folder.mkdir(parents=True, exist_ok=True)
    os.chdir(folder)
    for reader, (name, read, files) in readers(folder).items():
        if only and reader not in only:
            continue
        for case, content in files():
            place = folder / reader / case
            place.mkdir(parents=True, exist_ok=True)
            path = place / name
            path.write_bytes(content)
            Path("/proc/self/clear_refs").write_text("5")
            before, begun = peak(), time.perf_counter()
            outcome, said = "read", ""
            try:
                read(path)
            except EtbError as error:
                outcome, said = "refused", str(error)
            except BaseException as error:  # what a user would see as a traceback
                outcome, said = "traceback", f"{type(error).__name__}: {error}"[:300]
            seconds, mib = time.perf_counter() - begun, peak() - before
            found = {"reader": reader, "case": case, "outcome": outcome, "seconds": round(seconds, 2), "mib": mib}
            changed = path.read_bytes() != content
            harmed = any((place.parents[depth] / "harmed").exists() for depth in range(2)) or Path("harmed").exists()
            print(
                json.dumps(found | {"lines": said.count("\n") + 1, "harm": harmed or changed, "said": said[:300]}),
                flush=True,
            )


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve(), sys.argv[2:])
