"""Numbers that the reproduced works print, as tables with their sources; digits as printed, so that their rounding can be studied."""

import csv
import warnings
from collections.abc import Callable, Mapping
from decimal import Decimal, InvalidOperation
from importlib import resources

import numpy as np
import pandas as pd
import yaml

from cptlab.errors import ConfigError
from cptlab.statistics import Estimate


def names() -> list[str]:
    """All tables."""
    return list(_sources())


def source(name: str) -> dict:
    """Where table ``name`` comes from: work, arxiv, place, and where there are any note and facts (single numbers of the same place)."""
    found = _sources()
    if name not in found:
        raise ConfigError(f"no published table {name!r}: there are {', '.join(found)}")
    return found[name]


def printed(name: str) -> pd.DataFrame:
    """Table ``name`` as strings, exactly as printed; an empty cell is an empty string."""
    source(name)
    with resources.files(__name__).joinpath(f"{name}.csv").open(encoding="utf-8", newline="") as stream:
        return pd.DataFrame(list(csv.DictReader(stream)))


def table(name: str) -> pd.DataFrame:
    """Table ``name`` with numbers where a whole column is numbers; an empty cell is NaN."""
    frame = printed(name).replace("", None)
    for column in frame:
        numbers = pd.to_numeric(frame[column], errors="coerce")
        if (numbers.notna() == frame[column].notna()).all():
            frame[column] = numbers
    return frame


def half_unit(text: str) -> float:
    """Half a unit of the last printed digit: 0.05 for ``420.0``. What was rounded lies within this of what is printed."""
    try:
        return 0.5 * 10.0 ** Decimal(text).as_tuple().exponent
    except (InvalidOperation, TypeError):
        raise ConfigError(f"{text!r} is not a printed number") from None


def rounding_box(values: Mapping[str, str], draws: int, seed: int = 0) -> dict[str, np.ndarray]:
    """``draws`` uniform draws of all numbers that would have been printed as ``values``, by name, each of shape (draws,)."""
    if draws < 1:
        raise ConfigError(f"draws = {draws}: give a whole number of at least 1, such as 20000")
    generator = np.random.default_rng(seed)
    return {name: float(text) + half_unit(text) * generator.uniform(-1, 1, draws) for name, text in values.items()}


def propagate(function: Callable[[dict], np.ndarray], values: Mapping[str, str], draws: int = 20000, seed: int = 0) -> Estimate:
    """What ``function`` makes of printed numbers, and the middle 95 % of what it makes of all numbers that round to them.

    It gets a mapping of floats, or of arrays of ``draws`` entries, and returns a number, or as many. NaN draws are left out
    with a warning.
    """
    value = float(function({name: np.float64(text) for name, text in values.items()}))
    found = np.asarray(function(rounding_box(values, draws, seed)), dtype=float)
    if np.isnan(found).any():
        warnings.warn(f"{np.isnan(found).mean():.0%} of the draws give no value (NaN) and are left out", stacklevel=2)
    low, high = np.nanpercentile(found, [2.5, 97.5])
    return Estimate(value, float(low), float(high), len(values))


def _sources() -> dict[str, dict]:
    return yaml.safe_load(resources.files(__name__).joinpath("sources.yaml").read_text(encoding="utf-8"))
