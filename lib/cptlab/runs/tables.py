"""The store's tables: CSV files with typed columns, the same bytes for the same rows."""

import csv
import io
import math
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from cptlab.errors import StoreError

if TYPE_CHECKING:
    import pandas as pd

CURVE_COLUMNS = {"step": int, "tokens": int, "lr": float, "loss_nats": float, "grad_norm": float}
MEASUREMENT_COLUMNS = {"step": int, "tokens": int, "set": str, "loss_nats": float, "accuracy": float, "predicted_tokens": int}


def _with_more(columns: dict[str, type], names: Iterable[str]) -> dict[str, type]:
    """``columns`` and, after them, those of ``names`` that they lack, which hold numbers."""
    return columns | dict.fromkeys((name for name in names if name not in columns), float)


def table_text(rows: Iterable[dict], columns: dict[str, type], path: Path, more: bool = False) -> str:
    """CSV of ``rows``: nine significant digits (a float32 and back), empty for a number that is not finite.

    ``more`` allows further columns of numbers, empty in rows that lack them.
    """
    rows, required = list(rows), columns.keys()
    if more and rows:
        columns = _with_more(columns, (name for row in rows for name in row))
        rows = [dict.fromkeys(columns, math.nan) | row if columns.keys() > row.keys() >= required else row for row in rows]
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(columns)
    for row in rows:
        if set(row) != set(columns):
            wrong = sorted(set(row) ^ set(columns))
            raise StoreError(f"{path}: a row lacks, or has and should not, {', '.join(wrong)}: the columns are {', '.join(columns)}")
        cells = []
        for name, kind in columns.items():
            value = row[name]
            if kind is float:
                value = "" if value is None or not math.isfinite(value) else f"{float(value):.9g}"
            elif kind is int and int(value) != value:
                raise StoreError(f"{path}: {name} is {value!r}: give a whole number")
            cells.append(int(value) if kind is int else value)
        writer.writerow(cells)
    return stream.getvalue()


def parse_row(cells: list[str], columns: dict[str, type]) -> dict:
    """Values of one line's cells; an empty number is NaN."""
    pairs = zip(columns.items(), cells, strict=True)
    return {name: math.nan if kind is float and cell == "" else kind(cell) for (name, kind), cell in pairs}


def read_table(path: Path, columns: dict[str, type], more: bool = False) -> list[dict]:
    """Rows of a table that this module wrote; [] when the file is absent. ``more`` allows further columns, of numbers."""
    try:
        with path.open(newline="", encoding="utf-8") as stream:
            reader = csv.reader(stream)
            header = next(reader, None)
            if more and header:
                columns = _with_more(columns, header)
            if header != list(columns):
                raise StoreError(
                    f"{path}: the columns are {header}, expected {list(columns)}: restore the file from git, or train the run again"
                )
            rows = []
            for cells in reader:
                try:
                    rows.append(parse_row(cells, columns))
                except ValueError as error:
                    raise StoreError(f"{path}:{reader.line_num}: {error}: restore the file from git, or train the run again") from None
            return rows
    except FileNotFoundError:
        return []
    except UnicodeDecodeError as error:
        raise StoreError(f"{path} is not UTF-8 text ({error}): restore the file from git, or train the run again") from None


def frame(rows: list[dict], columns: dict[str, type]) -> "pd.DataFrame":
    """The rows as a DataFrame with the columns' types, also when there are none, and the further columns that they have."""
    import pandas as pd  # here, so that commands which only look at statuses start quickly

    columns = _with_more(columns, rows[0] if rows else ())
    kinds = {int: "int64", float: "float64", str: "str"}
    return pd.DataFrame({name: pd.Series([row[name] for row in rows], dtype=kinds[kind]) for name, kind in columns.items()})
