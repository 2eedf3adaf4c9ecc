"""Study `ibp-tightness`: on networks trained by IBP, how far is IBP's bound from the exact answer? (table 3)"""

from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from matplotlib.figure import Figure
from torch import Tensor

from etb_plugin.attacks import Pgd
from etb_plugin.bounds import Box
from etb_plugin.data import pixels
from etb_plugin.files import once
from etb_plugin.objectives import get_method
from etb_plugin.report.plots import figure, line
from etb_plugin.studies.registry import Case, Claim, Parameters, Row, Study, register_study
from etb_plugin.studies.trained_networks import PROOFS_FIRST, dataset, trained
from etb_plugin.verification import Cascade, Settings, Verdict, robustness

_TABLE = {0.1: (2.92, 2.23), 0.2: (4.53, 4.48), 0.3: (8.21, 8.05), 0.4: (15.01, 14.88)}
"""Table 3, MNIST, by test radius: error bounded by IBP, and by the MIP/LP cascade, in percent."""
_WRONG = "nominal"


def cases(parameters: Parameters) -> list[Case]:
    """A pair of training and test radii each."""
    return [{"eps_train": pair[0], "eps": pair[1]} for pair in parameters["eps"]]


def measure(case: Case, parameters: Parameters, folder: Path) -> Row:
    """Return shares of the images: errors nominal, under PGD, by the exact verifiers and by IBP; undecided ones."""
    data = dataset(parameters)
    trained_at = {**parameters, "eps_train": case["eps_train"]}
    network = trained(get_method("ibp"), data, trained_at, folder, seed=parameters["seed"])
    attack = Pgd(parameters["pgd_steps"], parameters["pgd_restarts"])
    complete = Cascade(network, data.input_shape, Settings(PROOFS_FIRST, attack, parameters["seconds"]))

    def decided(image: Tensor, label: int) -> str:
        if int(complete.network(image).argmax()) != label:
            return _WRONG
        one = complete.decide(robustness(Box.around(image, case["eps"]), label, data.classes))
        return one.by if one.by in ("ibp", "pgd") else one.verdict

    kept = folder / "kept" / f"{case['eps_train']:g}-{case['eps']:g}"  # at full size a case takes an hour
    images, labels = pixels(data.test.images).double().split(1), data.test.labels.tolist()
    pairs = enumerate(zip(images, labels, strict=True))
    found = Counter(once(kept / f"{i}.json", partial(decided, *pair)) for i, pair in pairs)
    left = len(data.test) - found["ibp"]
    counts = {
        "nominal": found[_WRONG],
        "pgd": found[_WRONG] + found["pgd"],
        "exact": left - found[Verdict.ROBUST],
        "ibp": left,
        "unknown": found[Verdict.UNKNOWN],
    }
    return {name: count / len(data.test) for name, count in counts.items()}


def claims(rows: Sequence[Row], parameters: Parameters) -> list[Claim]:
    """Return table 3 beside the figures found."""
    claims = []
    for row in rows:
        published = _TABLE.get(row["eps"]) if parameters["dataset"] == "mnist" else None
        measured = f"{row['ibp']:.1%}; {row['exact']:.1%} ({row['unknown']:.1%} undecided, PGD {row['pgd']:.1%})"
        claims.append(
            Claim(
                f"trained at {row['eps_train']:g}, tested at {row['eps']:g}: error by IBP's bound; exact",
                "Gowal et al. 2019, table 3; here "
                f"{parameters['model']} on {parameters['dataset']}, {parameters['epochs']} epochs",
                "-" if published is None else "{:.2f}%; {:.2f}%".format(*published),
                measured,
            )
        )
    return claims


def draw(rows: Sequence[Row], parameters: Parameters) -> Figure:
    """Draw the three errors against the test radius."""
    made, (axis,) = figure(1)
    places = range(len(rows))
    for n, (name, label) in enumerate((("ibp", "IBP's bound"), ("exact", "exact"), ("pgd", "PGD"))):
        line(axis, n, list(places), [100 * row[name] for row in rows], label)
    axis.set_xticks(list(places), [f"{row['eps_train']:g} / {row['eps']:g}" for row in rows])
    axis.set(xlabel="trained at / tested at ε (pixel units)", ylabel="error (% of test images)", ylim=(0, None))
    axis.legend(frameon=False)
    return made


_SIZES = {"pgd_steps": 40, "pgd_restarts": 1, "seed": 0, "data_dir": None}

register_study(
    Study(
        "ibp-tightness",
        "On networks trained by IBP, how far is IBP's bound from the exact answer?",
        "Gowal et al. 2019, table 3",
        quick={
            **{"dataset": "digits", "model": "tiny", "epochs": 20, "train_limit": None, "images": 100},
            **{"eps": [[0.1, 0.05], [0.1, 0.1], [0.2, 0.15]], "seconds": 10.0, **_SIZES},
        },
        full={
            **{"dataset": "mnist", "model": "small", "epochs": 100, "train_limit": None, "images": 1000},
            **{"eps": [[0.2, 0.1], [0.2, 0.2], [0.4, 0.3], [0.4, 0.4]], "seconds": 60.0, **_SIZES},
        },
        cases=cases,
        measure=measure,
        claims=claims,
        draw=draw,
    )
)
