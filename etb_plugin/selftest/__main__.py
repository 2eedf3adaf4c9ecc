"""The fuzz by itself: it tells of our bounds, or of a toolkit's, what random networks show.

python -m etb_plugin.selftest --pairs 10000
python -m etb_plugin.selftest --pairs 500 --by auto_LiRPA
"""

import argparse
import time
from collections import Counter

from etb_plugin.errors import EtbError
from etb_plugin.graph.regions import Ball
from etb_plugin.selftest.fuzz import OPTIONS, Referee, told
from etb_plugin.selftest.networks import drawn


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m etb_plugin.selftest", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pairs", type=int, default=500, help="how many networks by bounds; 500")
    parser.add_argument("--first", type=int, default=0, help="the first network's seed; 0")
    parser.add_argument("--by", help="a toolkit, whose bounds are put to it in place of ours")
    parser.add_argument("--shown", type=int, default=6, help="how many failures are shown; 6")
    asked = parser.parse_args()
    found: Counter[str] = Counter()
    begun, seed, shown = time.monotonic(), asked.first, 0
    while sum(found.values()) < asked.pairs:
        case = drawn(seed)
        referee = Referee(case)
        seed += 1
        for name, own in OPTIONS.items():
            options = dict(own)
            if asked.by is not None:
                if name == "dual" or isinstance(case.around(), Ball):
                    continue
                options = {"by": asked.by}
            try:
                wrong = referee.fault(name, options)
            except EtbError as error:
                what = str(error).partition("(")[2].partition(":")[0] if "fails on this" in str(error) else "by name"
                found[f"{name}: refused ({what})"] += 1
                continue
            found[f"{name}: " + ("right" if wrong is None else wrong.partition(" ")[0])] += 1
            if wrong is not None and shown < asked.shown:
                shown += 1
                print(told(case, name, options), flush=True)
    for kind, count in sorted(found.items()):
        print(f"{count:6d}  {kind}")
    print(f"cases {asked.first} to {seed - 1}, {time.monotonic() - begun:.0f} s")


if __name__ == "__main__":
    main()
