"""Write docs/results.md from the files of compare/results, in the order of compare/page.yaml; docs/losses.md, each
method's loss with its cost and result beside it; docs/zoo.md from the cards of compare/models; and README's table.

    python compare/page.py            # after a result and its entry were added
    python compare/page.py --check    # exit status 1 where a page says something else

Nothing on the page is typed by hand but titles, commands, dates and notes.
"""

import sys

import yaml
from pages import DOCS, TOP, runs_of
from pages.losses import losses
from pages.results import page, with_table
from pages.zoo import zoo

from etb_plugin.report.figures import draw
from etb_plugin.report.runs import merged


def main() -> None:
    order = yaml.safe_load((TOP / "page.yaml").read_text())
    first = order["comparisons"][0]
    front = TOP.parent / "README.md"
    pages = {DOCS / "results.md": page(order), DOCS / "losses.md": losses(first), DOCS / "zoo.md": zoo()}
    pages[front] = with_table(front.read_text(), order)
    if "--check" in sys.argv:
        stale = [file.name for file, text in pages.items() if file.read_text() != text]
        sys.exit(f"{', '.join(stale)} differ from the results: run python compare/page.py" if stale else 0)
    for file, text in pages.items():
        file.write_text(text)
    for entry in order["comparisons"]:
        if "plot" in entry:
            shown = [result for result in merged(runs_of(entry)) if result.method not in entry.get("unplotted", ())]
            draw(shown, ())["pareto"].savefig(DOCS / entry["plot"], dpi=110)


if __name__ == "__main__":
    main()
