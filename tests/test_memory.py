"""Memory that runs out: smaller blocks, one line at last, and a process's own limit."""

import subprocess
import sys

import pytest
import torch

from etb_plugin import Box, bound
from etb_plugin.errors import OutOfMemory
from etb_plugin.graph import ends
from etb_plugin.memory import fitting, in_smaller_blocks, machine_memory
from tests.conftest import fully_connected


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("CUDA out of memory. Tried"), RuntimeError(
    "DefaultCPUAllocator: can't allocate memory: you tried")])  # fmt: skip
def test_work_is_begun_again_in_smaller_blocks(error):
    tried = []

    def work():
        tried.append(fitting(1000))
        if tried[-1] > 100:
            raise error
        return "done"

    assert in_smaller_blocks(work) == "done"
    assert tried == [1000, 125, 15]
    assert fitting(1000) == 1000
    with pytest.raises(OutOfMemory, match="in the smallest blocks too"):
        in_smaller_blocks(lambda: (_ for _ in ()).throw(error))


def test_another_error_is_not_taken_for_it():
    with pytest.raises(RuntimeError, match="shapes"):
        in_smaller_blocks(lambda: (_ for _ in ()).throw(RuntimeError("shapes")))


def test_smaller_blocks_give_the_same_bounds(monkeypatch):
    network, box = fully_connected(4, 12, 12, 3), Box.around(torch.rand(2, 4), 0.2)
    whole, tried = bound("crown", network, box), []
    below = ends._of_units

    def scarce(*arguments):
        tried.append(fitting(2**21))
        if tried[-1] > 2**12:
            raise MemoryError
        return below(*arguments)

    monkeypatch.setattr(ends, "_of_units", scarce)
    parts = in_smaller_blocks(lambda: bound("crown", network, box))
    assert min(tried) <= 2**12
    torch.testing.assert_close(parts.lower, whole.lower)


@pytest.mark.skipif(sys.platform != "linux", reason="the system's own limit of data")
def test_a_process_holds_no_more_than_it_may():
    code = (
        "import torch; from etb_plugin.memory import *; limit_memory(2**30); "
        "print(in_smaller_blocks(lambda: torch.zeros(fitting(2**28), dtype=torch.float64)).numel())"
    )
    done = subprocess.run((sys.executable, "-c", code), capture_output=True, text=True, check=True)
    assert int(done.stdout) == 2**25
    assert machine_memory() > 2**30
