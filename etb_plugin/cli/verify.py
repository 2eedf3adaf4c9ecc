"""`etb verify`: decide, image by image, whether a trained network is robust."""

import contextlib
import os
import threading
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from etb_plugin.cli import options as o
from etb_plugin.errors import ConfigError
from etb_plugin.memory import limit_memory, machine_memory

if TYPE_CHECKING:
    from etb_plugin.experiment import VerifyRequest

_LATE = 1.5
"""Seconds after a property's limit by which it is answered in any case."""
_LEAST_MEMORY = 0.5
"""GiB that a process takes with torch and a small network in it."""


def command(
    context: typer.Context,
    weights: Annotated[
        Path | None,
        typer.Argument(help="A run folder, .safetensors, state_dict, .onnx or zoo:NAME.", show_default=False),
    ] = None,
    property_: Annotated[
        Path | None,
        typer.Argument(metavar="property", help="A VNN-LIB property of an ONNX network.", show_default=False),
    ] = None,
    network: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=FILE.onnx",
            help="A network that the VNN-LIB property declares by that name; several times.",
            rich_help_panel="Verification",
        ),
    ] = None,
    serialise_assignments: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="Write a property's counterexample there, a .pb for each tensor, and print the word alone.",
            rich_help_panel="Verification",
        ),
    ] = None,
    instances: Annotated[
        Path | None,
        typer.Option(
            help="A list of network.onnx,property.vnnlib,seconds, with --out.", rich_help_panel="Verification"
        ),
    ] = None,
    dataset: o.Dataset = None,
    model: o.Model = None,
    eps_test: o.EpsTest = None,
    images: o.Images = None,
    stages: o.Stages = None,
    time_limit: o.TimeLimit = None,
    solver: o.Solver = None,
    rigorous: o.Rigorous = None,
    minimum_radius: Annotated[
        bool,
        typer.Option(
            "--minimum-radius",
            help="Bisect for each image's largest certified and smallest attacked eps instead.",
            rich_help_panel="Verification",
        ),
    ] = False,
    largest: Annotated[
        float, typer.Option(help="The largest eps that --minimum-radius tries.", rich_help_panel="Verification")
    ] = 0.5,
    precision: Annotated[
        float, typer.Option(help="How closely --minimum-radius bisects.", rich_help_panel="Verification")
    ] = 0.001,
    workers: Annotated[
        int | None,
        typer.Option(
            help="Processes for inputs, bab, exact and lp, or for instances; 1.", rich_help_panel="Verification"
        ),
    ] = None,
    memory: Annotated[
        float | None,
        typer.Option(
            help="GiB that all processes together may hold; three quarters of the machine's.",
            rich_help_panel="Verification",
        ),
    ] = None,
    pgd_steps: o.PgdSteps = None,
    pgd_restarts: o.PgdRestarts = None,
    seed: o.AttackSeed = None,
    device: o.Device = None,
    data_dir: o.DataDir = None,
    out: o.Out = None,
) -> None:
    """Decide for each test image whether any point of its box is misclassified.

    IBP proves what it can, PGD looks for a counterexample, dearer sound bounds for a proof, each on what is left;
    branch and bound (bab) and mixed-integer programming (exact) decide the rest within the time limit. What is left is
    unknown, and counts as attackable. With --out, results.json, one file for each image and the counterexamples are
    written there, and the same command goes on where it stopped.

    A file with a list of state_dicts is a cascade of networks, verified as one: an image is answered by the first that
    is robust there, or else by the last.

    With --rigorous proofs hold in real arithmetic: what rounding may have added is taken off every bound.

    With a PROPERTY, the answer is the verification competition's: sat and a counterexample, unsat, timeout or unknown.
    A property of several networks comes first, and each network by --network, as VNN-LIB 2.0 has it (there timeout is
    timed-out).

    With --instances, every line of a competition's list is answered so, each in a process of its own, its seconds being
    its limit; records, counterexamples, results.csv and a cactus plot are written to --out, where the same command goes
    on.

    Example: etb verify network.onnx property.vnnlib --timeout 60

    Example: etb verify property.vnnlib --network f=one.onnx --network g=other.onnx --timeout 60

    Example: etb verify --instances instances.csv --out results --workers 2

    Example: etb verify mine --images 0:200 --time-limit 30 --workers 2 --out mine-verified
    """
    if (weights is None) == (instances is None):
        raise ConfigError("etb verify takes either WEIGHTS, or --instances and --out")
    request = o.verification(context)
    share = _memory(memory, workers or 1)
    if weights is None:
        assert instances is not None
        _run_instances(instances, out, workers or 1, share, request)
        return
    networks = _networks(weights, property_, network or [])
    if serialise_assignments is not None and not networks and property_ is None:
        raise ConfigError("--serialise-assignments is of a property's counterexample; images leave theirs in --out")
    o.check_there(weights, *networks.values(), *([property_] if property_ is not None else []))
    from etb_plugin.report.stoppable import StoppableLive
    from etb_plugin.report.table import radius_table, verification_table
    from etb_plugin.training.allocation import keep_freed_memory
    from etb_plugin.verification import (
        RADIUS_STAGES,
        STAGES,
        PropertyCheck,
        Verification,
        cascade_of,
        minimum_radii,
    )

    keep_freed_memory()
    if share is not None:
        limit_memory(share)  # the processes that start from here inherit it
    if networks or property_ is not None:
        timeout = "timed-out" if networks else "timeout"
        of, about = (weights, property_) if property_ is not None else (networks, weights)
        with _giving_up_after(request.time_limit + _LATE, timeout):
            check = PropertyCheck(of, about, cascade_of(request, STAGES), drop=request.stages is None)
            _say_what_is_left_out(check.left_out)
            answer = check.run()
        for line in answer.failed:
            o.stderr().print(line, highlight=False, soft_wrap=True)
        if serialise_assignments is not None:
            answer.save(serialise_assignments)
        text = answer.text if serialise_assignments is None else answer.word
        print(timeout if answer.word == "timeout" else text)
        return
    verification = Verification(weights, request, RADIUS_STAGES if minimum_radius else STAGES)
    _say_what_is_left_out(verification.left_out)
    with StoppableLive(o.stderr()) as live:
        if minimum_radius:
            table = radius_table(minimum_radii(verification, largest, precision, live), verification.title)
        else:
            table = verification_table(verification.run(live), verification.title)
    _say_what_is_left_out(verification.failed)
    o.stdout().print(table)
    if out is not None:
        further = "" if minimum_radius else ", findings and counterexamples"
        o.stdout().print(f"Written: {out}/results.json{further}", soft_wrap=True)


def _memory(asked: float | None, workers: int) -> int | None:
    """Return the bytes that each of so many processes may hold, None where nobody knows what there is."""
    if asked is None:
        there = machine_memory()
        return None if there is None else 3 * there // 4 // workers
    if asked / workers < _LEAST_MEMORY:
        raise ConfigError(f"--memory {asked:g} for {workers} processes: each takes {_LEAST_MEMORY} GiB or more")
    return int(asked * 2**30) // workers


def _networks(weights: Path, property_: Path | None, named: Sequence[str]) -> dict[str, Path]:
    """Return the networks that come by name beside a property, none where the network itself comes first."""
    first = weights.name.removesuffix(".gz").endswith(".vnnlib")
    if first != bool(named) or (named and property_ is not None):
        raise ConfigError(
            "write either etb verify network.onnx property.vnnlib, or etb verify property.vnnlib --network "
            "NAME=network.onnx, with --network for each network that the property declares"
        )
    pairs = [one.partition("=") for one in named]
    for name, equals, file in pairs:
        if not name or not equals or not file:
            raise ConfigError(f"--network {name}{equals}{file}: write NAME=FILE.onnx, NAME as the property declares it")
    if len({name for name, _, _ in pairs}) < len(pairs):
        raise ConfigError("--network names a network twice")
    return {name: Path(file) for name, _, file in pairs}


@contextlib.contextmanager
def _giving_up_after(seconds: float, answer: str) -> Iterator[None]:
    """Print the answer and end the process where the context lasts longer: a single operation of a large network may
    take longer than any loop that looks at the clock."""

    def give_up() -> None:
        print(answer, flush=True)
        os._exit(0)

    timer = threading.Timer(seconds, give_up)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _run_instances(path: Path, out: str | None, workers: int, memory: int | None, request: "VerifyRequest") -> None:
    if out is None:
        raise ConfigError("--instances needs --out: the folder for what is found")
    o.check_there(path)
    from etb_plugin.report.cactus import save_cactus
    from etb_plugin.verification.instances import Answered, file_names, run_instances

    def told(answer: Answered) -> None:
        beside = f": {answer.said}" if answer.word == "error" else ""
        line = f"{answer.word:8} {answer.seconds:6.1f} s  {file_names(answer.network)} {Path(answer.property_).name}"
        o.stdout().print(line + beside, highlight=False, soft_wrap=True)

    options = ["--seed", str(request.seed), "--solver", request.solver, "--device", request.device]
    options += ["--pgd-steps", str(request.pgd_steps), "--pgd-restarts", str(request.pgd_restarts)]
    options += ["--rigorous"] if request.rigorous else []
    if request.stages is not None:
        options += ["--stages", ",".join(request.stages)]
    answers = run_instances(path, Path(out), workers, memory, options, told)
    save_cactus(answers, Path(out) / "cactus")
    counts = Counter(answer.word for answer in answers)
    o.stdout().print(", ".join(f"{count} {word}" for word, count in counts.most_common()), highlight=False)
    o.stdout().print(f"Written: {out}/results.csv, counterexamples and cactus.png", soft_wrap=True)


def _say_what_is_left_out(stages: Mapping[str, str]) -> None:
    by_reason: dict[str, list[str]] = {}
    for stage, why in stages.items():
        by_reason.setdefault(why, []).append(stage)
    for why, names in by_reason.items():
        verb = "is" if len(names) == 1 else "are"
        o.stderr().print(f"{', '.join(names)} {verb} left out: {why}", highlight=False, soft_wrap=True)
