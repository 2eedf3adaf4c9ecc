"""The keys of an experiment, and what `etb evaluate` and `etb verify` take of them."""

import hashlib
import json
import os
import re
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from etb_plugin.errors import ConfigError
from etb_plugin.experiment.values import Count, Images, Names, Radii, Rate, Seconds, Seed, Seeds, Share, listed
from etb_plugin.experiment.variant import Variant

if TYPE_CHECKING:
    from etb_plugin.evaluation import Exam


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class TrainingSection(_Section):
    """How every method is trained. With `validation` the last so many training images are set aside: the best point of
    each grid is chosen on them (by `select`, the mean over the test radii), and no network is trained on them."""

    epochs: Annotated[Count | None, Field(description="Passes over the training images.")] = None
    batch_size: Annotated[Count, Field(description="Images in a training step; 100.")] = 100
    lr: Annotated[Rate | None, Field(description="Learning rate, in place of each method's own.")] = None
    train_limit: Annotated[Count | None, Field(description="Train on the first so many images only.")] = None
    validation: Annotated[
        Count | None, Field(description="Set the last so many training images aside, to choose a grid's best.")
    ] = None
    select: Annotated[
        Literal["clean", "pgd", "certified"],
        Field(description="What a grid's best is chosen by on them: clean, pgd (the default) or certified accuracy."),
    ] = "pgd"
    tensorboard: Annotated[bool, Field(description="Write TensorBoard's logs too.")] = False
    compile: Annotated[bool, Field(description="Have torch compile the network; pays on GPUs and long runs.")] = False
    capture: Annotated[
        Literal["auto", "off"], Field(description="Replay steps as CUDA graphs on a GPU; off takes them one by one.")
    ] = "auto"


class EvaluationSection(_Section):
    """What every network is put to."""

    eps_test: Annotated[
        Radii | None, Field(description="Test radii, such as 0.1,0.2; without it the training ones.")
    ] = None
    test_limit: Annotated[Count | None, Field(description="Test on the first so many images only.")] = None
    pgd_steps: Annotated[Count, Field(description="Steps of PGD; 40. The papers take 200.")] = 40
    pgd_restarts: Annotated[Count, Field(description="Restarts of PGD; 1. The papers take 10.")] = 1
    attack: Annotated[
        str,
        Field(
            description="pgd, or what PGD leaves standing and no bound certifies is put to besides: autoattack, or one "
            "of its parts (apgd-ce, apgd-targeted, square), or one of another package."
        ),
    ] = "pgd"
    certify: Annotated[
        Names | None,
        Field(
            description="Sound bounds that certify, such as ibp,exact:time_limit=10; without it ibp, crown-ibp and the "
            "sound ones that are trained with."
        ),
    ] = None
    rigorous: Annotated[
        bool, Field(description="Certificates hold in real arithmetic: rounding is taken off (on a CPU).")
    ] = False

    def exam(self, eps_test: tuple[float, ...], certify: tuple[str, ...], seed: int) -> "Exam":
        """Return the exam that is asked for, with these defaults. Raises ConfigError for a certifier that is none."""
        from etb_plugin.attacks import Pgd, get_attack
        from etb_plugin.evaluation import Exam, check_certifiers

        if self.attack != "pgd":
            get_attack(self.attack)
        certify = self.certify or certify
        check_certifiers(certify, in_real_arithmetic=self.rigorous)
        return Exam(
            self.eps_test or eps_test,
            Pgd(self.pgd_steps, self.pgd_restarts),
            certify,
            seed,
            None if self.attack == "pgd" else self.attack,
            self.rigorous,
        )


class Verifying(_Section):
    """The cascade that decides image by image."""

    images: Annotated[Images | None, Field(description="Which test images, such as 0:200; all of them.")] = None
    stages: Annotated[
        Names | None,
        Field(
            description="The cascade: pgd, sound bounds, inputs, bab, exact, lp; without it ibp, pgd, crown-ibp, "
            "crown, alpha-crown, dual, inputs, bab, exact, lp, as far as they take the network."
        ),
    ] = None
    time_limit: Annotated[
        Seconds, Field(description="Seconds for an image's inputs, bab, exact and lp in all, or for a property; 60.")
    ] = 60.0
    solver: Annotated[str, Field(description="highs, or gurobi where it is installed.")] = "highs"
    rigorous: Annotated[
        bool, Field(description="Proofs hold in real arithmetic: rounding is taken off every bound (on a CPU).")
    ] = False


class Engine(_Section):
    """What runs the cells. It has no say in the results."""

    name: Annotated[str, Field(description="local, ray, or print: one shell line for each cell.")] = "local"
    workers: Annotated[Count | None, Field(description="Cells that run side by side; 1, or one for each GPU.")] = None
    threads: Annotated[Count | None, Field(description="Threads of a cell; the cores shared among the workers.")] = None
    gpus: Annotated[
        Share | None, Field(description="GPUs of a cell, on machines that have them; 1. With 0.5 two cells share one.")
    ] = None
    address: Annotated[str | None, Field(description="Ray's cluster, such as auto; a local one without it.")] = None


class ReportSection(_Section):
    """How the results are shown."""

    title: Annotated[str | None, Field(description="The heading; the experiment in one line without it.")] = None
    spread: Annotated[
        Literal["deviation", "interval"],
        Field(description="What stands behind ± over several seeds: deviation, or the mean's 95 % interval."),
    ] = "deviation"


class _Placed(_Section):
    device: Annotated[str, Field(description="auto (the GPU where there is one), cpu, cuda, cuda:1.")] = "auto"
    data_dir: Annotated[str | None, Field(description="Folder of data sets; the variable ETB_DATA_DIR, or data.")] = (
        None
    )
    out: Annotated[str | None, Field(description="Run folder; runs/... named after the experiment.")] = None


class Evaluated(EvaluationSection, _Placed):
    """What `etb evaluate` is told."""

    dataset: str | None = None
    model: str | None = None
    seed: Seed = 0


class VerifyRequest(Evaluated, Verifying):
    """What `etb verify` is told."""

    workers: Count = 1


_METHODS = ("nominal", "pgd", "ibp", "expected", "crown-ibp")


class Experiment(_Placed):
    """A comparison: one data set; every method on every architecture, at every training radius, from every seed."""

    dataset: Annotated[
        str,
        Field(
            description="digits, mnist, fashion-mnist, cifar10, cifar100, svhn, har, imagenet64, "
            "tinyimagenet, path/to/file.npz, path/to/folder/ with images in train/CLASS and test/CLASS, or "
            "path/file.py:NAME of your own."
        ),
    ] = "digits"
    model: Annotated[
        Names | None,
        Field(
            description="Architectures of `etb models`, or path/file.py:NAME of your own; tiny on digits and small "
            "elsewhere unless given."
        ),
    ] = None
    methods: Annotated[
        tuple[Variant, ...],
        BeforeValidator(listed),
        Field(
            validate_default=True,
            description="Methods of `etb methods`, such as ibp,expected,crown or ibp:elision=false:kappa=0.5.",
        ),
    ] = _METHODS  # type: ignore[assignment]
    eps: Annotated[
        Radii | None,
        Field(description="Training radii in pixel units, 0 to 1, such as 0.1,0.2; 8/255 is understood."),
    ] = None
    seed: Annotated[Seeds, Field(description="Seeds of weights, batches and attacks, such as 0,1,2; 0.")] = (0,)
    training: TrainingSection = TrainingSection()
    evaluation: EvaluationSection = EvaluationSection()
    verification: Annotated[
        Verifying | None, Field(description="Put each network to the verifiers too, image by image.")
    ] = None
    engine: Engine = Engine()
    report: ReportSection = ReportSection()

    def resolved(self) -> "Resolved":
        """Return the experiment with nothing left open. Raises ConfigError for names that do not exist.

        Certifiers default to ibp, crown-ibp and whatever sound bounds the methods train with.
        """
        from etb_plugin.bounds import bounds
        from etb_plugin.data import describe
        from etb_plugin.networks import check_network

        source = describe(self.dataset)
        for label in (labels := [variant.label for variant in self.methods]):
            if labels.count(label) > 1:
                raise ConfigError(f"methods: {label!r} is there twice; give one of them a name")
        for variant in self.methods:
            if variant.grid and self.training.validation is None:
                raise ConfigError(
                    f"method {variant.label!r} has a grid, and nothing to choose on: set training.validation, the "
                    f"number of training images to set aside"
                )
        objectives = [variant.at(changes, 0.0)[0].objective for variant in self.methods for changes in variant.points()]
        trained_with = [
            o.bound for o in objectives if o.bound is not None and bounds()[o.bound].soundness(o.bound_options)
        ]
        eps = self.eps or (source.default_eps,)
        exam = self.evaluation.exam(eps, tuple(dict.fromkeys(("ibp", "crown-ibp", *trained_with))), 0)
        models = self.model or (source.default_model,)
        for model in models:
            check_network(model)
        training, evaluation = self.training.model_dump(), self.evaluation.model_dump()
        return Resolved(
            **{name: getattr(self, name) for name in Experiment.model_fields}
            | {
                "model": models,
                "eps": eps,
                "training": training | {"epochs": self.training.epochs or source.default_epochs},
                "evaluation": evaluation | {"eps_test": exam.eps_test, "certify": exam.certify},
                "device": resolve_device(self.device),
                # Kept, so that whoever goes on with the run, on whatever machine, finds the same data.
                "data_dir": self.data_dir or os.environ.get("ETB_DATA_DIR"),
            }
        )


class _ResolvedTraining(TrainingSection):
    epochs: int


class _ResolvedEvaluation(EvaluationSection):
    eps_test: tuple[float, ...]
    certify: tuple[str, ...]


class Resolved(Experiment):
    """An experiment with nothing left open."""

    model: tuple[str, ...]
    eps: tuple[float, ...]
    training: _ResolvedTraining
    evaluation: _ResolvedEvaluation

    @property
    def plain(self) -> dict[str, Any]:
        """Its keys and values as a file holds them."""
        return self.model_dump(mode="json", exclude_none=True)

    @cached_property
    def folder(self) -> Path:
        """Where the run lies: `out`, or a folder of runs/ named after the data set and the experiment's hash. The order
        of methods, radii and seeds has no say in it, nor have the engine and the report."""
        content = self.plain
        for key in ("data_dir", "out", "engine", "report"):
            content.pop(key, None)
        del content["training"]["tensorboard"]
        digest = hashlib.sha256(json.dumps(_sorted(content), sort_keys=True).encode()).hexdigest()[:8]
        return Path(self.out or f"runs/compare-{Path(self.dataset).stem}-{digest}")


def _sorted(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _sorted(one) for key, one in value.items()}
    return sorted(map(_sorted, value), key=str) if isinstance(value, list) else value


def check_device(name: str) -> None:
    """Raise ConfigError for what can be no device, wherever."""
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", name):
        raise ConfigError(f"unknown device {name!r}; write auto, cpu, cuda or cuda:1")


def resolve_device(name: str) -> str:
    """Return the device that `name` stands for: auto is the GPU where there is one. Raises ConfigError without."""
    check_device(name)
    import torch

    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if name.startswith("cuda") and int(name.partition(":")[2] or 0) >= torch.cuda.device_count():
        raise ConfigError(
            f"device {name!r} does not exist: torch sees {torch.cuda.device_count()} CUDA devices; "
            f"write cpu, or install a CUDA build of torch"
        )
    return name
