"""`etb bench`: what training steps cost, as ratios within one run."""

from pathlib import Path
from typing import Annotated

import typer

from etb_plugin.cli import options as o
from etb_plugin.errors import ConfigError, unknown_name

_METHODS = "nominal,ibp,crown-ibp,expected,pgd"


def command(
    what: Annotated[str, typer.Argument(help="steps: training steps.")] = "steps",
    methods: Annotated[str, typer.Option(help="Methods, with changes as in `etb compare`.")] = _METHODS,
    model: Annotated[str, typer.Option(help="Networks of `etb models`.")] = "small",
    dataset: Annotated[str, typer.Option(help="mnist or cifar10: the images' shape; no data is read.")] = "mnist",
    eps: Annotated[str, typer.Option(help="Radius in pixel units.")] = "0.1",
    batch_size: Annotated[int, typer.Option(min=1, help="Images in a batch.")] = 100,
    seconds: Annotated[float, typer.Option(min=0.1, help="Seconds for each method and network.")] = 5.0,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:N or auto.")] = "auto",
    out: Annotated[Path | None, typer.Option(help="A JSON file for the figures.")] = None,
) -> None:
    """Show what a step of each method costs beside a nominal step of the same network and batch, taken in turns.

    The floor is the same ratio in multiplications and additions. Absolute times are this machine's; ratios are what is
    compared.

    Example: etb bench steps --methods ibp,expected,expected:rows=top-3 --model small,medium --out steps.json
    """
    if what != "steps":
        raise unknown_name("benchmark", what, ["steps"])
    from etb_plugin.bench import SHAPES, measure_steps, write_steps
    from etb_plugin.experiment import read_eps, read_experiment, resolve_device
    from etb_plugin.report.table import steps_table
    from etb_plugin.training.allocation import keep_freed_memory

    if dataset not in SHAPES:
        raise unknown_name("shape", dataset, SHAPES)
    try:
        radius = read_eps(eps)
    except ValueError as error:
        raise ConfigError(f"--eps: {error}") from None
    keep_freed_memory()
    variants = read_experiment(None, {"methods": methods}).methods
    wanted = {v.label: v.at(v.points()[0], radius)[0] for v in variants}
    place = resolve_device(device)
    found = []
    for name in model.split(","):
        for cost in measure_steps(wanted, name, dataset, radius, batch_size, seconds, place):
            found.append(cost)
            o.stderr().print(f"{cost.model}: {cost.method} {cost.ratio:.1f} nominal steps", highlight=False)
    o.stdout().print(steps_table(found, f"{dataset} shapes, batch {batch_size}, eps {eps}, {place}"))
    if out is not None:
        write_steps(out, found, place)
        o.stdout().print(f"Written: {out}", soft_wrap=True)
