"""Engines: the same cells, figures and files whatever runs them, and whatever is killed on the way."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.command import etb

EXPERIMENT = """
dataset: digits
model: mlp-40x2
methods: [ibp, expected]
eps: 0.1
training: {epochs: 14, train_limit: 600}
evaluation: {test_limit: 20, pgd_steps: 2}
engine: {threads: 1}
"""
COSTS = {"train_seconds", "seconds_per_epoch", "step_ms", "nominal_step_ms", "peak_memory_mib"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("engines")
    (made / "e.yaml").write_text(EXPERIMENT)
    done = etb("compare", "e.yaml", "--out", "whole", cwd=made)
    assert done.returncode == 0, done.stderr
    return made


def figures(run):
    content = json.loads((run / "results.json").read_text())
    return [{key: value for key, value in cell.items() if key not in COSTS} for cell in content["cells"]]


def epochs(run):
    return sum(len(file.read_text().splitlines()) for file in run.glob("cells/*/metrics.jsonl"))


@contextlib.contextmanager
def begun(folder, *arguments):
    """A comparison in a process group of its own."""
    call = (sys.executable, "-m", "etb_plugin", "compare", "e.yaml", *arguments)
    with subprocess.Popen(
        call, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        try:
            yield process
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def until(condition, process, seconds=60):
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.05)


def children(process, word):
    """The processes below `process` whose command line holds `word`."""
    listed = subprocess.run(("ps", "-eww", "-o", "pid,sid,args"), capture_output=True, text=True, check=True).stdout
    rows = [line.split(None, 2) for line in listed.splitlines()[1:]]
    return [int(pid) for pid, sid, args in rows if int(sid) == process.pid and word in args and int(pid) != process.pid]


@pytest.mark.slow
def test_two_workers_killed_twice_end_with_the_same_figures(folder):
    run = folder / "two"
    for part in (6, 24):
        with begun(folder, "--out", "two", "--workers", "2") as process:
            until(lambda part=part: epochs(run) >= part, process)
            os.killpg(process.pid, signal.SIGKILL)
    assert 24 <= epochs(run) < 40
    done = etb("compare", "e.yaml", "--out", "two", "--workers", "2", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert figures(run) == figures(folder / "whole")


def test_a_worker_that_dies_is_replaced_and_a_second_comparison_is_refused_meanwhile(folder):
    run = folder / "lost"
    with begun(folder, "--out", "lost", "--workers", "2") as process:
        until(lambda: epochs(run) >= 8, process)
        os.killpg(process.pid, signal.SIGSTOP)
        second = etb("compare", "e.yaml", "--out", "lost", cwd=folder)
        assert (second.returncode, second.stderr) == (2, "error: lost is in use by another process\n")
        status = etb("compare", "status", "lost", cwd=folder)
        assert "of 2 cells done" in status.stdout
        assert "epoch" in status.stdout
        os.kill(children(process, "spawn_main")[0], signal.SIGKILL)
        os.killpg(process.pid, signal.SIGCONT)
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
    assert figures(run) == figures(folder / "whole")


@pytest.mark.slow
@pytest.mark.parametrize("how", ["SIGTERM to the command", "Ctrl-C to all of its processes"])
def test_workers_stop_with_a_checkpoint_and_go_on(folder, how):
    run = folder / how.split()[0]
    with begun(folder, "--out", run.name, "--workers", "2") as process:
        until(lambda: epochs(run) >= 8, process)
        if how.startswith("SIGTERM"):
            process.terminate()
        else:
            os.killpg(process.pid, signal.SIGINT)
        _, errors = process.communicate(timeout=60)
        assert process.returncode == (143 if how.startswith("SIGTERM") else 130), errors
        assert "Traceback" not in errors
        assert "the same command goes on from there" in errors
        assert not children(process, "spawn_main")
    assert any((cell / "state.pt").exists() for cell in (run / "cells").iterdir())
    done = etb("compare", "e.yaml", "--out", run.name, cwd=folder)
    assert done.returncode == 0, done.stderr
    assert figures(run) == figures(folder / "whole")


def test_printed_lines_do_the_cells_and_the_comparison_finds_them(folder):
    printed = etb("compare", "e.yaml", "--out", "lines", "--engine", "print", "--threads", "1", cwd=folder)
    lines = printed.stdout.splitlines()
    assert len(lines) == 2
    assert all(line.startswith("etb cell lines ") for line in lines)
    script = lines[0].replace("etb ", f"{sys.executable} -m etb_plugin ", 1)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run(("sh", "-e", "-c", script), cwd=folder, env=environment, check=True, capture_output=True)
    again = etb("compare", "e.yaml", "--out", "lines", "--engine", "print", cwd=folder)
    assert again.stdout.splitlines() == lines[1:]
    listed = etb("compare", "e.yaml", "--out", "lines", "--dry-run", cwd=folder)
    assert "1 done, 1 missing" in listed.stdout
    done = etb("compare", "e.yaml", "--out", "lines", "--threads", "1", cwd=folder)
    assert done.stderr.count("kept from an earlier run") == 1
    assert figures(folder / "lines") == figures(folder / "whole")


@pytest.mark.slow
def test_ray_loses_a_worker_and_the_driver_and_ends_with_the_same_figures(folder):
    pytest.importorskip("ray")
    run = folder / "ray"
    arguments = ("--out", "ray", "--engine", "ray", "--workers", "2")
    with begun(folder, *arguments) as process:
        until(lambda: epochs(run) >= 8, process)
        os.killpg(process.pid, signal.SIGKILL)
    time.sleep(2)  # the cluster that the driver had started notices
    with begun(folder, *arguments) as process:
        before = epochs(run)
        until(lambda: epochs(run) >= before + 8, process)
        os.kill(children(process, "ray::_perform")[0], signal.SIGKILL)
        _, errors = process.communicate(timeout=180)
        assert process.returncode == 0, errors
    assert figures(run) == figures(folder / "whole")


def listeners(group):
    """Return the addresses, as /proc/net has them, at which processes of a group listen."""
    lines = [line.split() for table in ("tcp", "tcp6") for line in Path(f"/proc/net/{table}").read_text().splitlines()]
    listening = {f"socket:[{line[9]}]": line[1] for line in lines if line[3] == "0A"}
    found = set()
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if os.getpgid(int(process.name)) == group:
                found |= {listening.get(str(link.readlink())) for link in (process / "fd").iterdir()}
    return found - {None}


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="/proc")
def test_a_ray_of_ours_listens_on_this_machine_alone(folder):
    pytest.importorskip("ray")
    with begun(folder, "--out", "alone", "--engine", "ray", "--workers", "2") as process:
        until(lambda: epochs(folder / "alone") >= 2, process)
        found = listeners(os.getpgid(process.pid))
        process.communicate(timeout=180)
    assert len(found) >= 5
    assert {address.rpartition(":")[0] for address in found} <= {"0100007F", "0000000000000000FFFF00000100007F"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--engine", "slurm"), "unknown engine 'slurm'; known: local, print, ray"),
        (("--engine", "ray", "--address", "127.0.0.1:1"), "no Ray cluster answers at 127.0.0.1:1 within 10 s"),
        (("--engine", "ray", "--address", "somewhere"), "write auto, HOST:PORT or ray://HOST:PORT"),
        (("--engine", "ray", "--address", "auto"), "Ray cannot be reached at auto"),
        (("--address", "auto"), "engine.address is for engine ray"),
        (("--engine", "print", "--workers", "2"), "takes no workers"),
    ],
)
def test_an_engine_that_cannot_work_is_refused_and_nothing_is_written(folder, arguments, message):
    if "ray" in arguments:
        pytest.importorskip("ray")
    done = etb("compare", "e.yaml", "--out", "none", *arguments, cwd=folder)
    assert done.returncode == 2
    assert message in done.stderr
    assert not (folder / "none").exists()


def test_a_cell_that_is_none_is_refused(folder):
    for run, cell, message in (("whole", "x", "whole has no cell x"), (".", "x", ". holds no experiment.yaml")):
        done = etb("cell", run, cell, cwd=folder)
        assert done.returncode == 2
        assert message in done.stderr


def test_an_engine_that_is_not_installed_says_what_to_install(monkeypatch):
    from etb_plugin.comparison.engines import engine_of, ray
    from etb_plugin.errors import ConfigError
    from etb_plugin.experiment import Engine

    monkeypatch.setattr(ray, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"the engine 'ray' is not installed: pip install 'etb_plugin\[ray\]'"):
        engine_of(Engine(name="ray"), "cpu")


@pytest.mark.parametrize(("gpus", "workers"), [(None, 2), (0.5, 4), (2.0, 1)])
def test_workers_take_the_gpus_in_turn(monkeypatch, gpus, workers):
    from etb_plugin.comparison.engines import local
    from etb_plugin.experiment import Engine

    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    assert local.Local(Engine(gpus=gpus), "cuda")._workers == workers
    seen = []
    for gpu in (0, 1, None):
        with local._seeing(gpu):
            seen.append(os.environ["CUDA_VISIBLE_DEVICES"])
    assert seen == ["3", "5", "3,5"]
