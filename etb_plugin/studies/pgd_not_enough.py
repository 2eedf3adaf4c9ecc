"""Study `pgd-not-enough`: images that PGD leaves standing and an exact verifier breaks (Gowal et al., appendix F)."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from etb_plugin.attacks import Pgd, margin, pgd
from etb_plugin.bounds import Box
from etb_plugin.data import Dataset, pixels
from etb_plugin.files import once
from etb_plugin.objectives import get_method
from etb_plugin.report.plots import figure, line
from etb_plugin.studies.registry import Case, Claim, Parameters, Row, Study, register_study
from etb_plugin.studies.trained_networks import PROOFS_FIRST, dataset, trained
from etb_plugin.verification import Cascade, Settings, Verdict, robustness

_GRID, _EXTENT = 61, (-1.5, 1.5)


def cases(parameters: Parameters) -> list[Case]:
    """One for each test radius."""
    return [{"eps": eps} for eps in parameters["eps"]]


def measure(case: Case, parameters: Parameters, folder: Path) -> Row:
    """Return how many images PGD breaks at each strength, how many are really breakable and how many are undecided,
    and the loss around one that the weakest PGD leaves standing."""
    data = dataset(parameters)
    network = trained(get_method(parameters["method"]), data, parameters, folder, seed=parameters["seed"])
    cascade = Cascade(network, data.input_shape, Settings(PROOFS_FIRST, Pgd(200, 5), parameters["seconds"]))
    images, labels = pixels(data.test.images).double(), data.test.labels
    box = Box.around(images, case["eps"])
    with torch.no_grad():
        right = cascade.network(images).argmax(1) == labels

    def decided(image: int) -> tuple[str, list[float] | None]:
        one = cascade.decide(robustness(box[image : image + 1], int(labels[image]), data.classes))
        return one.verdict, None if one.witness is None else one.witness.flatten().tolist()

    kept = folder / "kept" / f"{case['eps']:g}"  # at full size a radius takes hours
    found = {i: once(kept / f"{i}.json", partial(decided, i)) for i in right.nonzero()[:, 0].tolist()}
    # Elsewhere an attack finds nothing.
    left = torch.tensor([i for i, (verdict, _) in found.items() if verdict != Verdict.ROBUST], dtype=torch.long)

    def attacked(steps: int, restarts: int) -> list[int]:
        generator = torch.Generator().manual_seed(parameters["seed"])
        changed = pgd(cascade.network, box[left], labels[left], Pgd(steps, restarts), generator)[1]
        return left[changed].tolist()

    broken = [once(kept / f"pgd-{s}-{r}.json", partial(attacked, s, r)) for s, r in parameters["attacks"]]
    breakable = [i for i, (verdict, _) in found.items() if verdict == Verdict.FALSIFIED]
    missed = [i for i in breakable if i not in broken[0]]
    witness = torch.tensor(found[missed[0]][1], dtype=images.dtype).view_as(images[:1]) if missed else None
    return {
        "images": len(data.test),
        "right": int(right.sum()),
        "broken": [len(some) for some in broken],
        "breakable": len(breakable),
        "unknown": sum(verdict == Verdict.UNKNOWN for verdict, _ in found.values()),
        "missed": missed,
        "landscape": None if witness is None else _landscape(cascade.network, data, missed[0], witness, case["eps"]),
    }


@torch.no_grad()
def _landscape(network: nn.Module, data: Dataset, image: int, witness: Tensor, eps: float) -> list[list[float]]:
    """Return the margin loss max f_j - f_y on the plane through the image, its counterexample, and a random corner.

    The image lies at (0, 0), its counterexample at (1, 0), the corner at (0, 1); every point is put into the box.
    """
    center = pixels(data.test.images[image : image + 1]).double()
    across = torch.randint(0, 2, center.shape, generator=torch.Generator().manual_seed(image)).double() * 2 - 1
    box, steps = Box.around(center, eps), torch.linspace(*_EXTENT, _GRID, dtype=torch.float64)
    rows: list[Tensor] = []
    for b in steps:
        points = center + steps.view(-1, 1, 1, 1) * (witness - center) + b * eps * across
        points = box.nearest(points)
        rows.append(margin(network(points), data.test.labels[image].repeat(_GRID)))
    return torch.stack(rows).tolist()


def claims(rows: Sequence[Row], parameters: Parameters) -> list[Claim]:
    """Return what appendix F says beside what was found."""
    found = []
    for row in rows:
        strengths = ", ".join(
            f"{n} by {steps} x {restarts}"
            for n, (steps, restarts) in zip(row["broken"], parameters["attacks"], strict=True)
        )
        found.append(
            Claim(
                f"eps {row['eps']:g}: of {row['right']} right images, broken by PGD (steps x restarts); by any point",
                f"Gowal et al. 2019, appendix F; here {parameters['model']} on {parameters['dataset']}",
                "some are broken by the MIP solver alone",
                f"{strengths}; {row['breakable']} ({row['unknown']} undecided)",
            )
        )
    return found


def draw(rows: Sequence[Row], parameters: Parameters) -> Figure:
    """Draw what each strength of PGD misses, and the loss around one image that the weakest misses."""
    made, (left, right) = figure(2)
    names = [f"{steps} x {restarts}" for steps, restarts in parameters["attacks"]]
    for n, row in enumerate(rows):
        missed = [row["breakable"] - broken for broken in row["broken"]]
        line(left, n, list(range(len(names))), missed, f"ε = {row['eps']:g}")
    left.set_xticks(range(len(names)), names)
    left.set(xlabel="PGD: steps x restarts", ylabel="breakable images that it misses", ylim=(0, None))
    left.legend(frameon=False)
    shown = next((row["landscape"] for row in rows if row["landscape"]), None)
    if shown is None:
        right.text(0.5, 0.5, "PGD missed no image", ha="center", transform=right.transAxes)
    else:
        loss = torch.tensor(shown).numpy()
        extent = (*_EXTENT, *_EXTENT)
        picture = right.imshow(loss, origin="lower", extent=extent, cmap="cividis", aspect="auto")
        right.contour(loss, levels=[0.0], extent=extent, colors="white")
        right.grid(visible=False)
        right.plot([0, 1], [0, 0], "o", color="white", markeredgecolor="black")
        for name, place, height in (("image", 0, -14), ("counterexample", 1, 8)):
            right.annotate(name, (place, 0), (0, height), textcoords="offset points", color="white", ha="right")
        made.colorbar(picture, ax=right, label="margin loss (white line: 0)")
        right.set(xlabel="towards the counterexample", ylabel="towards a random corner")
    return made


_SIZES = {
    "method": "ibp",
    "attacks": [[10, 1], [40, 1], [40, 10], [200, 10]],
    "seed": 0,
    "data_dir": None,
    "train_limit": None,
}

register_study(
    Study(
        "pgd-not-enough",
        "How many images does PGD leave standing that an exact verifier breaks?",
        "Gowal et al. 2019, appendix F",
        quick={
            **{"dataset": "digits", "model": "tiny", "epochs": 20, "images": 100, "eps_train": 0.2},
            **{"eps": [0.1, 0.15, 0.2], "seconds": 10.0, **_SIZES},
        },
        full={
            **{"dataset": "mnist", "model": "small", "epochs": 100, "images": 1000, "eps_train": 0.4},
            **{"eps": [0.2, 0.3, 0.4], "seconds": 60.0, **_SIZES},
        },
        cases=cases,
        measure=measure,
        claims=claims,
        draw=draw,
    )
)
