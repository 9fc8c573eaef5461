"""What the commands print: tables, counts, JSON."""

import json
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def print_json(value: Any) -> None:
    print(json.dumps(value, indent=1, ensure_ascii=False, default=str))


def records(frame: "pd.DataFrame") -> list[dict]:
    """Rows as plain JSON values; what is not a number becomes null."""
    return json.loads(frame.to_json(orient="records", double_precision=15))


def human(value: Any) -> str:
    """A count in three figures: 4.00M, 12.3k; empty when unknown."""
    if value is None or value != value:
        return ""
    for limit, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= limit:
            return f"{value / limit:.3g}{unit}"
    return f"{value:.3g}"


def table(frame: "pd.DataFrame") -> str:
    formats = {"tokens": human, "bytes": human, "bytes_left": human, "flops": lambda v: f"{v:.2e}", "minutes": lambda v: f"{v:.1f}"}
    formats |= {"seconds": lambda v: f"{v:.1f}", "bytes_per_token": lambda v: f"{v:.2f}"}
    return frame.to_string(index=False, na_rep="", formatters={k: v for k, v in formats.items() if k in frame})
