"""The corpus's files given to the commands that read such files, each in a process of its own.

    python -m tests.hostile.commands FOLDER [KIND ...]

Every command has to end with status 2 and an error in two lines or fewer, or with 0 where the file is harmless after
all, and leave what is on disk as it is. One line of JSON for each, as `corpus` prints them. Processes are forked from
one in which everything is imported: seconds and memory are the file's own.
"""

import gc
import importlib
import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from etb_plugin.cli.main import COMMANDS, main
from tests.hostile import corpus

_NETWORK = "--dataset digits --model mlp-8x1 --test-limit 10"
_OUTCOMES = {0: "read", 2: "refused"}
_PROPERTY = "verify n.onnx p.vnnlib --timeout 5"

KINDS: dict[str, tuple[str, Callable[[], Iterator[tuple[str, bytes]]], tuple[str, ...]]] = {
    # its name on disk, the corpus, and the commands that read it
    "experiment": ("e.yaml", corpus.yaml_files, ("compare e.yaml --dry-run", "experiment check e.yaml")),
    "data": ("d.npz", corpus.data_files, ("compare --dataset d.npz --model mlp-8x1 --methods ibp --dry-run",)),
    "safetensors": (
        "w.safetensors",
        corpus.safetensors_files,
        (f"evaluate w.safetensors {_NETWORK}", "verify w.safetensors --dataset digits --model mlp-8x1 --images 0:1"),
    ),
    "torch": ("w.pt", corpus.torch_files, (f"evaluate w.pt {_NETWORK}", f"bounds --checkpoint w.pt {_NETWORK}")),
    "onnx": ("n.onnx", corpus.onnx_files, (_PROPERTY,)),
    "vnnlib": ("p.vnnlib", corpus.vnnlib_files, (_PROPERTY,)),
    "instances": ("i.csv", corpus.instances_files, ("verify --instances i.csv --out answers",)),
    "results": ("results.json", corpus.results_files, ("report .", "report results.json --format csv")),
    "pictures": (
        "d/train/a/0.png",
        corpus.picture_files,
        ("compare --dataset d/ --model mlp-8x1 --methods ibp --dry-run",),
    ),
    "idx": ("mnist/train-images-idx3-ubyte", corpus.idx_files, ("compare --dataset mnist --data-dir . --dry-run",)),
}


def beside(kind: str) -> dict[str, bytes]:
    """Return the good files that a command wants too."""
    if kind in ("onnx", "vnnlib"):
        return {"n.onnx": corpus.good_onnx(), "p.vnnlib": corpus.GOOD_VNNLIB}
    if kind == "pictures":
        return {f"d/{name}.png": corpus.picture() for name in ("train/a/1", "train/b/0", "test/a/0", "test/b/0")}
    return {f"mnist/{name}": content for name, content in corpus.IDX.items()} if kind == "idx" else {}


def on_disk(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def forked(command: str, folder: Path) -> tuple[int, str, float, int]:
    """Run a command in `folder`; return its status, what it said of errors, its seconds and the MiB that it took."""
    said, took, begun = folder.with_suffix(".err"), folder.with_suffix(".mib"), time.perf_counter()
    process = os.fork()
    if not process:
        os.chdir(folder)
        gc.freeze()
        Path("/proc/self/clear_refs").write_text("5")
        before = corpus.peak()
        for stream, place in ((1, os.devnull), (2, str(said))):
            os.dup2(os.open(place, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), stream)
        sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")
        sys.argv = ["etb", *command.split()]
        status = 99  # what ends otherwise than by sys.exit
        try:
            main()
        except SystemExit as stop:
            status = int(stop.code or 0)
        finally:
            sys.stderr.flush()
            took.write_text(str(corpus.peak() - before))
            os._exit(status)
    _, status = os.waitpid(process, 0)
    found = os.waitstatus_to_exitcode(status), said.read_text(), time.perf_counter() - begun, int(took.read_text())
    for file in (said, took):
        file.unlink()
    return found


def run(folder: Path, only: list[str]) -> None:
    for kind, (name, files, commands) in KINDS.items():
        if only and kind not in only:
            continue
        for case, content in files():
            place = folder / kind / case
            zipped = ".gz" if content[:2] == b"\x1f\x8b" else ""
            for file, inside in {**beside(kind), name + zipped: content}.items():
                (place / file).parent.mkdir(parents=True, exist_ok=True)
                (place / file).write_bytes(inside)
            before = on_disk(folder / kind)
            for command in commands:
                status, said, seconds, mib = forked(command, place)
                outcome = _OUTCOMES.get(status, f"status {status}")
                found = {"reader": kind, "case": case, "outcome": outcome, "seconds": round(seconds, 2), "mib": mib}
                lines, harm = len(said.strip().splitlines()), on_disk(folder / kind) != before
                told = found | {"lines": lines, "harm": harm, "said": said[:300], "command": command}
                print(json.dumps(told), flush=True)
            shutil.rmtree(place)


if __name__ == "__main__":
    for command in COMMANDS:
        importlib.import_module(f"etb_plugin.cli.{command}")
    for module in ("comparison", "verification", "networks.onnx", "report.table", "report.page", "experiment", "data"):
        importlib.import_module(f"etb_plugin.{module}")
    run(Path(sys.argv[1]).resolve(), sys.argv[2:])
