"""Statistics against hand-computed values and scipy's own."""

import math
import subprocess
import sys
import warnings

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from cptlab.errors import ConfigError
from cptlab.statistics import (
    Estimate,
    group_means,
    lower_envelope,
    mean_of_groups,
    paired_difference,
    pooled_sd,
    power_law,
    smallest_mean,
    tokens_to_reach,
    zero_crossing,
)


@pytest.fixture
def seeds() -> pd.DataFrame:
    rows = [("s", 1, 1.0), ("s", 2, 2.0), ("s", 3, 3.0), ("m", 1, 5.0), ("m", 2, 7.0), ("l", 1, 4.0)]
    return pd.DataFrame(rows, columns=["size", "seed", "loss"])


def test_pooled_sd_by_hand(seeds):
    # Sums of squares 2 (s), 2 (m), 0 (l); dof 2 + 1 + 0.
    sd, dof = pooled_sd(seeds["loss"], seeds["size"])
    assert (sd, dof) == (pytest.approx(math.sqrt(4 / 3)), 3)
    assert pooled_sd(seeds["loss"], seeds[["size"]]) == (sd, dof)
    assert pooled_sd([1.0, 2.0], ["a", "a"])[0] == pytest.approx(math.sqrt(0.5))


def test_pooled_sd_two_equal_groups_is_the_t_test_denominator():
    rng = np.random.default_rng(0)
    a, b = rng.normal(0, 1, 6), rng.normal(1, 1, 9)
    sd, dof = pooled_sd(np.concatenate([a, b]), ["a"] * 6 + ["b"] * 9)
    reference = stats.ttest_ind(a, b)
    assert dof == reference.df
    assert (a.mean() - b.mean()) / (sd * math.sqrt(1 / 6 + 1 / 9)) == pytest.approx(reference.statistic)


def test_pooled_sd_without_repeats_is_unknown():
    sd, dof = pooled_sd([1.0, 2.0], ["a", "b"])
    assert math.isnan(sd) and dof == 0


def test_group_means_uses_the_pooled_spread_for_a_group_of_one(seeds):
    table = group_means(seeds, "loss", "size").set_index("size")
    assert list(table.index) == ["s", "m", "l"]
    assert table["mean"].to_list() == [2.0, 6.0, 4.0]
    half = stats.t.ppf(0.975, 3) * math.sqrt(4 / 3)
    assert table.loc["l", "high"] - 4.0 == pytest.approx(half)
    assert table.loc["s", "high"] - 2.0 == pytest.approx(half / math.sqrt(3))
    assert Estimate.from_row(table.loc["m"]).n == 2


def test_group_means_of_one_group_is_the_one_sample_interval():
    values = np.array([1.0, 1.5, 2.5, 2.0])
    row = group_means(pd.DataFrame({"g": 1, "v": values}), "v", ["g"], confidence=0.9).iloc[0]
    low, high = stats.t.interval(0.9, 3, loc=values.mean(), scale=stats.sem(values))
    assert (row["low"], row["high"]) == (pytest.approx(low), pytest.approx(high))


def test_strata_keep_rows_of_one_run_apart():
    rows = [(arm, tokens, seed, arm + seed * tokens) for arm in (0, 1) for tokens in (1, 10) for seed in (0.0, 1.0)]
    frame = pd.DataFrame(rows, columns=["arm", "tokens", "seed", "loss"])
    table = group_means(frame, "loss", ["arm", "tokens"], strata="tokens").set_index(["arm", "tokens"])
    assert set(table["dof"]) == {2}
    assert table.loc[(0, 1), "sd"] == pytest.approx(math.sqrt(0.5))
    assert table.loc[(1, 10), "sd"] == pytest.approx(math.sqrt(50))
    with pytest.raises(ConfigError, match="strata"):
        group_means(frame, "loss", ["arm"], strata="tokens")


def test_one_seed_everywhere_gives_means_without_intervals(seeds):
    one = seeds[seeds["seed"] == 1]
    table = group_means(one, "loss", "size")
    assert table["mean"].to_list() == [1.0, 5.0, 4.0]
    assert table["low"].isna().all() and table["high"].isna().all()
    assert "no interval" in str(mean_of_groups(one, "loss", "size"))
    given = group_means(one, "loss", "size", pooled=(0.5, 10))
    assert given["high"].iloc[0] == pytest.approx(1.0 + stats.t.ppf(0.975, 10) * 0.5)


def test_mean_of_groups_by_hand(seeds):
    estimate = mean_of_groups(seeds, "loss", "size")
    assert estimate.value == pytest.approx(4.0)
    half = stats.t.ppf(0.975, 3) * math.sqrt(4 / 3) * math.sqrt(1 / 3 + 1 / 2 + 1) / 3
    assert (estimate.low, estimate.high) == (pytest.approx(4 - half), pytest.approx(4 + half))
    assert (estimate.n, estimate.dof) == (6, 3)
    assert str(estimate) == f"4.00 [{4 - half:.2f}, {4 + half:.2f}] (6 runs)"


def test_missing_values_are_errors_that_name_the_column(seeds):
    seeds.loc[2, "loss"] = math.nan
    with pytest.raises(ConfigError, match=r"column 'loss'.*entry 2"):
        group_means(seeds, "loss", "size")
    with pytest.raises(ConfigError, match="no column 'sizes'.*size, seed, loss"):
        group_means(seeds, "loss", "sizes")


def test_paired_difference_pairs_by_seed_and_group():
    rows = [("scratch", 1, 0, 3.0), ("continual", 1, 0, 2.5), ("scratch", 1, 1, 3.2), ("continual", 1, 1, 2.9), ("continual", 2, 0, 1.0)]
    frame = pd.DataFrame(rows, columns=["arm", "size", "seed", "loss"])
    with pytest.warns(UserWarning, match="'size': 2, 'seed': 0") as caught:
        table = paired_difference(frame, "loss", "arm", of="scratch", minus="continual", pair_by="seed", group_by="size")
    assert len(caught) == 1
    assert table[["size", "seed"]].to_numpy().tolist() == [[1, 0], [1, 1]]
    assert table["difference"].to_list() == pytest.approx([0.5, 0.3])  # scratch minus continual, as the words say
    gain = mean_of_groups(table, "difference")
    assert gain.sides == (pytest.approx(3.1), pytest.approx(2.7)) and gain.value == pytest.approx(0.4)
    assert str(gain).startswith("0.40 [−") and str(gain).endswith("= 3.10 − 2.70 (2 pairs)")
    assert mean_of_groups(frame, "loss", "arm").counts == "runs" and mean_of_groups(frame, "loss", "arm").sides is None
    with pytest.raises(TypeError):
        paired_difference(frame, "loss", "arm", "scratch", "continual", "seed")  # which is subtracted from which has to be said
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        paired_difference(frame[frame["size"] == 1], "loss", "arm", of="scratch", minus="continual", pair_by="seed", group_by="size")
    with pytest.raises(ConfigError, match="several rows"):
        paired_difference(pd.concat([frame, frame]), "loss", "arm", of="scratch", minus="continual", pair_by="seed", group_by="size")
    with pytest.raises(ConfigError, match="no 'replay'; it has scratch, continual"):
        paired_difference(frame, "loss", "arm", of="scratch", minus="replay", pair_by="seed", group_by="size")


def test_power_law_recovers_an_exact_one_and_its_interval_is_linregress():
    x = np.array([1e12, 1e13, 1e14, 3e15])
    exact = power_law(x, 33.7 * x**-0.0579)
    assert exact.coefficient == pytest.approx(33.7) and exact.exponent == pytest.approx(0.0579)
    assert exact.residual_log_rms < 1e-12
    assert exact(1e20) == pytest.approx(33.7 * 1e20**-0.0579)
    y = 2 * x**-0.1 * np.array([1.01, 0.99, 1.02, 0.98])
    law, reference = power_law(x, y), stats.linregress(np.log(x), np.log(y))
    assert law.exponent == pytest.approx(-reference.slope)
    assert law.exponent_high - law.exponent == pytest.approx(stats.t.ppf(0.975, 2) * reference.stderr)
    assert law.estimate.dof == 2
    assert math.isnan(power_law([1, 2], [2, 1]).exponent_low)
    with pytest.raises(ConfigError, match="y: entry 1"):
        power_law([1, 2], [1, 0])
    with pytest.raises(ConfigError, match="two different x"):
        power_law([2, 2], [1, 3])


def test_lower_envelope_drops_what_another_point_beats():
    x, y = [3, 1, 2, 2, 4, 5], [2.0, 5.0, 3.0, 3.5, 2.5, 1.0]
    assert lower_envelope(x, y).tolist() == [True, True, True, False, False, True]


def test_zero_crossing_is_linear_in_log_x():
    exact = zero_crossing([100, 1, 10], [1.0, -1.0, -0.5], 0.0)
    assert exact.value == pytest.approx(10 ** (1 + 1 / 3))
    assert exact.low == pytest.approx(exact.value) == exact.high
    assert zero_crossing([1, 100], [-1, 1], 0.0).value == pytest.approx(10)
    assert zero_crossing([1, 100], [1, -1], 0.0).value == pytest.approx(10)


def test_zero_crossing_interval_matches_theory_and_is_repeatable():
    # The ends lie far from zero; the crossing sits on one segment, from -1 to 1 over a decade, halfway: its place in decades
    # has a standard deviation near 0.1 * sqrt(1 / 2) / 2.
    x, y = [1, 10, 100, 1000], [-5, -1, 1, 5]
    result = zero_crossing(x, y, 0.1, draws=20000)
    assert result == zero_crossing(x, y, [0.1] * 4, draws=20000)
    half = (math.log10(result.high) - math.log10(result.low)) / 2
    assert half == pytest.approx(1.96 * 0.1 * math.sqrt(0.5) / 2, rel=0.05)
    wide = zero_crossing(x, y, 0.1, dof=3, draws=20000)
    assert math.log10(wide.high / wide.low) / math.log10(result.high / result.low) == pytest.approx(stats.t.ppf(0.975, 3) / 1.96, rel=0.1)


def test_zero_crossing_that_noise_can_move_out_of_range_has_open_bounds():
    result = zero_crossing([1, 10, 100], [-1.0, -0.8, 0.05], 0.1)
    assert result.value < 100 and result.high == math.inf and result.low > 10


def test_an_estimate_reads_at_a_glance():
    nan = math.nan
    for estimate, text in (
        (Estimate(0.07643, 0.0691, 0.0832, 13, 10, "pairs", (2.8929, 2.8168)), "0.0764 [0.0691, 0.0832] = 2.8929 − 2.8168 (13 pairs)"),
        (Estimate(-2.31, -10.4, -0.024, 1, counts="pairs"), "−2.31 [−10.40, −0.02] (1 pair)"),
        (Estimate(22.12, nan, nan, 4), "22.1 (no interval) (4 values)"),
        (Estimate(1234567.0, 1e6, 2e6, 1200, counts="points"), "1,234,567 [1,000,000, 2,000,000] (1,200 points)"),
        (Estimate(0.0, nan, nan, 8), "0.00 (no interval) (8 values)"),
        (Estimate(1.7e5, 0.0, math.inf, 3), "170,000 [0, inf] (3 values)"),
    ):
        assert str(estimate) == text


def test_no_crossing_has_no_value():
    result = zero_crossing([1, 10, 100], [0.1, -0.2, 0.3], 0.1, dof=4)
    assert result.value is None and math.isnan(result.low)
    assert str(result) == "none (3 values)"
    with pytest.raises(ConfigError, match="average over seeds"):
        zero_crossing([1, 1], [0.1, -0.2], 0.1)


def test_unknown_spread_gives_a_crossing_without_interval():
    result = zero_crossing([1, 100], [-1, 1], math.nan, dof=0)
    assert result.value == pytest.approx(10) and math.isnan(result.high)


def test_tokens_to_reach():
    tokens, loss = [0, 10, 100, 1000], [8.0, 4.0, 3.0, 2.0]
    assert tokens_to_reach(tokens, loss, 2.5) == pytest.approx(10**2.5)
    assert tokens_to_reach(tokens, loss, 3.0) == pytest.approx(100)
    assert tokens_to_reach(tokens, loss, 6.0) == pytest.approx(5)
    assert tokens_to_reach(tokens, loss, 9.0) == 0
    assert math.isnan(tokens_to_reach(tokens, loss, 1.9))
    # The rise at 100 does not count: the best so far stays 4 until 1000.
    assert tokens_to_reach([10, 100, 1000], [4.0, 5.0, 2.0], 3.0) == pytest.approx(10**2.5)
    with pytest.raises(ConfigError, match="loss: entry 1"):
        tokens_to_reach([1, 2], [1.0, math.nan], 0.5)
    with pytest.raises(ConfigError, match="tokens has 2, loss has 1"):
        tokens_to_reach([1, 2], [1.0], 0.5)


def test_smallest_mean_holds_each_group_to_its_own_interval(seeds):
    found = smallest_mean(seeds[seeds["size"] != "l"], "loss", "size")
    s, m = (mean_of_groups(seeds[seeds["size"] == size], "loss") for size in "sm")
    assert (found.value, found.n) == (2.0, 5) and found.low == min(s.low, m.low) == m.low  # two runs bound less than three
    assert found.high == pytest.approx(mean_of_groups(seeds[seeds["size"] == "s"], "loss", confidence=0.975).high)
    pooled = smallest_mean(seeds, "loss", "size", pooled=pooled_sd(seeds["loss"], seeds["size"]))
    assert pooled.low < pooled.value == 2.0 and pooled.dof == 3


def test_statistics_and_figures_import_nothing_heavy():
    heavy = ["torch", "transformers", "deepspeed", "datasets", "seaborn", "scipy.stats", "matplotlib.pyplot"]
    code = "import sys, cptlab.statistics, cptlab.claims, cptlab.figures as f; f.style.use(); "
    code += f"print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
