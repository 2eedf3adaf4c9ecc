"""A command with a fault at its n-th file operation, for all n, in forks of one process that has everything imported.

    python -m tests.faults.harness FOLDER FAULT [STRIDE]

FAULT: `kill` (SIGKILL; at an fsync with half of the file on disk), `full` (from the n-th operation on, nothing is
written), `once` (the n-th alone fails, as where a quota is met and lifted). A line of JSON for each n: how the command
ended, what it said, and how what the same command leaves afterwards differs from what an undisturbed one left.
"""

import errno
import json
import os
import signal
import stat
import sys
import traceback
from pathlib import Path

FILE = """\
dataset: digits
model: tiny
eps: 0.05
training: {epochs: 2, train_limit: 200}
evaluation: {pgd_steps: 3, test_limit: 20, certify: [ibp]}
verification: {images: "0:4", stages: [pgd, ibp, crown]}
methods: [sabr: {swa_from: 1 epochs}]
"""
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT
_OPERATIONS = {"os.rename": 0, "os.remove": 0, "os.mkdir": 0, "os.link": 1}
"""Audited operations beside `open`, and which argument of each says where."""
_COSTS = ("seconds", "_ms", "mib", "time", "when", "device", "environment")


class Fault:
    """Counts file operations below a folder, and strikes at one of them."""

    def __init__(self, folder: Path, kind: str, at: int | None) -> None:
        self.folder, self.kind, self.at, self.count = str(folder), kind, at, 0
        sys.addaudithook(self._hook)
        self._fsync, os.fsync = os.fsync, self._synced

    def _hook(self, event: str, arguments: tuple) -> None:
        if event == "open":
            path, _, flags = arguments
            if isinstance(path, (str, bytes, os.PathLike)) and flags & _WRITES and self._within(path):
                self._operation()
        elif event in _OPERATIONS and self._within(arguments[_OPERATIONS[event]]):
            self._operation(frees=event == "os.remove")

    def _within(self, path: object) -> bool:
        return os.fsdecode(path).startswith(self.folder)

    def _synced(self, descriptor: int) -> None:
        about = os.fstat(descriptor)
        if self.kind == "kill" and self.count + 1 == self.at and stat.S_ISREG(about.st_mode):
            os.ftruncate(descriptor, about.st_size // 2)
        self._operation()
        self._fsync(descriptor)

    def _operation(self, frees: bool = False) -> None:
        self.count += 1
        if self.at is None or self.count < self.at or (self.kind != "full" and self.count > self.at):
            return
        if self.kind == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if not frees:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def command(folder: Path) -> list[str]:
    return ["compare", str(folder.parent / "experiment.yaml"), "--out", str(folder), "--threads", "1"]


def run(folder: Path, kind: str = "", at: int | None = None) -> tuple[int, str, int]:
    """Run the command in a fork; return its status (negative: the signal), what it said, and its file operations."""
    log = folder.parent / "said.txt"
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        said = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(said, 1)
        os.dup2(said, 2)
        fault = Fault(folder, kind, at)
        status = 70
        try:
            sys.argv = ["etb", *command(folder)]
            from etb_plugin.cli.main import main

            main()
        except SystemExit as ended:
            status = ended.code or 0
        except BaseException:
            traceback.print_exc()
        finally:
            os.write(writer, str(fault.count).encode())
            sys.stdout.flush()
            os._exit(status)
    os.close(writer)
    _, status = os.waitpid(child, 0)
    with os.fdopen(reader) as counted:
        count = counted.read()
    return os.waitstatus_to_exitcode(status), log.read_text(), int(count or 0)


def left(folder: Path) -> dict[str, object]:
    """Return what a run leaves, without what it cost and when: JSON by value, lines too, anything else by name."""
    found: dict[str, object] = {}
    for file in sorted(p for p in folder.rglob("*") if p.is_file()):
        name = str(file.relative_to(folder))
        if file.name == "progress.json":  # as of the last second
            continue
        if file.suffix == ".json" and file.name != "estimates.json":
            found[name] = stripped(json.loads(file.read_text().replace(str(folder), "")))
        elif file.suffix == ".jsonl":
            found[name] = [stripped(json.loads(line)) for line in file.read_text().splitlines()]
        else:
            found[name] = "weights" if file.suffix != ".safetensors" else weights(file)
    return found


def weights(file: Path) -> dict[str, object]:
    from safetensors.torch import load_file

    return {name: tensor.tolist() for name, tensor in load_file(file).items()}


def stripped(value: object) -> object:
    if isinstance(value, dict):
        return {k: stripped(v) for k, v in value.items() if not any(part in k for part in _COSTS)}
    return [stripped(one) for one in value] if isinstance(value, list) else value


def main(top: Path, kind: str, stride: int) -> None:
    import etb_plugin.comparison
    import etb_plugin.report.page  # noqa: F401

    (top / "experiment.yaml").write_text(FILE)
    status, said, operations = run(top / "undisturbed")
    assert status == 0, said
    want = left(top / "undisturbed")
    for at in range(1, operations + 1, stride):
        folder = top / f"run-{at}"
        status, said, _ = run(folder, kind, at)
        again, said_then, _ = run(folder)
        got = left(folder)
        differs = [name for name in sorted({*want, *got}) if want.get(name) != got.get(name)]
        row = {"at": at, "of": operations, "status": status, "said": said, "again": again, "differs": differs}
        print(json.dumps(row | ({} if again == 0 else {"said_then": said_then})), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve(), sys.argv[2], int((*sys.argv, "1")[3]))
