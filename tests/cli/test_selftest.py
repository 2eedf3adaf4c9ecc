"""`etb selftest` passes here, and says so where something is wrong."""

import contextlib
import sys
from dataclasses import replace

import pytest
import torch

from etb_plugin import bound
from etb_plugin.cli.main import main
from etb_plugin.selftest.checks import Fault, fuzz, known_bounds, resumed, rounding
from tests.command import etb


def test_an_installation_passes_and_a_report_has_what_it_needs(tmp_path):
    done = etb("selftest", "--minutes", "0", "--device", "cpu", cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("passed") >= 4  # two more where the toolkits are installed
    assert "FAILED" not in done.stdout
    for name in ("known bounds", "resumed to the same bits", "fuzz", f"torch {torch.__version__}", "system", "threads"):
        assert name in done.stdout
    assert done.stderr == ""


def tightened(bound):
    """Return `bound` with intervals that are a fifth too short."""

    def lying(*arguments, **options):
        got = bound(*arguments, **options)
        return replace(got, lower=got.lower + 0.2 * (got.upper - got.lower))

    return lying


@pytest.mark.parametrize(
    ("check", "place", "lie"),
    [
        (lambda: known_bounds("cpu"), "etb_plugin.selftest.checks.bound", tightened(bound)),
        (rounding, "etb_plugin.selftest.checks.rigorous", contextlib.nullcontext),
        (lambda: resumed("cpu"), "etb_plugin.training.loop.read_state", lambda *_: None),
        (lambda: fuzz(0, "cpu"), "etb_plugin.selftest.fuzz.bound", tightened(bound)),
    ],
    ids=["known bounds", "rounding", "resumed", "fuzz"],
)
def test_every_check_finds_what_it_is_there_for(monkeypatch, check, place, lie):
    monkeypatch.setattr(place, lie)
    with pytest.raises(Fault):
        check()


def test_a_fault_is_told_and_is_the_exit_status(monkeypatch, capsys):
    monkeypatch.setattr("etb_plugin.selftest.checks.bound", tightened(bound))
    monkeypatch.setattr(sys, "argv", ["etb", "selftest", "--minutes", "0", "--device", "cpu"])
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 1
    assert "FAILED" in capsys.readouterr().out
