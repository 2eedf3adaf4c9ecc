"""Examples in docstrings, `>>> ...`, as blocks of code: Markdown takes them for quotations."""

import re
from typing import Any

import griffe

_EXAMPLE = re.compile(r"(?:^(?:>>>|\.\.\.).*\n?(?:(?!>>>|\s*$).*\n?)?)+", re.MULTILINE)


class Doctests(griffe.Extension):
    """Rewrites every docstring that has examples."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Put fences around the examples."""
        if obj.docstring is not None:
            obj.docstring.value = _EXAMPLE.sub(lambda e: f"\n```python\n{e[0].strip()}\n```\n", obj.docstring.value)
