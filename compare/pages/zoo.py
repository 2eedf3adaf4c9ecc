"""docs/zoo.md: the networks that come along, from the cards that `compare/zoo.py` writes."""

import json
from typing import Any

from markdown.extensions.toc import slugify

from etb_plugin.networks.checkpoints import read_weights
from etb_plugin.report.sheet import percent
from etb_plugin.report.text import markdown_table
from pages import MODELS, machine

_HEAD = """\
# Networks that come along

In a clone, `etb verify zoo:NAME --eps-test EPS --images 0:200` and `etb evaluate zoo:NAME` take them. Percent of the
test images that the card names; AutoAttack is without FAB. To add one, put its weights (safetensors as `etb` writes
them, under 2 MiB) at `compare/models/NAME.safetensors`, then

    python compare/zoo.py NAME --eps 0.1 --made "etb compare FILE.yaml"
    python compare/page.py

which measure it, and write its card and this page.
"""


def zoo() -> str:
    """Return the page of the networks that come along: tables by data set and radius, and a card for each."""
    cards = {file.stem: json.loads(file.read_text()) for file in sorted(MODELS.glob("*.json"))}
    parts, groups = [_HEAD], {}
    for name, card in cards.items():
        groups.setdefault((card["measured"][0]["row"]["dataset"], card["eps"]), []).append(name)
    for (dataset, eps), names in sorted(groups.items()):
        rows = [[f"[{name}](#{slugify(name, '-')})", *_worth(cards[name])] for name in names]
        rows.sort(key=lambda row: float(row[5].split()[0]), reverse=True)
        parts.append(f"## {dataset} at {eps}\n")
        header = ["network", "method", "clean", "PGD", "AutoAttack", "certified", "verified"]
        parts.append(markdown_table(header, rows))
    for name, card in cards.items():
        row = card["measured"][0]["row"]
        about = read_weights(MODELS / f"{name}.safetensors")[1]
        parts.append(f"### {name}\n")
        parts.append(
            f"`{row['model']}` ({row['parameters']:,} parameters) on {row['dataset']}, trained by {row['method']} at "
            f"{about['eps']} for {about['epoch']} epochs, seed {about['seed']}.\n"
        )
        commands = [card["made"], *(one["command"] for one in card["measured"])]
        parts.append("".join(f"    {command}\n" for command in commands))
        parts.append(markdown_table(["images", "clean", "PGD", "AutoAttack", "certified", "verified"], _images(card)))
        parts.append(f"{card['date']}, {machine(card['environment'])}.\n")
    return "\n".join(parts)


def _worth(card: dict[str, Any]) -> list[str]:
    """Return a network's line: its method, and what is known of it."""
    evaluated, verified = _images(card)
    return [card["measured"][0]["row"]["method"], *evaluated[1:5], verified[5]]


def _images(card: dict[str, Any]) -> list[list[str]]:
    """Return a line for each measurement: its images, clean, under PGD and AutoAttack, certified, and verified."""
    lines = []
    for row in (one["row"] for one in card["measured"]):
        few = "verified_accuracy" in row
        which = "{1:,}".format(*row["images"]) if few else f"{row['images']:,}"
        attacked = row.get("attacked_accuracy", {}).get("autoattack")
        bound, share = max(row.get("certified_accuracy", {"": 0.0}).items(), key=lambda item: item[1])
        lines.append(
            [
                which,
                percent(row["clean_accuracy"]),
                percent(row["pgd_accuracy"]),
                "" if attacked is None else percent(attacked),
                f"{percent(share)} ({bound})" if bound else "",
                f"{percent(row['verified_accuracy'])}, {percent(row['unknown'])} unknown" if few else "",
            ]
        )
    return lines
