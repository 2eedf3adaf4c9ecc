"""What every result does: it shows itself in a notebook, goes to pandas, and is saved."""

import csv
import io
import json
from dataclasses import asdict
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from etb_plugin.errors import ConfigError
from etb_plugin.files import write_file, write_json

if TYPE_CHECKING:
    from pandas import DataFrame


class Shown:
    """A dataclass of figures. `rows` says what a table of it holds; one row of its fields, unless overridden."""

    def rows(self) -> list[dict[str, Any]]:
        """Return the rows of the table, by column."""
        return [asdict(self)]  # type: ignore[call-overload]

    def to_pandas(self) -> "DataFrame":
        """Return the rows as a DataFrame. Raises ConfigError where pandas is not installed."""
        try:
            import pandas
        except ImportError:
            raise ConfigError("to_pandas needs pandas: pip install pandas") from None
        return pandas.DataFrame(self.rows())

    def save(self, path: str | Path) -> None:
        """Write the rows as .json or .csv, whole or not at all. Raises ConfigError for another suffix."""
        path, rows = Path(path), self.rows()
        if path.suffix == ".json":
            write_json(path, rows)
        elif path.suffix == ".csv":
            write_file(path, csv_text(rows))
        else:
            raise ConfigError(f"{path}: write a name that ends in .json or .csv")

    def _repr_html_(self) -> str:
        rows = self.rows()
        head = "".join(f"<th>{escape(key)}</th>" for key in rows[0])
        body = "".join(f"<tr>{''.join(f'<td>{escape(_text(v))}</td>' for v in row.values())}</tr>" for row in rows)
        return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def spread(values: dict[str, Any], **prefixes: str) -> dict[str, Any]:
    """Return values, and behind them what the mappings under the keys of `prefixes` held, each name behind its prefix;
    None is an empty mapping."""
    plain = {key: value for key, value in values.items() if key not in prefixes}
    inner = {key: values[key] or {} for key in prefixes}
    return plain | {f"{prefixes[key]}_{name}": value for key in inner for name, value in inner[key].items()}


def csv_text(rows: list[dict[str, Any]]) -> str:
    """Return rows as CSV, with a column for each key that any of them has; what is nested as JSON."""
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, dict.fromkeys(key for row in rows for key in row), lineterminator="\n")
    writer.writeheader()
    writer.writerows({k: json.dumps(v) if isinstance(v, (list, dict)) else v for k, v in row.items()} for row in rows)
    return buffer.getvalue()


def _text(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
