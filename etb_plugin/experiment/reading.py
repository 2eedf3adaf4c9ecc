"""From YAML files, flags and `--set` to records, or to an error that names file, line and key."""

import difflib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from etb_plugin.catalogue import check_spelling
from etb_plugin.errors import ConfigError, unknown_name
from etb_plugin.experiment.schema import Evaluated, Experiment, VerifyRequest, check_device, resolve_device
from etb_plugin.registry import named_options, own_code

Keys = tuple[str | int, ...]
"""Where a value stands: the keys, and numbers in lists, that lead to it."""
Schema = TypeVar("Schema", bound=BaseModel)

_LARGEST = 2**18
"""Bytes of an experiment file."""
_MOST_NODES = 20_000
"""Values of an experiment file, those that aliases repeat included."""


@dataclass(frozen=True)
class Read:
    """An experiment, and where each value that was given stands."""

    experiment: Experiment
    places: Mapping[Keys, str]


def read_keywords(file: Path | None, keys: Mapping[str, Any]) -> Experiment:
    """Return the experiment of a `file` and of Python's keywords, which win: flags' names, or whole sections."""
    known = [*_flags(Experiment), *_sections(Experiment)]
    for key in keys:
        if key not in known:
            raise unknown_name("key", key, known)
    return _traced(file, keys, (), "").experiment


def read_experiment(file: Path | None, flags: Mapping[str, Any], changes: Sequence[str] = ()) -> Experiment:
    """Return the experiment of a `file` (YAML), `flags` (None where not given) and `changes` (`key.key=value`).

    The later win. Raises ConfigError that names the flag, or the file, its line and key.
    """
    return trace_experiment(file, flags, changes).experiment


def trace_experiment(file: Path | None, flags: Mapping[str, Any], changes: Sequence[str] = ()) -> Read:
    """Return what `read_experiment` does, and where each value stands."""
    return _traced(file, flags, changes, "--")


def _traced(file: Path | None, flags: Mapping[str, Any], changes: Sequence[str], dashes: str) -> Read:
    values, places = ({}, {}) if file is None else _read_yaml(file)
    values.pop("layout", None)  # of a run folder's own experiment.yaml
    sections = _sections(Experiment)
    for key, path in ({section: (section,) for section in sections} | _flags(Experiment)).items():
        if flags.get(key) is not None:
            _put(values, places, path, flags[key], dashes + (key.replace("_", "-") if dashes else key))
    for change in changes:
        text, equals, value = change.partition("=")
        path = tuple(text.replace("-", "_").split("."))
        if not equals or (path[0] in sections and len(path) == 1):
            raise ConfigError(f"--set {change}: write --set training.epochs=5")
        if len(path) > 1 and (path[0] not in sections or len(path) > 2):
            raise ConfigError(f"--set {text}: there is no such key")
        try:
            _put(values, places, path, yaml.safe_load(value), f"--set {text}")
        except yaml.YAMLError:
            raise ConfigError(f"--set {change}: {value!r} is no YAML value") from None
    experiment = _validated(Experiment, values, places)
    _check_names(experiment, places)
    return Read(experiment, places)


def read_evaluation(flags: Mapping[str, Any]) -> Evaluated:
    """Return the evaluation that `flags` (None where not given) describe. Raises ConfigError that names the flag."""
    return _from_flags(Evaluated, flags)


def read_verification(flags: Mapping[str, Any]) -> VerifyRequest:
    """Return the verification that `flags` (None where not given) describe. Raises ConfigError that names the flag."""
    return _from_flags(VerifyRequest, flags)


def read_mapping(file: Path) -> dict[str, Any]:
    """Return the keys of a YAML file. Raises ConfigError that names the file and line where it is none."""
    return _read_yaml(file)[0]


def _from_flags(schema: type[Schema], flags: Mapping[str, Any]) -> Schema:
    given = {key: flags[key] for key in schema.model_fields if flags.get(key) is not None}
    return _validated(schema, given, {(key,): f"--{key.replace('_', '-')}" for key in given})


def _sections(schema: type[BaseModel]) -> dict[str, type[BaseModel]]:
    """Return the keys of the schema that hold keys."""
    kinds = {name: field.annotation for name, field in schema.model_fields.items()}
    options = {name: getattr(kind, "__args__", (kind,)) for name, kind in kinds.items()}
    return {
        name: kind
        for name, several in options.items()
        for kind in several
        if isinstance(kind, type) and issubclass(kind, BaseModel) and name != "methods"
    }


def _flags(schema: type[BaseModel]) -> dict[str, Keys]:
    """Return where the value of each flag goes. A key of a section is its own flag; the engine's name is `--engine`."""
    sections = _sections(schema)
    own: dict[str, Keys] = {name: (name,) for name in schema.model_fields if name not in sections}
    for section, keys in sections.items():
        if section not in ("verification", "report"):
            own |= {section if key == "name" else key: (section, key) for key in keys.model_fields}
    return own


def _put(values: dict[str, Any], places: dict[Keys, str], path: Keys, value: Any, place: str) -> None:
    inside: Any = values
    for key in path[:-1]:
        inside = inside.setdefault(key, {}) if isinstance(inside, dict) else None
    if isinstance(inside, dict):  # what is no mapping is refused with its own place
        inside[path[-1]] = value
        for deeper in [known for known in places if known[: len(path)] == path]:
            del places[deeper]
        places[path] = place


def _validated(schema: type[Schema], values: Mapping[str, Any], places: Mapping[Keys, str]) -> Schema:
    try:
        return schema.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        path = next(first["loc"][:end] for end in range(len(first["loc"]), -1, -1) if first["loc"][:end] in places)
        where = places[path]
        if first["type"] == "extra_forbidden":
            key = "such key" if path == first["loc"] else f"key {first['loc'][-1]!r}"
            raise ConfigError(f"{where}: there is no {key}; {_hint(schema, first['loc'])}") from None
        message = first["msg"].removeprefix("Value error, ")
        if first["type"] != "value_error":
            message = f"{first['input']!r} does not do: {message[0].lower()}{message[1:]}"
        raise ConfigError(f"{where}: {message}") from None


def _check_names(experiment: Experiment, places: Mapping[Keys, str]) -> None:
    """Raise ConfigError, with its place, for a name that stands for nothing or a change that a method cannot take."""
    e = experiment
    certify = e.evaluation.certify or ()
    spelled: list[tuple[Keys, Callable[[], object]]] = [
        (("device",), lambda: check_device(e.device)),
        *(((("model",), partial(check_spelling, "network", m))) for m in e.model or () if own_code(m) is None),
        *((("methods", i), partial(check_spelling, "method", v.method)) for i, v in enumerate(e.methods)),
        *((("evaluation", "certify"), partial(_check_certifier_spelling, text)) for text in certify),
        (("evaluation", "attack"), partial(_check_attack_spelling, e.evaluation.attack)),
    ]
    if not e.dataset.endswith((".npz", "/")) and own_code(e.dataset) is None:
        spelled.insert(0, (("dataset",), partial(check_spelling, "dataset", e.dataset)))
    _checked(spelled, places)
    from etb_plugin import data
    from etb_plugin.evaluation import check_certifiers
    from etb_plugin.networks import check_network

    _checked(
        [
            (("device",), lambda: resolve_device(e.device)),
            (("dataset",), lambda: data.describe(e.dataset)),
            *((("model",), partial(check_network, model)) for model in e.model or ()),
            *(
                (("methods", i), partial(variant.at, changes, 0.0))
                for i, variant in enumerate(e.methods)
                for changes in variant.points()
            ),
            (("evaluation", "certify"), partial(check_certifiers, certify, in_real_arithmetic=e.evaluation.rigorous)),
        ],
        places,
    )


def _check_certifier_spelling(text: str) -> None:
    check_spelling("bound", named_options(text)[0])


def _check_attack_spelling(name: str) -> None:
    if name != "pgd":  # which is there in any case
        check_spelling("attack", name)


def _checked(checks: Iterable[tuple[Keys, Callable[[], object]]], places: Mapping[Keys, str]) -> None:
    for keys, check in checks:
        try:
            check()
        except ConfigError as error:
            place = places.get(keys) or places.get(keys[:1])
            raise ConfigError(str(error) if place is None else f"{place}: {error}") from None


def _hint(schema: type[BaseModel], path: Keys) -> str:
    """Return what would be right in place of a key that there is not."""
    sections = _sections(schema)
    key = str(path[-1])
    inside = sections[str(path[0])] if len(path) > 1 and path[0] in sections else schema
    near = difflib.get_close_matches(key, inside.model_fields, n=2, cutoff=0.5)
    elsewhere = [section for section, keys in sections.items() if keys is not inside and key in keys.model_fields]
    if elsewhere:
        return f"it stands in {elsewhere[0]}: write {elsewhere[0]}: {{{key}: ...}}"
    return f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(sorted(inside.model_fields))}."


def _read_yaml(file: Path) -> tuple[dict[str, Any], dict[Keys, str]]:
    """Return the file's values, and "file, line, key" of each. A hyphen in a key does for an underscore."""
    try:
        if file.stat().st_size > _LARGEST:
            raise ConfigError(f"{file} has {file.stat().st_size / 2**10:,.0f} KiB; an experiment is a page of text")
        text = file.read_text()
        root = yaml.compose(text, yaml.SafeLoader)
        places = {} if root is None else dict(_places(root, file))
        values = yaml.safe_load(text) or {}
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file} cannot be read: {error}") from None
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        problem = error.problem or "no YAML"
        if "\t" in "".join(text.splitlines()[line - 1 : line]):
            problem = "a tab; YAML is indented by spaces"
        raise ConfigError(f"{file}, line {line}: {problem}") from None
    except RecursionError:
        raise ConfigError(f"{file} is nested too deeply; an experiment is a page of text") from None
    except (yaml.YAMLError, ValueError) as error:  # a number of thousands of digits
        raise ConfigError(f"{file} is no YAML: {error}") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{file} holds no keys; write lines such as `dataset: digits`")
    return _underscored(values), places


def _underscored(values: dict[Any, Any]) -> dict[str, Any]:
    sections = _sections(Experiment)
    named = {str(key).replace("-", "_"): value for key, value in values.items()}
    for key in sections:
        if isinstance(named.get(key), dict):
            named[key] = {str(inner).replace("-", "_"): value for inner, value in named[key].items()}
    return named


def _places(root: yaml.Node, file: Path) -> Iterator[tuple[Keys, str]]:
    """Yield where everything in the file stands. Raises ConfigError for a key that stands twice in one mapping, for a
    value inside itself, and where aliases blow the file up."""
    count = 0

    def walk(node: yaml.Node, path: Keys, around: tuple[int, ...]) -> Iterator[tuple[Keys, str]]:
        nonlocal count
        count += 1
        line = node.start_mark.line + 1
        if id(node) in around:
            raise ConfigError(f"{file}, line {line}: a value that contains itself")
        if count > _MOST_NODES:
            raise ConfigError(f"{file}: its aliases make more than {_MOST_NODES:,} values of it")
        if isinstance(node, yaml.MappingNode):
            seen: dict[str, int] = {}
            for key_node, value in node.value:
                key, key_line = str(key_node.value), key_node.start_mark.line + 1
                key = key.replace("-", "_") if len(path) < 2 and path[:1] != ("methods",) else key
                if key in seen:
                    raise ConfigError(f"{file}, line {key_line}: key {key!r} stands in line {seen[key]} already")
                seen[key] = key_line
                yield (*path, key), f"{file}, line {key_line}, {'.'.join(map(str, (*path, key)))}"
                yield from walk(value, (*path, key), (*around, id(node)))
        elif isinstance(node, yaml.SequenceNode):
            for number, item in enumerate(node.value):
                yield (*path, number), f"{file}, line {item.start_mark.line + 1}, {'.'.join(map(str, path))}"
                yield from walk(item, (*path, number), (*around, id(node)))

    yield from walk(root, (), ())
