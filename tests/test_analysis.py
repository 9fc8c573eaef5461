"""Comparisons of curves against values worked out by hand."""

import math

import numpy as np
import pandas as pd
import pytest

from cptlab.analysis import compute_envelope, equal_loss_share, equal_loss_shares, exponential, one_minus, sign_changes
from cptlab.statistics import Estimate

TOKENS = np.array([0, 10, 100, 1000, 10_000])


def curve(offset: float) -> pd.DataFrame:
    """Loss falls by 1 a factor of ten in tokens; ``offset`` shifts it along the tokens."""
    return pd.DataFrame({"tokens": TOKENS, "loss_nats": [9.0, *(5 - np.log10(TOKENS[1:]) + offset)]})


@pytest.mark.parametrize("fraction", [0.1, 1.0])
def test_a_candidate_ten_times_ahead_needs_a_tenth(fraction):
    assert equal_loss_share(curve(0), curve(-1), fraction) == (pytest.approx(0.1), "reached")
    assert equal_loss_share(curve(0), curve(0), fraction) == (pytest.approx(1.0), "reached")


def test_a_candidate_that_was_there_at_once_needs_at_most_its_first_tokens():
    assert equal_loss_share(curve(0), curve(-5).query("tokens >= 10"), 0.1) == (pytest.approx(0.01), "at most")


def test_a_candidate_that_never_gets_there_is_compared_the_other_way_round():
    # Its best loss, 1.5, is the reference's at 10^3.5 tokens: it needed 10^4 for what the reference had after 3162.
    assert equal_loss_share(curve(0), curve(0.5), 1.0) == (pytest.approx(10**0.5), "mirrored")


def test_shares_pair_arms_and_skip_what_has_no_partner():
    table = pd.concat(
        [curve(0).assign(arm="scratch", seed=0), curve(-1).assign(arm="continual", seed=0), curve(0).assign(arm="scratch", seed=1)]
    )
    shares = equal_loss_shares(table.assign(size="s"), [0.5, 1.0], ["size", "seed"])
    assert shares[["size", "seed", "fraction"]].values.tolist() == [["s", 0, 0.5], ["s", 0, 1.0]]
    assert shares["share"].tolist() == pytest.approx([0.1, 0.1]) and np.allclose(np.exp(shares["log_share"]), shares["share"])


def test_the_envelope_of_a_known_power_law_is_found():
    flops = np.logspace(3, 6, 20)
    table = pd.DataFrame({"size": "a", "tokens": flops, "flops": flops, "loss_nats": 7 * flops**-0.1, "seed": 0})
    worse = table.assign(size="b", loss_nats=table["loss_nats"] + 1)
    points, law = compute_envelope(pd.concat([table, worse]), settled=0.0)
    assert set(points["size"]) == {"a"} and len(points) == 20
    assert law.exponent == pytest.approx(0.1) and law.coefficient == pytest.approx(7)
    settled, _ = compute_envelope(table, settled=0.1)
    assert settled["tokens"].min() >= 1e5
    assert compute_envelope(pd.concat([table.head(1), worse.head(1)]), settled=0.0)[1] is None
    assert compute_envelope(table, settled=0.0)[1] is None  # one size: its curve is no envelope


def test_sign_changes_are_told_in_words():
    table = pd.DataFrame(
        [("up", 1e5, -0.1), ("up", 1e6, 0.1), ("never", 1e5, 0.1), ("never", 1e6, 0.2), ("alone", 1e5, -0.1)],
        columns=["curve", "non_embedding", "mean"],
    )
    table = table.assign(low=table["mean"] - 0.01, high=table["mean"] + 0.01)
    told = sign_changes(table.assign(se=0.001, dof=4), ["curve"]).set_index("curve")
    assert told.loc["up"].tolist() == ["0.32M", "0.31M", "0.32M"]
    assert told.loc["never", "changes_sign_at"] == "nowhere: positive at the smallest, positive at the largest"
    assert told.loc["alone"].tolist() == ["nowhere: negative at the only size", "", ""]
    unsure = sign_changes(table.assign(se=0.05, dof=4, low=-1.0), ["curve"]).set_index("curve")
    assert unsure.loc["never", "changes_sign_at"] == "nowhere: not told from zero at the smallest, not told from zero at the largest"
    assert sign_changes(table.assign(se=0.5, dof=4), ["curve"])["lowest"].iloc[0] == "below 0.10M"
    assert sign_changes(table.assign(se=math.nan, dof=0), ["curve"])["highest"].iloc[0] == "not known"  # one seed


def test_transformed_estimates_keep_their_order():
    back = exponential(Estimate(math.log(0.5), math.log(0.4), math.log(0.6), 3, 2))
    assert (back.value, back.low, back.high) == pytest.approx((0.5, 0.4, 0.6))
    saved = one_minus(back)
    assert (saved.value, saved.low, saved.high) == pytest.approx((0.5, 0.4, 0.6))
    assert exponential(Estimate(None, math.nan, math.nan, 0)).value is None
