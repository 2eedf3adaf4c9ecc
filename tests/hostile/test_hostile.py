"""Hostile and broken files: refused in a line or two, in time, in little memory, with nothing harmed."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.hostile.corpus import MIB, SECONDS

QUICK = ("experiment", "safetensors", "torch", "state", "vnnlib", "instances", "results", "onnx")
HARMLESS = {
    # files that are what they seem, however odd
    *(("experiment", case) for case in ("empty", "cut-0.99")),
    *(("idx", f"changed-{i}") for i in range(3)),  # other pixels
    ("vnnlib", "empty-box"),
    *(("pictures", case) for case in ("cut-0.9", "cut-0.99")),  # all but the chunk that says that it ends
}
"""Files that may be read."""


def found_by(folder, *readers, by="corpus"):
    command = [sys.executable, "-W", "ignore", "-m", f"tests.hostile.{by}", str(folder), *readers]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[2], timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


def check(rows):
    for row in rows:
        where = row["reader"], row["case"]
        assert row["outcome"] == "refused" or (row["outcome"] == "read" and where in HARMLESS), row
        assert row["lines"] <= 2, row
        assert not row["harm"], row
        assert row["seconds"] < SECONDS, row
        assert row["mib"] < MIB, row


def test_broken_and_hostile_files_are_refused(tmp_path):
    rows = found_by(tmp_path, *QUICK)
    assert len(rows) > 190
    check(rows)


def test_the_commands_that_read_them_refuse_them_and_leave_the_disk_alone(tmp_path):
    rows = found_by(tmp_path, "experiment", "onnx", by="commands")
    assert len(rows) > 40
    check(rows)


@pytest.mark.slow
def test_so_do_those_that_read_the_others(tmp_path):
    others = ("safetensors", "vnnlib", "torch", "instances", "pictures", "data", "results", "idx")
    rows = found_by(tmp_path, *others, by="commands")
    assert len(rows) > 250
    check(rows)


@pytest.mark.slow
def test_data_that_would_fill_the_memory_is_refused(tmp_path):
    rows = found_by(tmp_path, "data", "idx")
    assert {"bomb", "escape", "objects"} <= {row["case"] for row in rows}
    check(rows)
