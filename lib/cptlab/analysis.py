"""Comparisons of loss curves that several studies share.

All take the tidy ``measurements`` of :class:`cptlab.sweep.grid.Results`, one evaluation set at a time.
"""

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd

from cptlab.statistics import Estimate, lower_envelope, power_law, tokens_to_reach, zero_crossing


def equal_loss_share(reference: pd.DataFrame, candidate: pd.DataFrame, fraction: float) -> tuple[float, str]:
    """Share of the reference's tokens that the candidate needs for the same loss, where the reference has spent ``fraction`` of its budget.

    Both tables are one run's measurements (tokens, loss_nats) with the same budget. Below 1 the candidate is ahead. Returns the share and
    how it was found: ``reached``; ``at most``, where the candidate's first measurement is as low already; ``mirrored``, where it never
    gets there and is compared the other way round: its budget over the tokens at which the reference had the candidate's best loss.
    """
    reference = reference.loc[reference["tokens"] > 0].sort_values("tokens")
    candidate = candidate.loc[candidate["tokens"] > 0].sort_values("tokens")
    spent = fraction * reference["tokens"].max()
    best = np.minimum.accumulate(reference["loss_nats"].to_numpy())
    target = float(np.interp(math.log(spent), np.log(reference["tokens"]), best))
    reached = tokens_to_reach(candidate["tokens"], candidate["loss_nats"], target)
    if not math.isnan(reached):
        return reached / spent, "at most" if candidate["loss_nats"].iloc[0] <= target else "reached"
    had = tokens_to_reach(reference["tokens"], reference["loss_nats"], float(candidate["loss_nats"].min()))
    return candidate["tokens"].max() / had, "mirrored"


def equal_loss_shares(
    table: pd.DataFrame, fractions: Sequence[float], by: Sequence[str], reference: str = "scratch", candidate: str = "continual"
) -> pd.DataFrame:
    """:func:`equal_loss_share` for every pair of runs of column ``arm`` that agree on ``by`` (language, size, seed) and every fraction.

    Returns the columns ``by``, fraction, share, how, log_share (natural logarithm; what intervals are computed on).
    """
    rows = []
    for key, part in table.groupby(list(by), sort=False):
        arms = {arm: curve for arm, curve in part.groupby("arm")}
        if {reference, candidate} <= set(arms):
            for fraction in fractions:
                share, how = equal_loss_share(arms[reference], arms[candidate], fraction)
                found = {"fraction": fraction, "share": share, "how": how, "log_share": math.log(share)}
                rows.append(dict(zip(by, key, strict=True)) | found)
    return pd.DataFrame(rows, columns=[*by, "fraction", "share", "how", "log_share"])


def compute_envelope(table: pd.DataFrame, settled: float = 0.1):
    """Lower envelope of loss over compute and its power law loss = c FLOPs^-e, over all sizes of one arm.

    Curves are averaged over seeds first; points before ``settled`` of a run's budget, in or right after warm-up, are left out. One
    size (its curve is no envelope) and an envelope of fewer than three points have no law (None). Returns (points of the envelope:
    flops, loss_nats, size; :class:`cptlab.statistics.PowerLaw`).
    """
    mean = table.groupby(["size", "tokens"], sort=False, as_index=False).agg(flops=("flops", "first"), loss_nats=("loss_nats", "mean"))
    mean = mean[mean["tokens"] >= settled * mean.groupby("size")["tokens"].transform("max")]
    points = mean[lower_envelope(mean["flops"], mean["loss_nats"])].sort_values("flops")
    lawful = mean["size"].nunique() > 1 and len(points) > 2
    return points, (power_law(points["flops"], points["loss_nats"]) if lawful else None)


def sign_changes(means: pd.DataFrame, by: Sequence[str], x: str = "non_embedding") -> pd.DataFrame:
    """Where the means of each group change sign along ``x`` (parameters), for people: a row a group, in millions or in words.

    ``means`` are those of :func:`cptlab.statistics.group_means` with one row for each x; the columns ``lowest`` and ``highest`` are the
    95 % interval of the crossing (:func:`cptlab.statistics.zero_crossing`). A bound outside of what was measured is told as such, and so
    is an end whose own interval (columns ``low``, ``high``) holds zero.
    """
    rows = []
    for key, group in means.groupby(list(by), sort=False):
        found, seen = None, group[x]
        if len(group) > 1:
            found = zero_crossing(seen, group["mean"], group["se"], dof=int(group["dof"].iloc[0]))
        if found is None or found.value is None:
            first, last = (_side(group.iloc[place]) for place in (0, -1))
            where = f"{first} at the only size" if found is None else f"{first} at the smallest, {last} at the largest"
            told = {"changes_sign_at": f"nowhere: {where}"}
        else:
            bounds = [_millions(value, seen.min(), seen.max()) for value in (found.value, found.low, found.high)]
            told = dict(zip(("changes_sign_at", "lowest", "highest"), bounds, strict=True))
        rows.append(dict(zip(by, key, strict=True)) | told)
    return pd.DataFrame(rows, columns=[*by, "changes_sign_at", "lowest", "highest"]).fillna("")


def _side(row: pd.Series) -> str:
    if row["low"] <= 0 <= row["high"]:
        return "not told from zero"
    return "positive" if row["mean"] >= 0 else "negative"


def _millions(value: float, smallest: float, largest: float) -> str:
    if math.isnan(value):
        return "not known"
    if value < smallest:
        return f"below {smallest / 1e6:.2f}M"
    return f"above {largest / 1e6:.2f}M" if value > largest else f"{value / 1e6:.2f}M"


def exponential(estimate: Estimate) -> Estimate:
    """An estimate made on the logarithm, brought back: the geometric mean and its interval."""

    def back(value: float | None) -> float | None:
        return None if value is None else math.exp(value)

    return Estimate(back(estimate.value), back(estimate.low), back(estimate.high), estimate.n, estimate.dof, estimate.counts)


def one_minus(estimate: Estimate) -> Estimate:
    """One minus an estimate; the bounds change places."""
    value = None if estimate.value is None else 1 - estimate.value
    return Estimate(value, 1 - estimate.high, 1 - estimate.low, estimate.n, estimate.dof, estimate.counts)
