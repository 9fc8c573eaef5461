"""A number with its interval, as claims are decided by it and people read it."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Estimate:
    """A number with its interval: ``n`` values behind it, ``dof`` degrees of freedom behind its spread (None: spread taken as known).

    ``value`` is None where the quantity does not exist (a curve that does not cross zero); bounds are NaN where no spread is known.
    ``counts`` says what ``n`` counts (runs, pairs, documents); ``sides`` are the two means whose difference the value is.
    """

    value: float | None
    low: float
    high: float
    n: int
    dof: int | None = None
    counts: str = "values"
    sides: tuple[float, float] | None = None

    @classmethod
    def from_row(cls, row: "Mapping[str, Any] | pd.Series", counts: str = "runs") -> "Estimate":
        """The estimate in one row of ``group_means``; ``counts`` says what its groups hold."""
        return cls(float(row["mean"]), float(row["low"]), float(row["high"]), int(row["n"]), int(row["dof"]), counts)

    @property
    def number(self) -> str:
        """Value and interval, three digits of the largest of them: ``0.076 [0.069, 0.083]``; the two sides of a difference after it."""
        if self.value is None:
            return "none"
        bounds = [] if math.isnan(self.low) or math.isnan(self.high) else [self.low, self.high]
        finite = [abs(x) for x in (self.value, *bounds) if math.isfinite(x)]
        most = _places(max(finite, default=0.0))
        places = min(max(most, *(_places(x) - 2 for x in finite if x)), most + 2) if any(finite) else most  # a small bound is not 0.0
        text = f"{self.value:,.{places}f}" + (f" [{bounds[0]:,.{places}f}, {bounds[1]:,.{places}f}]" if bounds else " (no interval)")
        text = text.replace("-", "−")
        if self.sides is None:
            return text
        places = max(places, _places(max(map(abs, self.sides))))
        return f"{text} = {self.sides[0]:,.{places}f} − {self.sides[1]:,.{places}f}"

    @property
    def count(self) -> str:
        """How many of what: ``13 pairs``."""
        return f"{self.n:,} {self.counts if self.n != 1 else self.counts.removesuffix('s')}"

    def __str__(self) -> str:
        return f"{self.number} ({self.count})"


def _places(size: float) -> int:
    """Decimals that show three digits of a number of this size."""
    return min(max(0, 2 - math.floor(math.log10(size))), 8) if size > 0 else 2
