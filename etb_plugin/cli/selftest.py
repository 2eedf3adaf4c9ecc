"""`etb selftest`: does this installation compute what it should?"""

from typing import Annotated

import typer

from etb_plugin.cli import options as o


def command(
    minutes: Annotated[float, typer.Option(min=0, help="How long to put bounds to random networks.")] = 1.0,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:N or auto.")] = "auto",
) -> None:
    """Check this installation, and print what a bug report needs.

    Bounds of a fixed network are held against known figures, and against auto_LiRPA and convex_adversarial where they
    are installed; a network made to deceive by rounding must not be certified; a training that stops goes on to the
    same bits; and every sound bound is put to random networks, where nothing sampled or attacked may lie outside. The
    exit status is 1 where anything is wrong.

    Example: etb selftest --minutes 10
    """
    from rich.table import Table
    from rich.text import Text

    from etb_plugin.experiment import resolve_device
    from etb_plugin.results import environment
    from etb_plugin.selftest import examine

    place, failed = resolve_device(device), False
    table = Table("check", "", "what was seen", box=None, pad_edge=False, padding=(0, 2, 0, 0))
    words = {True: Text("passed", "green"), False: Text("FAILED", "bold red"), None: Text("left out", "dim")}
    with o.stderr().status("checking") as status:
        for one in examine(minutes, place):
            failed |= one.passed is False
            table.add_row(one.name, words[one.passed], Text(f"{one.saw} ({one.seconds:.0f} s)"))
            status.update(f"checked: {one.name}")
    about = environment(place)
    versions = ", ".join(f"{name} {version}" for name, version in about.pop("versions").items())
    o.stdout().print(table)
    o.stdout().print(Text(f"\n{versions}\n" + ", ".join(f"{key} {value}" for key, value in about.items()), "dim"))
    if failed:
        raise typer.Exit(1)
