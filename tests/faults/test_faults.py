"""Faults at every file operation of a comparison: checkpoints, weights, records of verification, results, pages.

What a user finds after each: the same command goes on to what an undisturbed one leaves, and nothing lies about.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest


def struck(folder, kind, stride):
    """Return a row for each n; see `tests.faults.harness`."""
    command = [sys.executable, "-W", "ignore", "-m", "tests.faults.harness", str(folder), kind, str(stride)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}  # a process with more threads is not to be forked
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=Path(__file__).parents[2], timeout=3000, env=environment
    )
    assert done.returncode == 0, done.stderr[-2000:]
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(rows) == -(-rows[0]["of"] // stride) > 1
    return rows


def check(rows, kind):
    assert sum(row["status"] != 0 for row in rows) > len(rows) * (0.8 if kind == "kill" else 0.5)
    for row in rows:
        assert row["again"] == 0, row
        assert row["differs"] == [], row
        if kind == "kill":
            assert row["status"] in (-9, 0), row  # 0: a slower machine writes its pace more often than a faster one
        else:
            assert row["status"] in (0, 1), row  # a hard link, say, can be done without
            assert "Traceback" not in row["said"], row
            errors = row["said"].split("error: ")[1:]
            assert bool(errors) == bool(row["status"]), row
            assert all("No space left on device" in text for text in errors), row
            assert all(text.count("\n") <= 3 for text in errors), row


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "stride"), [("kill", 151), ("full", 160)])
def test_a_fault_at_some_file_operations_loses_nothing(tmp_path, kind, stride):
    check(struck(tmp_path, kind, stride), kind)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["kill", "full", "once"])
def test_a_fault_at_any_file_operation_loses_nothing(tmp_path, kind):
    check(struck(tmp_path, kind, 1), kind)
