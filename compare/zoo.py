"""Measure a network of the zoo: writes its card, NAME.json, beside compare/models/NAME.safetensors.

    python compare/zoo.py NAME --eps 0.1 --made "etb compare FILE.yaml" [--images 0:200] [--time-limit 20]

Three commands, kept in the card with what they gave: all test images under PGD of 40 steps and certified by IBP and
CROWN-IBP; the images named under AutoAttack; and verified, one by one. Then `python compare/page.py` writes the page.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from datetime import date
from pathlib import Path
from typing import Any

from etb_plugin.files import write_json

MODELS = Path(__file__).parent / "models"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name")
    parser.add_argument("--eps", required=True, help="the radius that it is measured at")
    parser.add_argument("--made", required=True, help="the command that trained it")
    parser.add_argument("--images", default="0:200", help="those put to AutoAttack and verified")
    parser.add_argument("--time-limit", default="20")
    wanted = parser.parse_args()
    zoo, images, at = f"zoo:{wanted.name}", wanted.images, ["--eps-test", wanted.eps]
    end = images.partition(":")[2]
    runs = [
        measured("evaluate", zoo, *at, "--pgd-steps", "40", "--certify", "ibp,crown-ibp"),
        measured("evaluate", zoo, *at, "--test-limit", end, "--attack", "autoattack", "--certify", "ibp,crown-ibp"),
        measured("verify", zoo, *at, "--images", images, "--time-limit", wanted.time_limit),
    ]
    environment = runs[0].pop("environment")
    card = {"eps": wanted.eps, "made": wanted.made, "date": f"{date.today()}", "environment": environment}
    rows = [{key: run[key] for key in ("command", "row")} for run in runs]
    write_json(MODELS / f"{wanted.name}.json", {**card, "measured": rows})


def measured(*arguments: str) -> dict[str, Any]:
    """Run `etb` and return its command, the one row of its results, and where it ran."""
    with tempfile.TemporaryDirectory() as folder:
        call = [sys.executable, "-m", "etb_plugin", *arguments]
        subprocess.run([*call, "--out", f"{folder}/out"], check=True)
        content = json.loads(Path(folder, "out/results.json").read_text())
    (row,) = content.get("cells") or content["verifications"]
    row.pop("findings", None)  # image by image: too long for a card
    return {"command": " ".join(("etb", *arguments)), "row": row, "environment": content["environment"]}


if __name__ == "__main__":
    main()
