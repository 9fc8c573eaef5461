"""Tables of measured losses for a fit: read from CSV or a DataFrame, checked cell by cell, split into fitted and held-out rows."""

import csv
import io
import operator
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from cptlab.errors import ConfigError, DataError
from cptlab.laws.forms import INPUTS, Form

COLUMNS = {"n": "params", "d": "tokens", "loss": "loss", "r": "ratio", "u": "unique_tokens"}
ROLES = INPUTS | {"loss": "measured loss (nats)", "group": "the run that a row belongs to"}
_CONDITION = re.compile(r"\s*(.+?)\s*(<=|>=|==|!=|<|>)\s*(.+?)\s*")
_COMPARE = {"<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge, "==": operator.eq, "!=": operator.ne}


@dataclass(frozen=True)
class Table:
    """Rows that can be fitted: ``inputs`` (role -> values), ``loss``, ``groups`` (integer codes: rows of one run share one), ``held``
    (mask of held-out rows), ``columns`` (role -> column) and the name of the ``source``. All arrays have one entry a row."""

    inputs: Mapping[str, np.ndarray]
    loss: np.ndarray
    groups: np.ndarray
    held: np.ndarray
    columns: Mapping[str, str]
    source: str


def parse_columns(text: str) -> dict[str, str]:
    """``n=params,d=tokens`` as a mapping from role to column."""
    found = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        role, equals, column = (piece.strip() for piece in part.partition("="))
        if not equals or not column or role not in ROLES or role in found:
            raise ConfigError(f"columns {part!r}: write ROLE=COLUMN, each role once; roles are {', '.join(ROLES)}")
        found[role] = column
    return found


def read_csv(path: str | Path) -> tuple[pd.DataFrame, list[str]]:
    """A CSV file (comma, semicolon or tab) as strings, and for each row what to call it in an error: ``row 3 (line 4)``.

    Raises:
        DataError: no such file, not text, empty, no rows, two columns of one name, or a line with too many or too few fields.
    """
    path = Path(path)
    try:
        raw = path.read_bytes()
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: {getattr(error, 'strerror', None) or error}: give the path of a CSV file") from None
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not a text file in UTF-8 (byte {error.start}): export the table as CSV") from None
    if "\0" in text:
        raise DataError(f"{path} is not a text file (a zero byte at {text.index(chr(0))}): export the table as CSV")
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=_delimiter(text), skipinitialspace=True)
    lines = []
    try:
        for fields in reader:
            if any(field.strip() for field in fields):
                lines.append((reader.line_num, [field.strip() for field in fields]))
    except csv.Error as error:
        raise DataError(f"{path}, line {reader.line_num}: {error}") from None
    if not lines:
        raise DataError(f"{path} is empty: it needs a header line and one row a measurement")
    (_, names), rows = lines[0], lines[1:]
    twice = {name for name in names if names.count(name) > 1}
    if twice:
        raise DataError(f"{path}: the header has {sorted(twice)[0]!r} twice: rename one of the columns")
    for number, (line, fields) in enumerate(rows, start=1):
        if len(fields) != len(names):
            raise DataError(f"{path}: row {number} (line {line}) has {len(fields)} fields, the header has {len(names)}: mend the line")
    if not rows:
        raise DataError(f"{path} has a header and no rows: one row a measurement is needed")
    return pd.DataFrame([fields for _, fields in rows], columns=names), [
        f"row {i} (line {line})" for i, (line, _) in enumerate(rows, start=1)
    ]


def _delimiter(text: str) -> str:
    """The separator that parts the first line into most fields."""
    header = text.lstrip().split("\n", 1)[0]
    return max(",;\t", key=lambda mark: len(next(csv.reader([header], delimiter=mark), [])))


def load(
    data: pd.DataFrame | Mapping | str | Path,
    form: Form,
    columns: Mapping[str, str] | None = None,
    holdout: float | str | None = None,
    seed: int = 0,
) -> Table:
    """Read and check what ``form`` needs from ``data`` (a table, columns by name, or the path of a CSV file).

    Args:
        columns: role -> column, for roles n, d, r, u, loss and group; a role left out is looked for under its usual name
            (params, tokens, ratio, unique_tokens, loss) or the role's own.
        holdout: rows to leave out of the fit and predict: a share of them (whole groups, where there are any; drawn with ``seed``), or a
            condition on a column, such as ``"params > 1e9"`` (exactly the rows that meet it).

    Raises:
        DataError: names the row and the column of a value that cannot be.
        ConfigError: an unknown role or column, or a hold-out that cannot be.
    """
    if isinstance(data, str | Path):
        source = str(data)
        frame, rows = read_csv(data)
    else:
        source = "the table"
        try:
            frame = pd.DataFrame(data)
        except (TypeError, ValueError) as error:
            raise DataError(f"the table cannot be made of these data: {error}") from None
        if not frame.columns.is_unique:
            raise DataError(f"the table has two columns named {frame.columns[frame.columns.duplicated()][0]!r}: rename one")
        rows = [f"row {label}" for label in frame.index]
    if frame.empty:
        raise DataError(f"{source} has no rows")
    if columns is not None and not isinstance(columns, Mapping):
        raise ConfigError(f"columns {columns!r}: give a mapping from role to column, such as {{'n': 'params'}}")
    columns = dict(columns or {})
    unknown = sorted(set(columns) - set(ROLES))
    if unknown:
        raise ConfigError(f"columns: {unknown[0]!r} is no role; roles are {', '.join(ROLES)}")
    chosen = {role: _column(frame, role, columns, source) for role in (*form.inputs, "loss")}
    values = {role: _numbers(frame[column], role, column, source, rows) for role, column in chosen.items()}
    groups = np.arange(len(frame))
    if "group" in columns:
        chosen["group"] = _column(frame, "group", columns, source)
        groups = _codes(frame[chosen["group"]], chosen["group"], source, rows)
    held = _held_out(frame, holdout, groups, chosen, source, seed)
    loss = values.pop("loss")
    return Table(values, loss, groups, held, chosen, source)


def _column(frame: pd.DataFrame, role: str, columns: Mapping[str, str], source: str) -> str:
    tried = [columns[role]] if role in columns else [name for name in (COLUMNS.get(role), role) if name]
    for name in tried:
        if name in frame.columns:
            return name
    if role not in columns:  # the usual names also in another case
        alike = [column for column in frame.columns if str(column).lower() in tried]
        if len(alike) == 1:
            return alike[0]
    has = ", ".join(map(str, frame.columns))
    raise DataError(
        f"{source} has no column {tried[0]!r} for {role} ({ROLES[role]}): it has {has}; say which one with --columns {role}=NAME"
    )


def _codes(cells: pd.Series, column: str, source: str, rows: list[str]) -> np.ndarray:
    names = cells.astype(str).str.strip()
    empty = np.flatnonzero(cells.isna().to_numpy() | (names == "").to_numpy())
    if empty.size:
        raise DataError(f"{source}: {rows[empty[0]]}, column {column!r}: no value; name the run that the row belongs to, or remove the row")
    return pd.factorize(names)[0]


def _numbers(cells: pd.Series, role: str, column: str, source: str, rows: list[str]) -> np.ndarray:
    if cells.dtype.kind in "bcmM":  # booleans, complex numbers, times
        raise DataError(f"{source}: column {column!r} holds {cells.dtype} values; {ROLES[role]} is needed as plain numbers")
    numbers = pd.to_numeric(cells, errors="coerce").to_numpy(dtype=float)
    positive = role != "r"
    wrong = ~np.isfinite(numbers) | ((numbers <= 0) if positive else ((numbers < 0) | (numbers > 1)))
    if not wrong.any():
        return numbers
    at = int(np.flatnonzero(wrong)[0])
    cell, number = cells.iloc[at], numbers[at]
    if np.isfinite(number):
        what = f"{cell} is not above zero" if positive else f"{cell} does not lie between 0 and 1"
    elif str(cell).strip().lower() in ("", "nan", "none", "na", "n/a", "<na>"):
        what = "no value"
    else:
        what = f"{cell} is infinite" if np.isinf(number) else f"{str(cell)!r} is not a number"
    more = f" ({int(wrong.sum())} such rows)" if wrong.sum() > 1 else ""
    raise DataError(f"{source}: {rows[at]}, column {column!r}: {what}{more}; {ROLES[role]} is needed: mend the value or remove the row")


def _held_out(
    frame: pd.DataFrame, holdout: float | str | None, groups: np.ndarray, chosen: Mapping[str, str], source: str, seed: int
) -> np.ndarray:
    none = np.zeros(len(frame), dtype=bool)
    if holdout is None:
        return none
    try:
        share = float(holdout)
    except ValueError:
        share = None
    except TypeError:
        raise ConfigError(f"holdout {holdout!r}: give a share such as 0.2, or a condition such as 'params > 1e9'") from None
    if share is not None:
        if not 0 < share < 1:
            raise ConfigError(f"holdout {holdout}: give a share between 0 and 1, or a condition such as 'params > 1e9'")
        runs = np.unique(groups)
        order = np.random.default_rng(seed).permutation(runs)
        held = np.isin(groups, order[: max(1, round(share * len(runs)))])
    else:
        match = _CONDITION.fullmatch(str(holdout))
        column = match[1] if match and match[1] in frame.columns else chosen.get(match[1]) if match else None
        if match is None or column is None:
            has = ", ".join(map(str, frame.columns))
            raise ConfigError(f"holdout {holdout!r}: write a share such as 0.2, or COLUMN > NUMBER with a column of {source}: {has}")
        try:
            number = float(match[3])
            cells = pd.to_numeric(frame[column], errors="coerce").to_numpy(dtype=float)
        except ValueError:
            if match[2] not in ("==", "!="):
                raise ConfigError(f"holdout {holdout!r}: {match[3]!r} is not a number; text can be compared with == and != only") from None
            number, cells = match[3].strip("'\""), frame[column].astype(str).to_numpy()
        held = np.asarray(_COMPARE[match[2]](cells, number), dtype=bool)
    if held.all():
        raise ConfigError(f"holdout {holdout!r} holds every row of {source}: nothing is left to fit")
    if not held.any():
        raise ConfigError(f"holdout {holdout!r} holds no row of {source}: nothing is left to predict")
    return held
