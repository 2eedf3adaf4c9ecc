"""A disk that is truly full, and a folder that is truly read-only: mounts of their own, seen by one process alone."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.faults.harness import stripped

ETB = f"{sys.executable} -m etb_plugin"
COMPARE = (
    "compare --dataset digits --model mlp-40x2 --methods ibp,expected --epochs 3 --train-limit 300 --test-limit 20 "
    "--pgd-steps 2 --threads 1 --out"
)


def mounted(folder, script):
    """Run shell lines where `folder` is a tmpfs of 400 KiB; return what each line of `script` said, and its status."""
    namespace = ("unshare", "--mount") if os.geteuid() == 0 else ("unshare", "--mount", "--map-root-user")
    folder.mkdir()
    mount = f"mount -t tmpfs -o size=400k tmpfs {folder}"
    if subprocess.run((*namespace, "sh", "-c", mount), capture_output=True).returncode:
        pytest.skip("mounting a tmpfs in a namespace is not allowed here")
    lines = [f'( {line} ) 2>&1; echo "status $? end"' for line in script]
    done = subprocess.run(
        (*namespace, "sh", "-c", "\n".join([mount, *lines])),
        capture_output=True,
        text=True,
        timeout=300,
        cwd=Path(__file__).parents[2],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    parts = done.stdout.split(" end\n")[:-1]
    assert len(parts) == len(script), done
    return [(int(status), said) for said, _, status in (part.rpartition("status ") for part in parts)]


@pytest.mark.slow
def test_a_full_disk_and_a_read_only_one_lose_nothing(tmp_path):
    folder, copy = tmp_path / "small", tmp_path / "copy"
    command = f"{ETB} {COMPARE} {folder}/run"
    (full, said), _, (read_only, refused), _, (again, _), _ = mounted(
        folder,
        [
            command,
            f"mount -o remount,size=16m,ro {folder}",
            command,
            f"mount -o remount,rw {folder}",
            command,
            f"cp -r {folder}/run {copy}",
        ],
    )
    assert full == 1
    assert "error: No space left on device" in said
    assert read_only == 1
    assert "Read-only file system" in refused
    assert again == 0
    for text in (said, refused):
        assert "Traceback" not in text
        assert text[text.index("error: ") :].count("\n") <= 2
    subprocess.run(f"{ETB} {COMPARE} {tmp_path}/undisturbed", shell=True, check=True, capture_output=True)
    found, want = (json.loads((run / "results.json").read_text()) for run in (copy, tmp_path / "undisturbed"))
    assert stripped(found["cells"]) == stripped(want["cells"])
