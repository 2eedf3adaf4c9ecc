"""`etb bench`: ratios within one run, and the arithmetic below them."""

import json

import pytest

from etb_plugin.attacks import Pgd
from etb_plugin.bench import measure_attacks, measure_steps
from etb_plugin.objectives import get_method
from tests.command import etb


def test_the_floor_is_the_ratio_of_the_arithmetic():
    wanted = {name: get_method(name) for name in ("nominal", "ibp", "pgd")}
    found = {c.method: c for c in measure_steps(wanted, "tiny", "mnist", 0.1, 10, 0.01, "cpu")}
    assert found["nominal"].floor == 1
    assert found["ibp"].floor == pytest.approx(3, rel=0.1)  # the clean pass, and two of intervals
    assert found["pgd"].floor > 5
    for cost in found.values():
        assert cost.steps >= 5
        assert 0 < cost.least_ms <= cost.median_ms <= cost.most_ms
        assert cost.mib > 50


def test_the_command_shows_a_table_and_writes_what_it_shows(tmp_path):
    arguments = ("bench", "steps", "--model", "tiny", "--methods", "ibp,expected:rows=top-3", "--seconds", "0.1")
    done = etb(*arguments, "--batch-size", "10", "--out", "steps.json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    content = json.loads((tmp_path / "steps.json").read_text())
    assert {row["method"] for row in content["steps"]} == {"ibp", "expected rows=top-3"}
    assert content["environment"]["threads"] >= 1
    for row in content["steps"]:
        assert f"{row['ratio']:.2f}" in done.stdout
        assert f"{row['floor']:.2f}" in done.stdout


@pytest.mark.slow
def test_whole_epochs_are_measured_beside_nominal_ones(tmp_path):
    methods = "ibp,robustra:projections=5,expected:rows=top-3"
    arguments = ("bench", "epochs", "--model", "tiny", "--methods", methods, "--images", "64", "--batch-size", "20")
    done = etb(*arguments, "--out", "epochs.json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    rows = json.loads((tmp_path / "epochs.json").read_text())["epochs"]
    assert [row["method"] for row in rows] == ["ibp", "robustra projections=5", "expected rows=top-3"]
    for row in rows:
        assert row["ratio"] == pytest.approx(row["median_seconds"] / row["nominal_seconds"])
        assert 0 < row["least_seconds"] <= row["median_seconds"] <= row["most_seconds"]
        assert f"{row['ratio']:.2f}" in done.stdout
    assert rows[1]["ratio"] > rows[0]["ratio"]  # two networks, each with projections


def test_bounds_are_measured_beside_a_forward_pass_and_drawn(tmp_path):
    arguments = ("bench", "bounds", "--bounds", "ibp,crown,expected", "--model", "tiny", "--classes", "3,10")
    done = etb(*arguments, "--eps", "0.01", "--batch-size", "4", "--seconds", "0.1", "--out", "b.json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "b.json").read_text())["bounds"]
    assert [(row["bound"], row["classes"]) for row in found] == [
        (name, classes) for classes in (3, 10) for name in ("ibp", "crown", "expected")
    ]
    for row in found:
        assert row["ratio"] == pytest.approx(row["median_ms"] / row["forward_ms"])
        assert row["sound"] == (row["bound"] != "expected")
        assert (row["ratio_to_ibp"] == pytest.approx(1)) == (row["bound"] == "ibp")
        assert f"{row['ratio_to_ibp']:.3g}" in done.stdout
    assert (tmp_path / "b.png").stat().st_size > 5000


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("stepps",), "did you mean steps"),
        (("bounds", "--classes", "1"), "write numbers of at least 2"),
        (("bounds", "--bounds", "crwn"), "did you mean crown"),
        (("steps", "--dataset", "minst"), "did you mean mnist"),
        (("steps", "--eps", "8"), "8/255"),
        (("steps", "--methods", "ibpp"), "did you mean ibp"),
        (("steps", "--model", "smal"), "did you mean small"),
    ],
)
def test_what_cannot_be_measured_is_refused(arguments, words, refused):
    assert words in refused("bench", *arguments)


def test_an_attack_is_measured_where_many_half_and_few_stand():
    found = list(measure_attacks("mlp-40x2", Pgd(10, 1), "cpu"))
    shares = [cost.standing for cost in found]
    assert shares == sorted(shares, reverse=True)
    assert [round(share, 1) for share in shares] == pytest.approx([0.9, 0.5, 0.1], abs=0.11)
    assert all(cost.seconds > 0 and cost.ratio > 0 for cost in found)
