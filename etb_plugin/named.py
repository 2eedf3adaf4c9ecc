"""Names with options, as flags and files write them: `exact:time_limit=10`."""

from typing import Any

import yaml

from etb_plugin.errors import ConfigError


def named_options(text: str) -> tuple[str, dict[str, Any]]:
    """Read `name:key=value:key=value`, values as in YAML. Raises ConfigError where a key has no value."""
    name, *options = text.split(":")
    values: dict[str, Any] = {}
    for option in options:
        key, equals, value = option.partition("=")
        if not equals:
            raise ConfigError(f"{text!r}: write an option as {name}:key=value")
        try:
            values[key] = yaml.safe_load(value)
        except yaml.YAMLError:
            raise ConfigError(f"{text!r}: {value!r} is no value; write a number, a word, or a YAML file") from None
    return name, values
