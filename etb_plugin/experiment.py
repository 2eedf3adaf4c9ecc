"""The schema of an experiment: what flags and YAML files may say, checked once, before any work starts.

Flags override the file, the file overrides the recipe (a method's own defaults). Inside, everything is a frozen
record; `Experiment.resolved` fills what was left open.
"""

import difflib
import hashlib
import itertools
import math
import re
from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import torch
import yaml
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    model_serializer,
    model_validator,
)

from etb_plugin import data
from etb_plugin.attacks import Pgd
from etb_plugin.bounds import bounds
from etb_plugin.errors import ConfigError
from etb_plugin.evaluation import Exam, check_certifiers
from etb_plugin.named import named_options
from etb_plugin.networks import check_network
from etb_plugin.objectives import Method, get_method


def _number(value: object) -> float:
    """Read a number, or a fraction such as "8/255". YAML reads 1e-3 as a string, so strings are read too."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise ValueError(f"{value!r} is no number")
    try:
        if isinstance(value, str) and "/" in value:
            above, _, below = value.partition("/")
            return float(Fraction(above.strip()) / Fraction(below.strip()))
        return float(value)
    except (ValueError, ZeroDivisionError):
        raise ValueError(f"{value!r} is no number; write 0.1 or 8/255") from None


def _eps(value: object) -> float:
    eps = _number(value)
    if not math.isfinite(eps):
        raise ValueError(f"{value} is no finite number")
    if eps < 0:
        raise ValueError(f"{value} is negative; a radius is 0 or more")
    if eps >= 1:
        raise ValueError(
            f"{value} is in the wrong units: pixels run from 0 to 1, so write {value}/255 if you meant that"
        )
    return eps


def eps_text(eps: float) -> str:
    """Return a radius as people write it: 0.1, and 2/255 where that is what it is."""
    levels = round(eps * 255)
    if float(f"{eps:.3g}") != eps and math.isclose(eps * 255, levels):
        return f"{levels}/255"
    return f"{eps:.4g}"


def _rate(value: object) -> float:
    rate = _number(value)
    if not (math.isfinite(rate) and rate > 0):
        raise ValueError(f"{value} is no learning rate; it must be positive")
    return rate


def _listed(value: object) -> list[Any]:
    """Read a YAML list, or a comma-separated string."""
    items = [item.strip() for item in value.split(",")] if isinstance(value, str) else value
    items = list(items) if isinstance(items, list | tuple) else [items]
    if not items or "" in items:
        raise ValueError(f"{value!r} has an empty entry; write a,b,c")
    if len(set(map(str, items))) < len(items):
        raise ValueError(f"{value!r} names something twice")
    return items


Eps = Annotated[float, BeforeValidator(_eps)]
Rate = Annotated[float, BeforeValidator(_rate)]
Names = Annotated[tuple[str, ...], BeforeValidator(_listed)]
Count = Annotated[int, Field(strict=True, ge=1)]
Schema = TypeVar("Schema", bound=BaseModel)


class Evaluated(BaseModel):
    """What every evaluation needs to be told. Shared by `etb evaluate` and, through Experiment, `etb compare`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    dataset: str | None = None
    model: str | None = None
    eps_test: Annotated[tuple[Eps, ...], BeforeValidator(_listed)] | None = None
    test_limit: Count | None = None
    pgd_steps: Count = 40
    pgd_restarts: Count = 1
    certify: Names | None = None
    seed: Annotated[int, Field(strict=True, ge=0)] = 0
    device: str = "auto"
    data_dir: str | None = None
    out: str | None = None

    def exam(self, eps_test: tuple[float, ...], certify: tuple[str, ...]) -> Exam:
        """Return the exam that is asked for, with these defaults. Raises ConfigError for a certifier that is none."""
        certify = self.certify or certify
        check_certifiers(certify)
        return Exam(self.eps_test or eps_test, Pgd(self.pgd_steps, self.pgd_restarts), certify, self.seed)


def _image_range(value: object) -> tuple[int, int]:
    """Read "a:b", images a to b - 1; ":b" begins at 0."""
    if isinstance(value, list | tuple) and len(value) == 2:
        value = f"{value[0]}:{value[1]}"
    found = re.fullmatch(r"(\d*):(\d+)", str(value))
    if found is None:
        raise ValueError(f"{value!r} is no range of images; write 0:200")
    first, stop = int(found[1] or 0), int(found[2])
    if first >= stop:
        raise ValueError(f"{value!r} holds no image")
    return first, stop


class VerifyRequest(Evaluated):
    """What `etb verify` needs to be told."""

    stages: Names | None = None
    time_limit: Annotated[float, BeforeValidator(_number)] = 60.0
    solver: str = "highs"
    images: Annotated[tuple[int, int], BeforeValidator(_image_range)] | None = None
    workers: Count = 1


class Variant(BaseModel):
    """A method, some of its numbers changed, or a grid of them.

    Written as `ibp`, as `ibp:elision=false:eps=0.2`, or in a file as a mapping: `ibp: {kappa: 0.5, name: mine,
    grid: {eps: [0.1, 0.2]}}`. The keys are those of `Method.changeable`, and `eps`, the training radius.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    method: str
    name: str | None = None
    changes: dict[str, Any] = {}
    grid: dict[str, list[Any]] = {}

    @model_validator(mode="before")
    @classmethod
    def _read(cls, value: Any) -> Any:
        if isinstance(value, str):
            method, changes = named_options(value)
            return {"method": method, "changes": changes}
        if isinstance(value, dict) and len(value) == 1 and isinstance(next(iter(value.values())), dict):
            ((method, changes),) = value.items()
            special = {key: changes[key] for key in ("name", "grid") if key in changes}
            return {"method": method, "changes": {k: v for k, v in changes.items() if k not in special}, **special}
        raise ValueError(f"{value!r} is no method; write ibp, ibp:kappa=0.5 or ibp: {{kappa: 0.5}}")

    @model_serializer
    def _plain(self) -> Any:
        special = {key: value for key, value in (("name", self.name), ("grid", self.grid)) if value}
        return {self.method: {**self.changes, **special}} if self.changes or special else self.method

    @property
    def label(self) -> str:
        """What the row is called: `name`, or the method and its changes."""
        return self.name or changed_text(self.method, self.changes)

    def points(self) -> list[dict[str, Any]]:
        """Return the changes of every point of the grid; those of the method alone where there is none."""
        return [
            {**self.changes, **dict(zip(self.grid, values, strict=True))}
            for values in itertools.product(*self.grid.values())
        ]

    def at(self, changes: Mapping[str, Any], eps: float) -> tuple[Method, float]:
        """Return the changed method and its training radius, `eps` unless changed. Raises ConfigError."""
        own = {key: value for key, value in changes.items() if key != "eps"}
        method = get_method(self.method).changed(own)
        try:
            return method, _eps(changes["eps"]) if "eps" in changes else eps
        except ValueError as error:
            raise ConfigError(f"method {self.method!r}: eps: {error}") from None


def changed_text(name: str, changes: Mapping[str, Any]) -> str:
    """Return a method with its changes in one line."""
    return " ".join((name, *(f"{key}={_value_text(value)}" for key, value in changes.items())))


def _value_text(value: Any) -> str:
    if isinstance(value, dict):  # a ramp
        return f"{value.get('start')}→{value.get('end')}"
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _variants(value: object) -> list[Any]:
    items = _listed(value)
    return [Variant.model_validate(item) for item in items]


class Experiment(Evaluated):
    """A comparison: one data set and architecture, several methods.

    With `validation` the last so many training images are set aside: the best point of each grid is chosen on them
    (by `select`, the mean over the test radii), and no network is trained on them.
    """

    dataset: str = "digits"
    methods: Annotated[tuple[Variant, ...], BeforeValidator(_variants), Field(validate_default=True)] = (
        *("nominal", "pgd", "ibp", "expected", "crown-ibp"),  # type: ignore[assignment]
    )
    eps: Eps | None = None
    epochs: Count | None = None
    batch_size: Count = 100
    lr: Rate | None = None
    train_limit: Count | None = None
    validation: Count | None = None
    select: Literal["clean", "pgd", "certified"] = "pgd"
    tensorboard: bool = False
    compile: bool = False

    def resolved(self) -> "Resolved":
        """Return the experiment with nothing left open. Raises ConfigError for names that do not exist.

        Certifiers default to ibp, crown-ibp and whatever sound bounds the methods train with.
        """
        source = data.describe(self.dataset)
        for label in (labels := [variant.label for variant in self.methods]):
            if labels.count(label) > 1:
                raise ConfigError(f"methods: {label!r} is there twice; give one of them a name")
        for variant in self.methods:
            if variant.grid and self.validation is None:
                raise ConfigError(
                    f"method {variant.label!r} has a grid, and nothing to choose on: set validation, the number of "
                    f"training images to set aside"
                )
        objectives = [variant.at(changes, 0.0)[0].objective for variant in self.methods for changes in variant.points()]
        trained_with = [
            o.bound for o in objectives if o.bound is not None and bounds()[o.bound].soundness(o.bound_options)
        ]
        eps = source.default_eps if self.eps is None else self.eps
        exam = self.exam((eps,), tuple(dict.fromkeys(("ibp", "crown-ibp", *trained_with))))
        model = self.model or source.default_model
        check_network(model)
        return Resolved(
            **self.model_dump(exclude={"model", "eps", "eps_test", "epochs", "certify", "device"}),
            model=model,
            eps=eps,
            eps_test=exam.eps_test,
            epochs=self.epochs or source.default_epochs,
            certify=exam.certify,
            device=resolve_device(self.device),
        )


class Resolved(Experiment):
    """An experiment with nothing left open."""

    model: str
    eps: float
    eps_test: tuple[float, ...]
    epochs: int
    certify: tuple[str, ...]

    @property
    def folder(self) -> Path:
        """Where the run lies: `out`, or a folder of runs/ named after the data set and the experiment's hash."""
        content = self.model_dump_json(exclude={"data_dir", "out", "tensorboard"})
        digest = hashlib.sha256(content.encode()).hexdigest()[:8]
        return Path(self.out or f"runs/compare-{Path(self.dataset).stem}-{digest}")


def resolve_device(name: str) -> str:
    """Return the device that `name` stands for: auto is the GPU where there is one. Raises ConfigError without."""
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ConfigError(f"unknown device {name!r}; write auto, cpu, cuda or cuda:1") from None
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigError(
            f"device {name!r} does not exist: torch sees {torch.cuda.device_count()} CUDA devices; "
            f"write cpu, or install a CUDA build of torch"
        )
    if device.type not in ("cpu", "cuda"):
        raise ConfigError(f"device {name!r} is not supported; write auto, cpu, cuda or cuda:1")
    return name


def read_experiment(file: Path | None, flags: Mapping[str, Any]) -> Experiment:
    """Return the experiment that `file` (YAML) and `flags` (None where not given) describe; flags win.

    Raises ConfigError that names the flag, or the file, its line and key.
    """
    values, lines = ({}, {}) if file is None else _read_yaml(file)
    places = {key: f"{file}, line {line}, {key}" for key, line in lines.items()}
    return _validated(Experiment, values, flags, places)


def read_evaluation(flags: Mapping[str, Any]) -> Evaluated:
    """Return the evaluation that `flags` (None where not given) describe. Raises ConfigError that names the flag."""
    return _validated(Evaluated, {}, flags, {})


def read_verification(flags: Mapping[str, Any]) -> VerifyRequest:
    """Return the verification that `flags` (None where not given) describe. Raises ConfigError that names the flag."""
    return _validated(VerifyRequest, {}, flags, {})


def read_mapping(file: Path) -> dict[str, Any]:
    """Return the keys of a YAML file. Raises ConfigError that names the file and line where it is none."""
    return _read_yaml(file)[0]


def _validated(
    schema: type[Schema], values: Mapping[str, Any], flags: Mapping[str, Any], places: Mapping[str, str]
) -> Schema:
    """Return `values`, overridden by those `flags` that are keys of the schema. `places` says where values stand."""
    given = {key: flags[key] for key in schema.model_fields if flags.get(key) is not None}
    try:
        return schema.model_validate({**values, **given})
    except ValidationError as error:
        first = error.errors()[0]
        key = str(first["loc"][0])
        where = f"--{key.replace('_', '-')}" if key in given else places[key]
        if first["type"] == "extra_forbidden":
            known = sorted(schema.model_fields)
            near = difflib.get_close_matches(key, known, n=2, cutoff=0.5)
            hint = f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(known)}."
            raise ConfigError(f"{where}: there is no such key; {hint}") from None
        message = first["msg"].removeprefix("Value error, ")
        if first["type"] != "value_error":
            message = f"{first['input']!r} does not do: {message[0].lower()}{message[1:]}"
        raise ConfigError(f"{where}: {message}") from None


def _read_yaml(file: Path) -> tuple[dict[str, Any], dict[str, int]]:
    """Return the file's values, and the line of each key. A hyphen in a key does for an underscore."""
    try:
        text = file.read_text()
        root = yaml.compose(text, yaml.SafeLoader)
        values = yaml.safe_load(text) or {}
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file} cannot be read: {error}") from None
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        problem = error.problem or "no YAML"
        if "\t" in "".join(text.splitlines()[line - 1 : line]):
            problem = "a tab; YAML is indented by spaces"
        raise ConfigError(f"{file}, line {line}: {problem}") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{file} holds no keys; write lines such as `dataset: digits`")
    lines: dict[str, int] = {}
    named: dict[str, Any] = {}
    for node, _ in root.value if root is not None else ():
        key = str(node.value).replace("-", "_")
        if key in lines:
            raise ConfigError(
                f"{file}, line {node.start_mark.line + 1}: key {key!r} stands in line {lines[key]} already"
            )
        lines[key] = node.start_mark.line + 1
    for key, value in values.items():
        named[str(key).replace("-", "_")] = value
    return named, lines
