"""Tables: what is put together, what leads, and that every format says the same."""

import csv
import io
import json
from dataclasses import replace

import pytest

from etb_plugin.errors import CheckpointError
from etb_plugin.objectives import methods
from etb_plugin.report.figures import styles
from etb_plugin.report.published import beside, published
from etb_plugin.report.runs import Run, find_runs, merged, read_run
from etb_plugin.report.sheet import comparison_sheet
from etb_plugin.report.text import FORMATS
from etb_plugin.results import Result, write_results

RESULT = Result(
    method="ibp",
    dataset="digits",
    model="tiny",
    seed=0,
    eps_train=0.1,
    eps_test=0.1,
    clean_accuracy=0.9,
    fgsm_accuracy=0.7,
    pgd_accuracy=0.6,
    pgd_robustness=0.65,
    certified_accuracy={"ibp": 0.4},
    expected_accuracy=0.5,
    images=200,
    train_seconds=1.0,
    seconds_per_epoch=0.1,
    step_ms=4.0,
    nominal_step_ms=2.0,
    peak_memory_mib=100.0,
    parameters=10,
)


def seeds(method, clean):
    return [replace(RESULT, method=method, seed=seed, clean_accuracy=value) for seed, value in enumerate(clean)]


def row(sheet, name, group=0):
    (line,) = [line for line in sheet.groups[group][1] if line.name == name]
    return dict(zip([column.key for column in sheet.columns], line.figures, strict=True))


def test_seeds_are_put_together_by_mean_and_spread():
    sheet = comparison_sheet(seeds("ibp", (0.8, 0.85, 0.9)), "heading")
    clean = row(sheet, "ibp")["clean_accuracy"]
    assert (clean.mean, clean.spread, clean.count) == (pytest.approx(0.85), pytest.approx(0.05), 3)
    assert clean.full == "85.0 ± 5.0"
    interval = row(comparison_sheet(seeds("ibp", (0.8, 0.85, 0.9)), "", "interval"), "ibp")["clean_accuracy"]
    assert interval.spread == pytest.approx(4.302653 * 0.05 / 3**0.5)  # Student's t, two degrees of freedom
    assert "mean over 3 seeds ± standard deviation" in sheet.notes[0]


@pytest.mark.parametrize(
    ("first", "second", "leads"),
    [
        ((0.90, 0.91), (0.80, 0.81), True),
        ((0.90, 0.91), (0.89, 0.90), False),  # one point apart, and the spreads are 0.7 points each
        ((0.95, 0.85), (0.84, 0.85), False),
        ((0.95,), (0.70,), False),  # one seed
    ],
)
def test_a_figure_leads_only_beyond_both_spreads(first, second, leads):
    sheet = comparison_sheet(seeds("ibp", first) + seeds("pgd", second), "")
    assert row(sheet, "ibp")["clean_accuracy"].leads is leads
    assert not row(sheet, "pgd")["clean_accuracy"].leads
    assert not any(
        figure.leads for figure in (row(sheet, "ibp")["expected_accuracy"], row(sheet, "ibp")["peak_memory_mib"])
    )
    if len(first) == 1:
        assert "one seed, so nothing is marked as best" in sheet.notes[0]


def test_rows_are_named_by_what_they_differ_in_and_costs_stand_once():
    results = [replace(RESULT, eps_train=a, eps_test=b, model=m) for b in (0.2, 0.1) for a in (0.1, 0.3) for m in "xy"]
    sheet = comparison_sheet(results, "")
    assert [group for group, _ in sheet.groups] == ["eps 0.1", "eps 0.2"]
    assert [line.name for line in sheet.groups[0][1]] == [f"ibp, {m}, eps {a}" for a in (0.1, 0.3) for m in "xy"]
    assert row(sheet, "ibp, x, eps 0.1")["relative_step"].mean == 2
    assert row(sheet, "ibp, x, eps 0.1", 1)["relative_step"] is None


def test_every_format_says_the_same():
    results = seeds("ibp", (0.8, 0.82)) + seeds("a_b & 50%~", (0.91, 0.92))
    sheet = comparison_sheet(results, "A heading_with 100 %")
    texts = {name: write(sheet) for name, write in FORMATS.items()}
    assert "| 0.1 | ibp | 81.0 ± 1.4 |" in texts["markdown"]
    assert "| **91.5 ± 0.7** |" in texts["markdown"]
    assert r"ibp & 81.0 $\pm$ 1.4 &" in texts["latex"]
    assert r"a\_b \& 50\%\textasciitilde{} & \textbf{91.5 $\pm$ 0.7}" in texts["latex"]
    assert texts["latex"].count("{") == texts["latex"].count("}")
    assert "NOT a certificate" in texts["latex"]
    (first, _) = csv.DictReader(io.StringIO(texts["csv"]))
    assert (float(first["clean_accuracy"]), first["seeds"]) == (pytest.approx(0.81), "2")
    plain = json.loads(texts["json"])
    assert plain["rows"][0]["figures"]["clean_accuracy"]["mean"] == pytest.approx(0.81)
    assert plain["kinds"]["certified_ibp"] == "certified"
    assert plain["kinds"]["expected_accuracy"] == "expected"


def test_runs_are_merged_as_seeds_only_where_they_were_made_alike(tmp_path):
    def run(name, epochs, *rows):
        return Run(name, tmp_path, {"training": {"epochs": epochs}, "evaluation": {}}, {}, list(rows))

    one, two = run("one", 5, RESULT), run("two", 5, replace(RESULT, seed=1))
    assert [r.method for r in merged([one, two])] == ["ibp", "ibp"]
    assert [r.method for r in merged([one, run("same", 5, RESULT)])] == ["ibp (one)", "ibp (same)"]
    assert [r.method for r in merged([one, run("longer", 9, replace(RESULT, seed=1))])] == ["ibp (one)", "ibp (longer)"]


def test_a_method_that_meets_another_run_s_is_named_after_its_run_at_every_radius(tmp_path):
    rows = [replace(RESULT, eps_train=eps) for eps in (0.1, 0.2)]
    one, two = (Run(name, tmp_path, {"training": name}, {}, some) for name, some in (("one", rows), ("two", rows[:1])))
    assert [r.method for r in merged([one, two])] == ["ibp (one)", "ibp (one)", "ibp (two)"]


def test_published_figures_stand_beside_ours_for_the_same_task_only():
    assert all(0 < value < 1.001 for line in published() for value in (line.clean, line.pgd, line.verified) if value)
    ours = replace(RESULT, dataset="mnist", model="small", method="ibp, kappa 1/2")
    (line,) = beside([ours, replace(ours, eps_test=0.2), replace(ours, model="tiny"), replace(ours, method="pgd")])
    assert (line.published.verified, line.published.source) == (0.0297, "Gowal et al. 2019, table 6")
    assert (line.clean, line.pgd, line.verified) == pytest.approx((0.1, 0.4, 0.6))
    assert line.verified_by == "ibp"
    totals = {"images": [0, ours.images], "verified_accuracy": 0.5}
    (line,) = beside([replace(ours, verified=totals)])
    assert (line.verified, line.verified_by) == (0.5, "etb verify")
    (line,) = beside([replace(ours, verified=totals | {"images": [0, ours.images - 1]})])
    assert line.verified_by == "ibp"


def edited(tmp_path, change):
    write_results(tmp_path, {}, "cpu", [RESULT], {})
    file = tmp_path / "results.json"
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))
    return tmp_path


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda c: c["cells"][0].update(clean_accuracy="high"),
            r"cells\[0\].clean_accuracy: input should be a valid number",
        ),
        (lambda c: c["cells"][0].pop("images"), r"cells\[0\].images: .*edited by hand"),
        (
            lambda c: c["cells"][0]["certified_accuracy"].update(ibp=0.99),
            r"cells\[0\]: .* exceeds PGD .*edited by hand",
        ),
        (lambda c: c.update(schema=7), "has schema 7, and this version of etb reads 1"),
        (lambda c: c.update(cells=[]), "holds no results of a comparison"),
        (lambda c: c.update(cells={}), "holds no results of a comparison"),
    ],
)
def test_results_that_were_edited_into_what_cannot_be_are_refused(tmp_path, change, message):
    with pytest.raises(CheckpointError, match=message):
        read_run(edited(tmp_path, change))


def test_runs_of_one_name_are_told_apart_by_their_folders(tmp_path):
    for place in ("a/mine", "b/mine"):
        write_results(tmp_path / place, {}, "cpu", [RESULT], {})
    assert [r.method for r in merged(find_runs(tmp_path))] == [f"ibp ({tmp_path}/{p}/mine)" for p in "ab"]


def test_what_is_no_run_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match=r"holds no results\.json"):
        read_run(tmp_path)
    with pytest.raises(CheckpointError, match="at any depth"):
        find_runs(tmp_path)
    (tmp_path / "results.json").write_text("{")
    with pytest.raises(CheckpointError, match="cannot be read"):
        read_run(tmp_path)


def test_a_method_has_one_colour_everywhere_and_no_two_labels_of_a_plot_look_alike():
    one = styles(["ibp", "pgd", "expected", "my own", "ibp, eps 0.3", "mine too"])
    other = styles(["pgd", "ibp", "sabr"])
    assert one["ibp"] == other["ibp"]
    assert one["pgd"] == other["pgd"]
    assert one["ibp"][0] == one["ibp, eps 0.3"][0]
    assert len(set(one.values())) == len(one)
    assert len({one[label][0] for label in ("ibp", "pgd", "expected", "my own", "mine too")}) == 5
    assert len(set(styles(sorted(methods())).values())) == len(methods())
    assert len({style[0] for style in styles(["ibp", "expected", "crown", "sabr", "taps", "mine"]).values()}) == 6
