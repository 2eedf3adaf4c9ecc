"""Numbers and lists as people write them: 8/255, a comma-separated list, a range of images."""

import math
import re
from fractions import Fraction
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, PlainSerializer, WithJsonSchema


def number(value: object) -> float:
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


def read_eps(value: object) -> float:
    """Read a radius in pixel units. Raises ValueError for what can be none."""
    eps = number(value)
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
    rate = number(value)
    if not (math.isfinite(rate) and rate > 0):
        raise ValueError(f"{value} is no learning rate; it must be positive")
    return rate


def listed(value: object) -> list[Any]:
    """Read a YAML list, a comma-separated string, or one value."""
    items = [item.strip() for item in value.split(",")] if isinstance(value, str) else value
    items = list(items) if isinstance(items, list | tuple) else [items]
    if not items or "" in items:
        raise ValueError(f"{value!r} has an empty entry; write a,b,c")
    if len(set(map(str, items))) < len(items):
        raise ValueError(f"{value!r} names something twice")
    return items


def _seeds(value: object) -> list[Any]:
    return [int(v) if isinstance(v, str) and v.isdecimal() else v for v in listed(value)]


def _image_range(value: object) -> tuple[int, int]:
    found = re.fullmatch(r"(\d*):(\d+)", str(value))
    if found is None:
        raise ValueError(f"{value!r} is no range of images; write 0:200")
    first, stop = int(found[1] or 0), int(found[2])
    if first >= stop:
        raise ValueError(f"{value!r} holds no image")
    return first, stop


_NUMBER = {"type": ["number", "string"]}


def _one_or_more(kind: str | list[str]) -> dict[str, Any]:
    return {"anyOf": [{"type": kind}, {"type": "array", "items": {"type": kind}, "minItems": 1}]}


Count = Annotated[int, Field(strict=True, ge=1)]
Eps = Annotated[float, BeforeValidator(read_eps), WithJsonSchema(_NUMBER)]
Rate = Annotated[float, BeforeValidator(_rate), WithJsonSchema(_NUMBER)]
Share = Annotated[float, BeforeValidator(number), Field(gt=0), WithJsonSchema(_NUMBER)]
Seconds = Annotated[float, BeforeValidator(number), WithJsonSchema(_NUMBER)]
Radii = Annotated[tuple[Eps, ...], BeforeValidator(listed), WithJsonSchema(_one_or_more(["number", "string"]))]
Names = Annotated[tuple[str, ...], BeforeValidator(listed), WithJsonSchema(_one_or_more("string"))]
Seed = Annotated[int, Field(strict=True, ge=0)]
Seeds = Annotated[tuple[Seed, ...], BeforeValidator(_seeds), WithJsonSchema(_one_or_more("integer"))]
Images = Annotated[
    tuple[int, int],
    BeforeValidator(_image_range),
    PlainSerializer(lambda images: f"{images[0]}:{images[1]}"),
    WithJsonSchema({"type": "string", "pattern": r"^\d*:\d+$"}),
]
"""Images a to b - 1, written "a:b"; ":b" begins at 0."""
