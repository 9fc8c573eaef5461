"""Small-sample statistics over seeds: pooled spread, t intervals, paired differences, power laws, crossings.

Losses are nats a token, x axes are whatever the caller plots (tokens, flops, parameters). A value that is NaN or infinite is an
error that names the column: a run that failed has to be left out on purpose, never by accident.
"""

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from cptlab.errors import ConfigError
from cptlab.estimate import Estimate as Estimate  # also by this name, for notebooks


@dataclass(frozen=True)
class PowerLaw:
    """y = coefficient * x ** -exponent, with the t interval of the exponent and the root mean square residual of log y."""

    coefficient: float
    exponent: float
    exponent_low: float
    exponent_high: float
    residual_log_rms: float
    n: int

    def __call__(self, x: ArrayLike) -> np.ndarray:
        """The law's y at ``x``, same shape."""
        return self.coefficient * np.asarray(x, dtype=float) ** -self.exponent

    @property
    def estimate(self) -> Estimate:
        """The exponent as an Estimate, for a claim."""
        return Estimate(self.exponent, self.exponent_low, self.exponent_high, self.n, max(self.n - 2, 0), "points")


def _numbers(values: ArrayLike, name: str, positive: bool = False) -> np.ndarray:
    array = np.asarray(values, dtype=float)
    if array.ndim != 1 or array.size == 0:
        raise ConfigError(f"{name}: expected a list of numbers with at least one entry, got shape {array.shape}")
    wrong = np.flatnonzero(~np.isfinite(array) | ((array <= 0) if positive else False))
    if wrong.size:
        kind = "positive and finite" if positive else "finite"
        raise ConfigError(
            f"{name}: entry {wrong[0]} is {array[wrong[0]]}, not {kind}; leave failed runs out ({wrong.size} of {array.size})"
        )
    return array


def _same_length(**arrays: np.ndarray) -> None:
    lengths = {name: len(array) for name, array in arrays.items()}
    if len(set(lengths.values())) > 1:
        raise ConfigError("lengths differ: " + ", ".join(f"{name} has {length}" for name, length in lengths.items()))


def _columns(frame: pd.DataFrame, *names: str) -> None:
    missing = [name for name in names if name not in frame.columns]
    if missing:
        raise ConfigError(f"no column {missing[0]!r} in the table; it has {', '.join(map(str, frame.columns))}")


def _listed(names: str | Sequence[str]) -> list[str]:
    return [names] if isinstance(names, str) else list(names)


def t_quantile(confidence: float, dof: int) -> float:
    """Half width of the two-sided t interval in standard errors; NaN without degrees of freedom."""
    if not 0 < confidence < 1:
        raise ConfigError(f"confidence must lie between 0 and 1, got {confidence}")
    from scipy.special import stdtrit  # scipy.stats has the same quantile but takes ten times as long to import

    return float(stdtrit(dof, (1 + confidence) / 2)) if dof > 0 else math.nan


def proportion(successes: int, trials: int, confidence: float = 0.95, counts: str = "trials") -> Estimate:
    """A share with its score interval (Wilson 1927), which stays within 0 and 1 also when none or all succeed; ``counts``: what was tried.

    Raises:
        ConfigError: no trials, or more successes than trials.
    """
    from scipy.stats import binomtest

    if not 0 <= successes <= trials or trials < 1:
        raise ConfigError(f"{successes} successes of {trials} trials: give at least one trial and no more successes than trials")
    interval = binomtest(int(successes), int(trials)).proportion_ci(confidence, method="wilson")
    return Estimate(successes / trials, float(interval.low), float(interval.high), int(trials), counts=counts)


def pooled_sd(values: ArrayLike, groups: ArrayLike | pd.DataFrame) -> tuple[float, int]:
    """Standard deviation within groups, pooled over them: sqrt(sum of squares within / dof), dof = values - groups.

    ``values`` is 1-D; ``groups`` holds one label a value, or is a table with one row a value, each distinct row being a group.
    Returns (NaN, 0) when no group has two values.
    """
    array = _numbers(values, "values")
    labels = groups if isinstance(groups, pd.DataFrame) else pd.DataFrame({"group": np.asarray(groups)})
    _same_length(values=array, groups=labels)
    codes = labels.groupby(list(labels.columns), sort=False, dropna=False).ngroup().to_numpy()
    counts = np.bincount(codes)
    means = np.bincount(codes, weights=array) / counts
    dof = int(array.size - counts.size)
    return (math.sqrt(float(np.sum((array - means[codes]) ** 2)) / dof), dof) if dof > 0 else (math.nan, 0)


def group_means(
    frame: pd.DataFrame,
    value: str,
    by: str | Sequence[str],
    confidence: float = 0.95,
    *,
    strata: str | Sequence[str] = (),
    pooled: tuple[float, int] | None = None,
) -> pd.DataFrame:
    """Mean of ``value`` in each group of ``by``, with the t interval from the pooled standard deviation (also for a group of one).

    The spread is pooled over all groups, or apart for each value of ``strata`` (some of ``by``): name there a column along which the
    rows of ONE run differ, as ``tokens`` of a curve, for such rows are not independent and would inflate the degrees of freedom.
    ``pooled`` = (sd, dof) replaces it by one estimated elsewhere. Returns the columns ``by``, mean, low, high, se, sd, n, dof; groups
    in order of first appearance; bounds are NaN without degrees of freedom.
    """
    by, strata = _listed(by), _listed(strata)
    _columns(frame, value, *by)
    if not set(strata) <= set(by):
        raise ConfigError(f"strata {strata} must be among the columns of by {by}")
    _numbers(frame[value], f"column {value!r}")
    grouped = frame.groupby(by, sort=False, dropna=False, observed=True)[value]
    result = grouped.agg(mean="mean", n="count").reset_index()
    if pooled is not None:
        result["sd"], result["dof"] = pooled
    elif strata:
        rows = frame.groupby(strata, sort=False, dropna=False, observed=True)
        spreads = [(*pooled_sd(part[value], part[by]), part) for _, part in rows]
        spread = pd.concat([part[strata].iloc[:1].assign(sd=sd, dof=dof) for sd, dof, part in spreads])
        result = result.merge(spread, on=strata, how="left")
    else:
        result["sd"], result["dof"] = pooled_sd(frame[value], frame[by])
    result["se"] = result["sd"] / np.sqrt(result["n"])
    widths = {dof: t_quantile(confidence, dof) for dof in result["dof"].unique()}
    half = result["se"] * result["dof"].map(widths)
    result["low"], result["high"] = result["mean"] - half, result["mean"] + half
    return result[[*by, "mean", "low", "high", "se", "sd", "n", "dof"]]


def mean_of_groups(
    frame: pd.DataFrame,
    value: str,
    by: str | Sequence[str] = (),
    confidence: float = 0.95,
    *,
    pooled: tuple[float, int] | None = None,
    counts: str | None = None,
) -> Estimate:
    """Average of the group means, each group counting the same: standard error sd * sqrt(sum over groups of 1 / n) / groups.

    Without ``by`` all rows are one group. Of the ``difference`` of :func:`paired_difference` the estimate tells both sides, and counts
    pairs; ``counts`` says what the rows of another table are (default: runs).
    """
    differences = value == "difference" and {"of", "minus"} <= set(frame.columns)
    if not _listed(by):
        frame, by = frame.assign(_all=0), "_all"
    means = group_means(frame, value, by, confidence, pooled=pooled)
    sd, dof = float(means["sd"].iloc[0]), int(means["dof"].iloc[0])
    centre = float(means["mean"].mean())
    half = t_quantile(confidence, dof) * sd * math.sqrt(float((1 / means["n"]).sum())) / len(means)
    sides = None
    if differences:
        sides = tuple(float(frame.groupby(_listed(by), sort=False, dropna=False)[side].mean().mean()) for side in ("of", "minus"))
    counts = counts or ("pairs" if differences else "runs")
    return Estimate(centre, centre - half, centre + half, int(means["n"].sum()), dof, counts, sides)


def smallest_mean(
    frame: pd.DataFrame, value: str, by: str, confidence: float = 0.95, *, pooled: tuple[float, int] | None = None
) -> Estimate:
    """The smallest of the groups' means, with an interval that knows that it was picked: every group has its own, the smallest lower
    bound is the lower one, and the smallest upper bound, at a level corrected for the number of groups (Bonferroni), the upper one.

    Args:
        pooled: a spread for all groups, from :func:`pooled_sd`; None: each has its own.
    """
    parts = [part for _, part in frame.groupby(by, sort=False)]
    each = [mean_of_groups(part, value, (), confidence, pooled=pooled) for part in parts]
    corrected = 1 - (1 - confidence) / len(parts)
    strict = [mean_of_groups(part, value, (), corrected, pooled=pooled) for part in parts]
    low, high = min(one.low for one in each), min(one.high for one in strict)
    return replace(min(each, key=lambda one: one.value), low=low, high=high, n=sum(one.n for one in each))


def paired_difference(
    frame: pd.DataFrame,
    value: str,
    arm: str,
    *,
    of: Any,
    minus: Any,
    pair_by: str | Sequence[str],
    group_by: str | Sequence[str] = (),
) -> pd.DataFrame:
    """Differences of ``value``: arm ``of`` minus arm ``minus`` of column ``arm``, paired on ``pair_by`` (seed) inside each ``group_by``.

    A loss that an arm lowers has a positive difference when the arm is ``minus``: the gain of continuing is scratch minus continual.
    Returns the columns group_by (size, ...), pair_by, of, minus, difference, in the order of ``of``'s rows. Two rows for one pair and arm
    are an error; a row without its partner is left out with one warning that names the pairs. Where the table has a column ``compute``
    (what a run's matrices were multiplied in) and the sides of some pairs differ in it, a warning says so, and the result has a column
    ``compute``, too: the type, or those of both sides ("bf16, fp32").
    """
    keys = [*_listed(group_by), *_listed(pair_by)]
    _columns(frame, value, arm, *keys)
    told = ["compute"] if "compute" in frame.columns and "compute" not in (*keys, arm, value) else []
    sides = []
    for name, label in (("of", of), ("minus", minus)):
        side = frame.loc[frame[arm] == label, [*keys, value, *told]].rename(columns={value: name})
        if side.empty:
            raise ConfigError(f"column {arm!r} has no {label!r}; it has {', '.join(map(str, frame[arm].unique()))}")
        _numbers(side[name], f"column {value!r} of {arm} {label!r}")
        if side.duplicated(keys).any():
            first = side.loc[side.duplicated(keys), keys].iloc[0].to_dict()
            raise ConfigError(f"{arm} {label!r} has several rows for {first}; name the columns that tell them apart in group_by or pair_by")
        sides.append(side)
    both = sides[0].merge(sides[1], on=keys, how="outer", indicator=True, sort=False)
    alone = both[both["_merge"] != "both"]
    if len(alone):
        names = "; ".join(str(row) for row in alone[keys].to_dict("records"))
        warnings.warn(f"left out, without a partner in {of!r} or {minus!r}: {names}", stacklevel=2)
    paired = sides[0].merge(sides[1], on=keys, how="inner", sort=False)
    table = paired[[*keys, "of", "minus"]].assign(difference=paired["of"] - paired["minus"])
    if told and (differ := paired["compute_x"].astype(str) != paired["compute_y"].astype(str)).any():
        both = paired["compute_x"].astype(str) + ", " + paired["compute_y"].astype(str)
        table["compute"] = paired["compute_x"].where(~differ, both)
        warnings.warn(
            f"{differ.sum()} of {len(paired)} pairs of {of!r} and {minus!r} were computed in different types "
            f"({'; '.join(both[differ].unique())}): part of their difference may be rounding; train both with the same execution.compute",
            stacklevel=2,
        )
    return table


def power_law(x: ArrayLike, y: ArrayLike, confidence: float = 0.95) -> PowerLaw:
    """Fit log y = log c - e log x by least squares; the exponent's t interval has n - 2 degrees of freedom (NaN for two points)."""
    x, y = _numbers(x, "x", positive=True), _numbers(y, "y", positive=True)
    _same_length(x=x, y=y)
    u, v = np.log(x), np.log(y)
    spread = float(np.sum((u - u.mean()) ** 2))
    if not spread > 0:
        raise ConfigError("power_law needs at least two different x")
    slope = float(np.sum((u - u.mean()) * (v - v.mean()))) / spread
    residual = v - v.mean() - slope * (u - u.mean())
    dof = len(x) - 2
    half = t_quantile(confidence, dof) * math.sqrt(float(residual @ residual) / dof / spread) if dof > 0 else math.nan
    rms = math.sqrt(float(np.mean(residual**2)))
    return PowerLaw(math.exp(float(v.mean() - slope * u.mean())), -slope, -slope - half, -slope + half, rms, len(x))


def lower_envelope(x: ArrayLike, y: ArrayLike) -> np.ndarray:
    """Mask (bool, same length) of the points that no other beats: none has x at most as large and y smaller."""
    x, y = _numbers(x, "x"), _numbers(y, "y")
    _same_length(x=x, y=y)
    order = np.lexsort((y, x))
    mask = np.empty(len(x), dtype=bool)
    mask[order] = y[order] <= np.minimum.accumulate(y[order])
    return mask


def _crossing(log_x: np.ndarray, y: np.ndarray, rising: bool) -> float:
    """Log x of the net change of sign, halfway between the first and the last one; -inf or inf when it lies before or after the range."""
    up = y >= 0
    if up[0] == rising:  # the later sign holds from the start
        return -math.inf
    if up[-1] != rising:
        return math.inf
    at = np.flatnonzero(up[1:] != up[:-1])[[0, -1]]
    places = log_x[at] + y[at] / (y[at] - y[at + 1]) * (log_x[at + 1] - log_x[at])
    return float(places.mean())


def zero_crossing(
    x: ArrayLike, y: ArrayLike, sd: ArrayLike, *, dof: int | None = None, confidence: float = 0.95, draws: int = 4000, seed: int = 0
) -> Estimate:
    """The x where y, drawn as straight lines over log x, changes sign between the smallest x and the largest.

    ``sd`` is the standard error of each y (or one for all), ``dof`` the degrees of freedom of the pooled spread behind it (None: known).
    The interval holds the middle ``confidence`` of a seeded parametric bootstrap; a draw whose sign changes before or after the range
    counts there, so a bound may be 0 or inf. With several changes the one reported is halfway (in log x) between the first and the
    last. When the ends have the same sign there is no crossing: value None, bounds NaN.
    """
    x, y = _numbers(x, "x", positive=True), _numbers(y, "y")
    _same_length(x=x, y=y)
    sd = np.broadcast_to(np.asarray(sd, dtype=float), x.shape)
    order = np.argsort(x)
    log_x, y, sd = np.log(x[order]), y[order], sd[order]
    if np.any(np.diff(log_x) == 0):
        raise ConfigError("zero_crossing needs one y for each x; average over seeds first")
    if np.any(sd < 0):
        raise ConfigError("zero_crossing: sd has a negative entry")
    if (y[0] >= 0) == (y[-1] >= 0):
        return Estimate(None, math.nan, math.nan, len(x), dof)
    rising = bool(y[-1] >= 0)
    value = math.exp(_crossing(log_x, y, rising))
    if not np.all(np.isfinite(sd)) or dof == 0:  # one seed a group: the spread is not known
        return Estimate(value, math.nan, math.nan, len(x), dof)
    generator = np.random.default_rng(seed)
    noise = generator.standard_normal((draws, len(x))) * sd
    if dof is not None:  # the same pooled spread stands behind every point: one chi-square a draw
        noise *= np.sqrt(dof / generator.chisquare(dof, (draws, 1)))
    places = np.sort([_crossing(log_x, y + row, rising) for row in noise])
    tail = (1 - confidence) / 2
    # Order statistics, not interpolated quantiles: places may be infinite.
    low, high = places[int(tail * draws)], places[math.ceil((1 - tail) * draws) - 1]
    return Estimate(value, math.exp(low), math.exp(high), len(x), dof)


def tokens_to_reach(tokens: ArrayLike, loss: ArrayLike, target: float) -> float:
    """Tokens at which the best loss so far first reaches ``target`` (nats), straight in log tokens between measured points; NaN if never.

    A curve that starts at or below the target gives its first token count, which is then an upper bound.
    """
    tokens, loss = _numbers(tokens, "tokens"), _numbers(loss, "loss")
    _same_length(tokens=tokens, loss=loss)
    if np.any(tokens < 0):
        raise ConfigError("tokens_to_reach: tokens has a negative entry")
    order = np.lexsort((loss, tokens))
    tokens, best = tokens[order], np.minimum.accumulate(loss[order])
    reached = np.flatnonzero(best <= target)
    if not reached.size:
        return math.nan
    after = int(reached[0])
    if after == 0 or tokens[after] == tokens[after - 1]:
        return float(tokens[after])
    before = after - 1
    share = float((best[before] - target) / (best[before] - best[after]))
    if tokens[before] == 0:  # the measurement before any training has no logarithm
        return share * float(tokens[after])
    return float(tokens[before] * (tokens[after] / tokens[before]) ** share)
