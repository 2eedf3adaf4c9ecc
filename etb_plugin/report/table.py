"""The comparison as a table on a terminal."""

import itertools
import math
from collections.abc import Mapping, Sequence

import torch
from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from etb_plugin.calibration import Calibration
from etb_plugin.experiment import changed_text, eps_text
from etb_plugin.results import Result
from etb_plugin.tightness import Tightness
from etb_plugin.verification import MISCLASSIFIED, STAGES, Radii, Verified

CERTIFIED, EXPECTED = "bold green", "italic magenta"


def comparison_table(results: Sequence[Result], heading: str) -> RenderableType:
    """Return the results, grouped by test eps. What training cost is shown once per method.

    Certified columns are green; the expected one is set apart by style, by ~ and by the caption, which says that
    it is not a certificate.
    """
    certifiers = list(dict.fromkeys(name for result in results for name in result.certified_accuracy))
    trained = any(result.step_ms is not None for result in results)
    table = _table()
    table.add_column("method", no_wrap=True)
    for name in ("clean", "PGD", "PGD\nrobust"):
        table.add_column(name, justify="right")
    for name in certifiers:
        header = "cert.\n" + name.replace("-", "-\n")
        table.add_column(header, justify="right", style=CERTIFIED, header_style=CERTIFIED)
    table.add_column("expected\nno proof", justify="right", style=EXPECTED, header_style=EXPECTED)
    if trained:
        for name in ("s per\nepoch", "step x\nnominal", "peak\nMiB"):
            table.add_column(name, justify="right", style="dim")
    for eps, group in itertools.groupby(sorted(results, key=lambda r: r.eps_test), key=lambda r: r.eps_test):
        table.add_row(f"[dim]eps {eps_text(eps)}[/]")
        for result in group:
            table.add_row(
                f" {result.method}",
                *(_percent(v) for v in (result.clean_accuracy, result.pgd_accuracy, result.pgd_robustness)),
                *(_percent(result.certified_accuracy[name]) for name in certifiers),
                f"~{_percent(result.expected_accuracy)}",
                *(_costs(result) if trained and eps == min(r.eps_test for r in results) else ()),
            )
    return Group(Text(heading, "bold"), table, Text(_caption(results, trained), "dim"))


def verification_table(results: Sequence[Verified], heading: str) -> RenderableType:
    """Return the totals of each network and eps, and below them how many images each stage decided, and its time."""
    totals = _table()
    totals.add_column("method", no_wrap=True)
    for name in ("eps", "clean", "PGD"):
        totals.add_column(name, justify="right")
    totals.add_column("verified", justify="right", style=CERTIFIED, header_style=CERTIFIED)
    for name in ("gap", "unknown"):
        totals.add_column(name, justify="right")
    named = {stage for result in results for stage in (*result.decided, *result.seconds)}
    stages = [stage for stage in (MISCLASSIFIED, *STAGES) if stage in named] + sorted(named - {MISCLASSIFIED, *STAGES})
    work = _table()
    work.add_column("decided by\n(s an image)", no_wrap=True)
    for stage in stages:
        work.add_column(stage.replace("-", "-\n"), justify="right")
    for r in results:
        gap = r.pgd_accuracy - r.verified_accuracy
        shares = (r.clean_accuracy, r.pgd_accuracy, r.verified_accuracy, gap, r.unknown)
        totals.add_row(r.method, eps_text(r.eps_test), *(_percent(share) for share in shares))
        counts = [str(r.decided.get(stage, 0)) for stage in stages]
        times = [f" ({r.seconds[stage]:.2g})" if stage in r.seconds else "" for stage in stages]
        work.add_row(f"{r.method} {eps_text(r.eps_test)}", *(c + t for c, t in zip(counts, times, strict=True)))
    caption = (
        f"Percent of {len(results[0].findings):,} test images. verified: proved robust, a lower bound of true robust\n"
        "accuracy; PGD: stands under PGD, an upper bound; unknown: neither proved nor broken, counted as attackable."
    )
    return Group(Text(heading, "bold"), totals, Text(caption, "dim"), Text(), work)


def radius_table(results: Sequence[Radii], heading: str) -> RenderableType:
    """Return the quartiles of each network's certified and attacked radii."""
    table = _table()
    table.add_column("method", no_wrap=True)
    for kind in ("certified", "attacked"):
        style = CERTIFIED if kind == "certified" else ""
        for name in ("quarter", "median", "three quarters"):
            table.add_column(f"{kind}\n{name}", justify="right", style=style, header_style=style)
    quarters = torch.tensor([0.25, 0.5, 0.75])
    for r in results:
        found = [
            *r.certified.quantile(quarters).tolist(),
            *r.attacked.quantile(quarters, interpolation="lower").tolist(),
        ]
        table.add_row(r.method, *("-" if math.isinf(value) else f"{value:.4f}" for value in found))
    caption = (
        f"Quartiles over {len(results[0].radii):,} test images, pixel units; a misclassified one has 0 and 0.\n"
        "certified: proved robust up to there; attacked: a counterexample lies at that distance. -: none was found."
    )
    return Group(Text(heading, "bold"), table, Text(caption, "dim"))


def tightness_table(rows: Sequence[Tightness], heading: str) -> RenderableType:
    """Return one line per bound: the width of its margins, that width relative to IBP's, and its cost."""
    table = _table()
    table.add_column("bound", no_wrap=True)
    for name in ("sound", "mean width", "x IBP's", "all margins > 0", "ms"):
        table.add_column(name, justify="right")
    for row in rows:
        sound = Text("yes", CERTIFIED) if row.sound else Text("no", EXPECTED)
        figures = (
            f"{row.width:.4g}",
            f"{row.ratio_to_ibp:.3g}",
            f"{_percent(row.positive)} %",
            f"{row.milliseconds:,.0f}",
        )
        table.add_row(row.name, sound, *figures)
    caption = "Widths of the margins f_y - f_j, all images and classes. A bound that is not sound proves nothing."
    return Group(Text(heading, "bold"), table, Text(caption, "dim"))


def calibration_table(found: Mapping[str, Calibration], alpha: float, heading: str) -> RenderableType:
    """Return one line per bound: the factor of its radius, and the coverage of fresh images without and with it."""
    table = _table()
    table.add_column("bound", no_wrap=True)
    for name in ("factor", "covered\nas it is", f"covered\nscaled (aim {_percent(1 - alpha)})"):
        table.add_column(name, justify="right", style=EXPECTED, header_style=EXPECTED)
    for name, c in found.items():
        table.add_row(name, f"{c.factor:.4g}", f"{_percent(c.covered_before)} %", f"{_percent(c.covered_after)} %")
    one = next(iter(found.values()))
    caption = (
        f"Factor found on {one.images} test images, coverage counted on {one.fresh_images} others: the share whose "
        f"margins, as far as PGD and samples reach, lie inside in every class. Coverage of this attack is NOT a "
        f"certificate."
    )
    return Group(Text(heading, "bold"), table, Text(caption, "dim"))


def claims_table(claims: Sequence[tuple[str, str, str, str]], heading: str) -> RenderableType:
    """Return one line per claim (what is said, where, the published figure, the one measured)."""
    table = _table()
    for name in ("claim", "published", "measured here"):
        table.add_column(name, style="bold" if name == "measured here" else None)
    for text, source, published, measured in claims:
        table.add_row(Text.assemble(text, ("\n" + source, "dim")), published, measured)
    return Group(Text(heading, "bold"), table)


def _table() -> Table:
    return Table(box=box.SIMPLE_HEAD, show_edge=False, padding=0)


def _percent(share: float) -> str:
    return f"{100 * share:.1f}"


def _costs(result: Result) -> tuple[str, str, str]:
    """Return s/epoch, relative step and peak memory; a dash for a network that was not trained here."""
    if result.seconds_per_epoch is None or result.relative_step is None or result.peak_memory_mib is None:
        return "-", "-", "-"
    seconds, relative = result.seconds_per_epoch, result.relative_step
    return (
        f"{seconds:.3g}",
        f"{relative:.1f}" if relative < 100 else f"{relative:,.0f}",
        f"{result.peak_memory_mib:,.0f}",
    )


def _caption(results: Sequence[Result], trained: bool) -> str:
    images = min(result.images for result in results)
    half_width = 100 * 1.96 * math.sqrt(0.25 / images)
    lines = [
        f"Percent of {images:,} test images (95 % interval at most ±{half_width:.1f}); one seed. PGD robust: the "
        "prediction, right or wrong, stays.",
        "cert.: certified, proved by a sound bound for every point of the box. expected is NOT a certificate: it says "
        "how often the expected bound's margins are positive.",
    ]
    for label, changes in {r.method: r.changes for r in results if r.changes}.items():
        if label != changed_text(label.partition(" ")[0], changes):
            lines.append(f"{label}: {changed_text('', changes).strip()}.")
    if trained:
        lines.append("Step: median, relative to a nominal step of the same network and batch timed just before.")
    return "\n".join(lines)
