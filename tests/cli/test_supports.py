"""`etb supports`: what VNN-LIB 2.0 has a verifier say of itself."""

import pytest

from etb_plugin.networks.onnx_operations import OPERATIONS
from tests.command import etb

WORDS = {
    "hidden-node-theories": {"NH", "H"},
    "multiple-input-output-theories": {"SIO", "MIO"},
    "multiple-network-theories": {"SNET", "MENET", "MINET", "MNET"},
    "multiple-node-comparison-theories": {"SNC", "MNC"},
    "arithmetic-complexity-theories": {"BND", "OUTC", "LIN", "POLY"},
    "optimised-disjunctive-reasoning": {"true", "false"},
    "serialise-assignments": {"true", "false"},
    "unsat-proofs": {"true", "false"},
}
"""The standard's own."""


@pytest.mark.parametrize("capability", WORDS)
def test_answers_are_words_of_the_standard(capability, tmp_path):
    lines = etb("supports", f"--{capability}", cwd=tmp_path).stdout.splitlines()
    assert 0 < len(set(lines)) == len(lines)
    assert {*lines} <= WORDS[capability]


def test_versions_operators_and_the_table_of_all(tmp_path):
    found = {}
    for capability in ("vnnlib-versions", "onnx-opset-versions", "onnx-element-types", "onnx-operators"):
        found[capability] = etb("supports", f"--{capability}", cwd=tmp_path).stdout.splitlines()
    assert found["vnnlib-versions"] == ["1.0", "2.0"]
    assert found["onnx-element-types"] == ["real"]
    assert {*OPERATIONS, "Constant"} < {*found["onnx-operators"]}
    oldest, newest = map(int, found["onnx-opset-versions"])
    assert oldest < 13 < newest
    table = etb("supports", cwd=tmp_path).stdout
    assert all(f"--{capability} " in table for capability in (*WORDS, *found))


def test_its_name_is_one_line(tmp_path):
    assert etb("--name", cwd=tmp_path).stdout == "etb_plugin\n"
