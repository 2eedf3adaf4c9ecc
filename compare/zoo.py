"""Measure a network of the zoo: writes its card, NAME.json, beside compare/models/NAME.safetensors.

    python compare/zoo.py NAME --eps 0.1 --made "etb compare FILE.yaml" [--first 1000] [--time-limit 20]

Two commands, kept in the card with what they gave: all test images, or the first ones, under PGD of 200 steps, ten
times, and AutoAttack, and certified by IBP and CROWN-IBP; and verified, one by one. Then `python compare/page.py`
writes the page.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from datetime import date
from pathlib import Path
from typing import Any

from pages import MODELS

from etb_plugin.files import write_json

_ATTACKS = "--pgd-steps", "200", "--pgd-restarts", "10", "--attack", "autoattack"
_STAGES = "ibp,pgd,crown-ibp,crown,alpha-crown,bab"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name")
    parser.add_argument("--eps", required=True, help="the radius that it is measured at")
    parser.add_argument("--made", required=True, help="the command that trained it")
    parser.add_argument("--first", help="how many test images; all of them without it")
    parser.add_argument("--time-limit", default="20", help="seconds of branch and bound for an image")
    wanted = parser.parse_args()
    at = f"zoo:{wanted.name}", "--eps-test", wanted.eps
    first = (["--test-limit", wanted.first], ["--images", f"0:{wanted.first}"]) if wanted.first else ([], [])
    runs = [
        measured("evaluate", *at, *first[0], *_ATTACKS, "--certify", "ibp,crown-ibp"),
        measured("verify", *at, *first[1], "--time-limit", wanted.time_limit, "--stages", _STAGES),
    ]
    card = {
        "eps": wanted.eps,
        "made": wanted.made,
        "date": f"{date.today()}",
        "environment": runs[0][1],
        "measured": [measurement for measurement, _ in runs],
    }
    write_json(MODELS / f"{wanted.name}.json", card)


def measured(*arguments: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Run `etb` and return its command with the one row of its results, and where it ran."""
    with tempfile.TemporaryDirectory() as folder:
        call = [sys.executable, "-m", "etb_plugin", *arguments]
        subprocess.run([*call, "--out", f"{folder}/out"], check=True)
        content = json.loads(Path(folder, "out/results.json").read_text())
    (row,) = content.get("cells") or content["verifications"]
    row.pop("findings", None)  # image by image: too long for a card
    return {"command": " ".join(("etb", *arguments)), "row": row}, content["environment"]


if __name__ == "__main__":
    main()
