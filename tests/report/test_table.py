"""Tables on a terminal."""

from rich.console import Console

from etb_plugin.report.sheet import comparison_sheet
from etb_plugin.report.table import comparison_table, verification_table
from etb_plugin.verification import Verdict, Verified
from etb_plugin.verification.run import Finding
from tests.report.test_sheet import seeds


def shown(table, width=120):
    console = Console(width=width, record=True, file=None, force_terminal=False)
    with console.capture() as capture:
        console.print(table)
    return capture.get()


def test_every_figure_of_a_sheet_is_shown_and_the_expected_column_says_what_it_is_not():
    text = shown(comparison_table(comparison_sheet(seeds("ibp", (0.8, 0.9)) + seeds("pgd", (0.65, 0.7)), "heading")))
    for part in ("heading", "eps 0.1", " ibp", "85.0 ± 7.1", "~50.0 ± 0.0", "NOT a certificate", "no proof"):
        assert part in text


def test_networks_of_one_method_are_told_apart():
    finding = Finding(0, 1, 1, Verdict.ROBUST, "crown", {"crown": 0.1}, False)
    about = {"method": "ibp", "dataset": "digits", "model": "tiny"}
    every = [Verified.of(about | {"eps": eps, "seed": seed}, 0.1, [finding]) for eps in (0.1, 0.2) for seed in (0, 1)]
    text = shown(verification_table(every, "heading"))
    assert "ibp, trained at 0.2, seed 1" in text
    assert "trained" not in shown(verification_table(every[:1], "heading"))
