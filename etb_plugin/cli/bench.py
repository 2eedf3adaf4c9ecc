"""`etb bench`: what training steps and attacks cost, as ratios within one run."""

from dataclasses import asdict
from itertools import product
from pathlib import Path
from typing import Annotated, Any

import typer

from etb_plugin.cli import options as o
from etb_plugin.errors import ConfigError, unknown_name

_METHODS = "nominal,ibp,crown-ibp,expected,pgd"
_BOUNDS = "ibp,crown-ibp,crown,alpha-crown,dual,expected"
_KINDS = ("steps", "bounds", "epochs", "evaluation")


def command(
    what: Annotated[str, typer.Argument(help="steps or epochs of training; bounds; evaluation: its attack.")] = "steps",
    methods: Annotated[str, typer.Option(help="Methods, with changes as in `etb compare`.")] = _METHODS,
    bounds: Annotated[str, typer.Option(help="Bounds, with options as in `etb bounds`.")] = _BOUNDS,
    model: Annotated[
        str | None,
        typer.Option(
            help="Networks of `etb models`; small, or tiny for evaluation.",
            show_default=False,
            callback=o.run_own_network,
        ),
    ] = None,
    dataset: Annotated[str, typer.Option(help="mnist or cifar10: the images' shape; no data is read.")] = "mnist",
    eps: Annotated[str, typer.Option(help="Radius in pixel units.")] = "0.1",
    batch_size: Annotated[int, typer.Option(min=1, help="Images in a batch.")] = 100,
    images: Annotated[int, typer.Option(min=1, help="Images of an epoch.")] = 10_000,
    classes: Annotated[str, typer.Option(help="Numbers of classes, such as 10,100,200.")] = "10",
    seconds: Annotated[float, typer.Option(min=0.1, help="Seconds for each method and network.")] = 5.0,
    pgd_steps: Annotated[int, typer.Option(min=1, help="Steps of the evaluation's attack.")] = 200,
    pgd_restarts: Annotated[int, typer.Option(min=1, help="Restarts of the evaluation's attack.")] = 10,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:N or auto.")] = "auto",
    out: Annotated[Path | None, typer.Option(help="A JSON file for the figures.")] = None,
) -> None:
    """Show what a step of each method costs beside a nominal step of the same network and batch, taken in turns.

    The floor is the same ratio in multiplications and additions. Absolute times are this machine's; ratios are what is
    compared. With epochs: whole ones of random images, what the loop does around the steps included. With bounds: what
    they cost beside a forward pass, and how tight they are; a plot beside --out. With evaluation: what PGD saves by
    dropping the images that it has broken, on digits.

    Example: etb bench steps --methods ibp,expected,expected:rows=top-3 --model small,medium --out steps.json

    Example: etb bench bounds --model small --batch-size 10 --eps 0.01 --out bounds.json

    Example: etb bench epochs --methods ibp,mtl-ibp --dataset cifar10

    Example: etb bench evaluation --pgd-steps 100
    """
    if what not in _KINDS:
        raise unknown_name("benchmark", what, _KINDS)
    from etb_plugin.attacks import Pgd
    from etb_plugin.bench import SHAPES, measure_attacks, measure_bounds, measure_epochs, measure_steps
    from etb_plugin.experiment import read_eps, read_experiment, resolve_device
    from etb_plugin.files import write_json
    from etb_plugin.report.table import attacks_table, bounds_table, epochs_table, steps_table
    from etb_plugin.results import environment
    from etb_plugin.training.allocation import keep_freed_memory

    if dataset not in SHAPES:
        raise unknown_name("shape", dataset, SHAPES)
    try:
        radius = read_eps(eps)
    except ValueError as error:
        raise ConfigError(f"--eps: {error}") from None
    try:
        numbers = [int(number) for number in classes.split(",")]
        if min(numbers) < 2:
            raise ValueError
    except ValueError:
        raise ConfigError(f"--classes {classes}: write numbers of at least 2, such as 10,100") from None
    keep_freed_memory()
    place, names = resolve_device(device), (model or ("tiny" if what == "evaluation" else "small")).split(",")
    costs: list[Any] = []
    if what == "evaluation":
        attack = Pgd(pgd_steps, pgd_restarts)
        for name in names:
            found = list(measure_attacks(name, attack, place))
            heading = f"digits, {name}, PGD {pgd_steps} steps x {pgd_restarts}, {place}"
            o.stdout().print(attacks_table(found, heading))
            costs += found
    elif what == "bounds":
        for name, number in product(names, numbers):
            costs += measure_bounds(bounds.split(","), name, dataset, radius, batch_size, number, seconds, place)
        o.stdout().print(bounds_table(costs, f"{dataset} shapes, {batch_size} images, eps {eps}, {place}"))
        if out is not None:
            from etb_plugin.report.costs import save_costs

            save_costs(costs, out.with_suffix(""))
    else:
        variants = read_experiment(None, {"methods": methods}).methods
        wanted = {v.label: v.at(v.points()[0], radius)[0] for v in variants}
        heading = f"{dataset} shapes, batch {batch_size}, eps {eps}, {place}"
        if what == "epochs":
            for name in names:
                costs += measure_epochs(wanted, name, dataset, radius, images, batch_size, place)
            o.stdout().print(epochs_table(costs, f"{heading}, {images:,} images"))
        else:
            for name, number in product(names, numbers):
                costs += measure_steps(wanted, name, dataset, radius, batch_size, seconds, place, number)
            o.stdout().print(steps_table(costs, heading))
    if out is not None:
        rows = [asdict(cost) | {"ratio": cost.ratio} for cost in costs]
        write_json(out, {"environment": environment(place), what: rows})
        o.stdout().print(f"Written: {out}", soft_wrap=True)
