"""Tables for people: how a notebook shows a frame or a description."""

import html
import math
from collections.abc import Mapping
from typing import Any

import pandas as pd

ROWS = 12  # shown before the fold
WHOLE = 40  # characters up to which the texts of a column stay on one line, a third of it in a table that is wider than
PAGE = 100  # characters
_SEEN = "text-align:{side};padding:2px 14px 2px 0;vertical-align:top{more}"


class Table:
    """A table, shown by Jupyter as HTML, elsewhere as text: no index numbers, thousands separators, text to the left, numbers to the
    right, the rows after the first :data:`ROWS` behind a fold."""

    def __init__(self, frame: pd.DataFrame, rows: int, formats: Mapping[str, str]):
        named = [level for level in frame.index.names if level is not None]
        table = frame.reset_index(level=named) if named else frame
        self.rows = rows
        self.heads = [" ".join(map(str, name)) if isinstance(name, tuple) else str(name) for name in table.columns]
        columns = [table.iloc[:, place] for place in range(table.shape[1])]
        self.numeric = [pd.api.types.is_numeric_dtype(column) and not pd.api.types.is_bool_dtype(column) for column in columns]
        given = [formats.get(head) for head in self.heads]
        texts = [_texts(column, form) for column, form in zip(columns, given, strict=True)]
        widths = [max(map(len, text), default=0) for text in texts]
        limit = WHOLE if sum(widths) <= PAGE else WHOLE // 3
        self.whole = [number or width <= limit for number, width in zip(self.numeric, widths, strict=True)]
        self.cells = list(zip(*texts, strict=True))

    def _html_rows(self, cells: list) -> str:
        looks = zip(self.numeric, self.whole, strict=True)
        styles = [_SEEN.format(side="right" if n else "left", more=";white-space:nowrap" if w else "") for n, w in looks]
        line = "<tr>{}</tr>".format
        return "".join(
            line("".join(f'<td style="{style}">{html.escape(text)}</td>' for style, text in zip(styles, row, strict=True))) for row in cells
        )

    def _repr_html_(self) -> str:
        heads = "".join(
            f'<th style="{_SEEN.format(side="right" if n else "left", more="")}">{html.escape(head.replace("_", " "))}</th>'
            for head, n in zip(self.heads, self.numeric, strict=True)
        )
        table = "<table><thead><tr>{}</tr></thead><tbody>{}</tbody></table>".format
        shown = table(heads, self._html_rows(self.cells[: self.rows]))
        if more := self.cells[self.rows :]:
            rows = f"{len(more)} more row{'s' if len(more) > 1 else ''}"
            shown += f"<details><summary>{rows}</summary>{table(heads, self._html_rows(more))}</details>"
        return f"<div>{shown}</div>"

    def __repr__(self) -> str:
        return pd.DataFrame(self.cells, columns=self.heads).to_string(index=False)


def table(frame: pd.DataFrame, rows: int = ROWS, **formats: str) -> Table:
    """A frame for the end of a cell.

    Args:
        frame: a named index becomes columns, another is dropped; underscores in names become spaces.
        rows: how many are shown before the fold.
        formats: column -> format specification (``"+.2%"``) in place of the one that its numbers suggest: three digits of the largest,
            thousands separated, powers of ten from 1e9 on and where small rates are among them.
    """
    return Table(frame, rows, formats)


def facts(values: Mapping[str, Any], rows: int = 12) -> Table:
    """A nested description (a run's, a report's) as two columns: what, and its value; what is None or empty is left out."""
    flat: list[tuple[str, str]] = []

    def walk(where: str, value: Any) -> None:
        if isinstance(value, Mapping) and value:
            for name, inner in value.items():
                walk(f"{where}.{name}" if where else str(name), inner)
        elif value not in (None, {}, [], (), ""):
            flat.append((where, f"{value:,}" if type(value) is int else str(value)))

    walk("", values)
    return Table(pd.DataFrame(flat, columns=["what", "value"]), rows, {})


def _texts(column: pd.Series, form: str | None) -> list[str]:
    if form is None and pd.api.types.is_bool_dtype(column):
        return ["yes" if value else "no" for value in column]
    if form is None and pd.api.types.is_numeric_dtype(column):
        form = _format([abs(float(value)) for value in column if value == value and math.isfinite(value)], column.dtype.kind in "iu")
    return ["" if _empty(value) else _text(value, form) for value in column]


def _empty(value: Any) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value)) or value is pd.NA


def _text(value: Any, form: str | None) -> str:
    if form is not None and not isinstance(value, str):
        return format(value, form).replace("-", "−", 1) if form[-1:] in "f%" else format(value, form)
    if isinstance(value, float):
        return f"{value:.3g}"
    return f"{value:,}" if type(value) is int else str(value)


def _format(sizes: list[float], whole: bool) -> str:
    largest, smallest = max(sizes, default=0.0), min((size for size in sizes if size), default=0.0)
    if largest >= 1e9:
        return ".2e"
    if whole or largest >= 1000 or (largest >= 10 and all(size == round(size) for size in sizes)):
        return ",.0f"
    if smallest < 0.005 <= largest or 0 < largest < 0.005:
        return ".3g"
    return f".{max(0, min(3, 3 - math.floor(math.log10(largest)))) if largest else 0}f"
