"""A competition's list of instances, each in a process of its own: whatever one of them does, the others have answers.

The list has lines `network.onnx,property.vnnlib,seconds`, paths from where it lies; in place of the network stands
`"[('f', 'one.onnx'), ('g', 'other.onnx')]"` where the property declares several. A file that lies there packed alone,
as FILE.gz, is taken so. What is kept in the folder: a record and, where there is one, a counterexample for each
instance, and results.csv in the competition's columns.
"""

import ast
import csv
import io
import itertools
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path

from etb_plugin.errors import ConfigError
from etb_plugin.files import claimed, read_json, write_file, write_json

WORDS = ("sat", "unsat", "timeout", "unknown")
_GRACE = 15.0
"""Seconds beyond an instance's own for starting and reading; then its process is ended."""


@dataclass(frozen=True)
class Instance:
    """One line: a network, or several by name, a property, and the seconds that it may take."""

    networks: dict[str | None, Path]
    property_: Path
    seconds: float

    @property
    def network(self) -> str:
        """The network, or as the competition writes several."""
        if None in self.networks:
            return str(self.networks[None])
        return str([(name, str(file)) for name, file in self.networks.items()])

    @property
    def arguments(self) -> list[str]:
        """What `etb verify` takes for it."""
        if None in self.networks:
            return [str(self.networks[None]), str(self.property_)]
        named = (("--network", f"{name}={file}") for name, file in self.networks.items())
        return [str(self.property_), *itertools.chain.from_iterable(named)]


@dataclass(frozen=True)
class Answered:
    """What became of an instance: the competition's word or "error", the seconds of wall time that it took, and what
    was said beside it."""

    network: str
    property_: str
    word: str
    seconds: float
    said: str


def read_instances(path: Path) -> list[Instance]:
    """Return the instances of a list. Raises ConfigError, naming the line, for one that is malformed or names a file
    that is not there."""
    try:
        lines = list(csv.reader(path.read_text().splitlines()))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from None
    found = []
    for number, line in enumerate(lines, start=1):
        if not line:
            continue
        try:
            network, property_, seconds = line
            networks = {name: _there(path.parent / file) for name, file in _named(network.strip())}
            instance = Instance(networks, _there(path.parent / property_.strip()), float(seconds))
        except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):  # the last three: of no list of pairs
            raise ConfigError(f"{path}, line {number}: write network.onnx,property.vnnlib,seconds") from None
        for file in (*instance.networks.values(), instance.property_):
            if not file.is_file():
                raise ConfigError(f"{path}, line {number}: there is no {file}")
        if not 0 < instance.seconds < float("inf"):
            raise ConfigError(f"{path}, line {number}: {seconds.strip()} is no number of seconds")
        found.append(instance)
    if not found:
        raise ConfigError(f"{path} lists no instances")
    return found


def _named(network: str) -> list[tuple[str | None, str]]:
    """Return the files of a line's first column by name. Raises what literals raise where it is malformed."""
    if not network.startswith("["):
        return [(None, network)]
    pairs = ast.literal_eval(network)
    if not pairs or not all(isinstance(text, str) for pair in pairs for text in pair):
        raise ValueError(network)
    return [(str(name), str(file)) for name, file in pairs]


def file_names(network: str) -> str:
    """Return the names of the files of an answer's network, without their folders."""
    return " ".join(Path(file).name for _, file in _named(network))


def _there(file: Path) -> Path:
    """Return the file, or what it is packed in where only that is there."""
    packed = file.with_name(f"{file.name}.gz")
    return packed if packed.is_file() and not file.exists() else file


def run_instances(
    path: Path,
    out: Path,
    workers: int,
    memory: int | None,
    options: Sequence[str],
    told: Callable[[Answered], None],
) -> list[Answered]:
    """Run the instances of a list that have no record in `out` yet, `workers` at a time, and return all in order.

    Each may hold `memory` bytes. `options` go to every `etb verify`; `told` hears of each answer as it comes. Raises
    ConfigError for a list that `read_instances` refuses, and where `out` holds something else.
    """
    instances = read_instances(path)
    answers: dict[int, Answered] = {}
    listed = [[i.network, str(i.property_), i.seconds] for i in instances]
    limits = [] if memory is None else ["--memory", f"{memory / 2**30:.3f}"]
    with claimed(out, {"instances": listed, "options": list(options)}), ThreadPoolExecutor(workers) as pool:
        waiting = {}
        for number, instance in enumerate(instances):
            record = out / "instances" / f"{number:05d}.json"
            if record.exists():
                answers[number] = Answered(**read_json(record))
            else:
                waiting[
                    pool.submit(_answered, instance, [*options, *limits], out / "counterexamples" / f"{number:05d}")
                ] = number
        try:
            for done in as_completed(waiting):
                number = waiting[done]
                answers[number] = done.result()
                write_json(out / "instances" / f"{number:05d}.json", asdict(answers[number]))
                told(answers[number])
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
        results = [answers[number] for number in range(len(instances))]
        table = io.StringIO()
        rows = csv.writer(table, lineterminator="\n")
        for answer in results:
            rows.writerow([path.parent.name, answer.network, answer.property_, 0, answer.word, f"{answer.seconds:.3f}"])
        write_file(out / "results.csv", table.getvalue())
    return results


def _answered(instance: Instance, options: Sequence[str], counterexample: Path) -> Answered:
    begun = time.monotonic()
    command = [sys.executable, "-m", "etb_plugin", "verify", *instance.arguments]
    command += ["--timeout", str(instance.seconds), *options]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=instance.seconds + _GRACE, check=False
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return _of(instance, "timeout", begun, f"ended {_GRACE:g} s after its time")
    word, _, point = done.stdout.partition("\n")
    word = "timeout" if word == "timed-out" else word
    said = done.stderr.strip().removeprefix("error: ")
    if done.returncode or word not in WORDS:
        return _of(instance, "error", begun, said or f"ended with status {done.returncode}")
    if word == "sat":
        write_file(counterexample, point)
    return _of(instance, word, begun, said)


def _of(instance: Instance, word: str, begun: float, said: str) -> Answered:
    return Answered(instance.network, str(instance.property_), word, time.monotonic() - begun, said)
