"""Certified fits: known parameters recovered, what the data cannot tell is said, public runs refitted."""

import json
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from test_laws_forms import TRUTH, enough, inputs, measured
from threadpoolctl import threadpool_limits

from cptlab import laws
from cptlab.errors import ConfigError, DataError
from cptlab.laws import FORMS, Fit, bootstrap, fit, optimal
from cptlab.laws.table import load

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
REPEATED = DATA / "datablations" / "runs_outliers_removed_fit182.csv"
FLAT = DATA / "mlfoundations_scaling" / "flat_losses.csv"
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason=f"the public runs are not at {DATA}")

# How far a value may be from the truth at noise 0.003: exponents and E, then the other parameters.
NEAR = {
    "kaplan": (0.01, 0.06),
    "chinchilla": (0.02, 0.10),
    "continual": (0.03, 0.15),
    "data-constrained": (0.01, 0.04),
    "dcpt": (0.03, 0.15),
}
REFITS = dict.fromkeys(TRUTH, 200) | {"data-constrained": 100, "dcpt": 100}  # those two take 30 ms each


def good(name: str) -> pd.DataFrame:
    """240 points of a form, with noise."""
    return measured(name, TRUTH[name], seed=2)


@pytest.fixture(scope="module")
def fits() -> dict[str, Fit]:
    """Every form fitted to its good table."""
    return {name: fit(name, good(name), bootstrap=REFITS[name]) for name in TRUTH}


def huber_sum(found: Fit, data: pd.DataFrame, delta: float = 1e-3) -> float:
    """The objective from its definition."""
    size = np.abs(np.log(found.loss(**{role: data[role] for role in found.form.inputs}) / data["loss"]))
    return float(np.where(size <= delta, size**2 / 2, delta * (size - delta / 2)).sum())


def strict_json(found: Fit) -> dict:
    return json.loads(json.dumps(found.to_json(), allow_nan=False))


@pytest.mark.parametrize("name", FORMS)
def test_known_parameters_come_back_from_noisy_losses(fits, name):
    found, truth = fits[name], TRUTH[name]
    tight, loose = NEAR[name]
    for parameter, estimate in found.parameters.items():
        near = tight if parameter in ("E", "alpha", "beta") else loose
        assert estimate.value == pytest.approx(truth[parameter], rel=near), parameter
        assert estimate.low < estimate.value < estimate.high and estimate.n == 240
    covered = [estimate.low <= truth[parameter] <= estimate.high for parameter, estimate in found.parameters.items()]
    assert sum(covered) >= len(covered) - 1
    x = {role: values for role, values in inputs(500, seed=9).items() if role in found.form.inputs}
    error = np.log(found.loss(**x) / found.form.loss(truth, **x))
    assert np.sqrt(np.mean(error**2)) < 0.001  # a third of the noise


@pytest.mark.parametrize("name", FORMS)
def test_good_data_get_a_clean_certificate(fits, name):
    found = fits[name]
    assert (found.status, found.unidentified, found.warnings, found.frozen) == ("converged", (), (), ())
    assert found.agreement >= 0.6 and found.condition < 1000
    assert found.rms_log_error == pytest.approx(0.003, rel=0.15)
    assert found.held_out is None and found.points == 240 and found.starts == 64


@pytest.mark.parametrize("name", FORMS)
def test_exact_losses_give_exact_parameters(name):
    found = fit(name, measured(name, TRUTH[name], noise=0.0), bootstrap=0, starts=32)
    assert found.values == pytest.approx(TRUTH[name], rel=1e-6)
    assert found.status == "converged" and found.objective < 1e-18


@pytest.mark.parametrize("name", FORMS)
def test_objective_is_the_sum_of_huber_losses(fits, name):
    assert fits[name].objective == pytest.approx(huber_sum(fits[name], good(name)), rel=1e-9)


def test_repeating_every_row_doubles_the_objective_and_moves_nothing(fits):
    data = good("chinchilla")
    twice = fit("chinchilla", pd.concat([data, data]), bootstrap=0, starts=8)
    assert twice.objective == pytest.approx(2 * fits["chinchilla"].objective, rel=1e-9)
    assert twice.values == pytest.approx(fits["chinchilla"].values, rel=1e-5)


def test_an_outlier_hardly_moves_the_fit_unless_huber_is_told_to_be_square(fits):
    data = good("chinchilla")
    data.loc[7, "loss"] *= 3
    robust = fit("chinchilla", data, bootstrap=0, starts=8)
    square = fit("chinchilla", data, bootstrap=0, starts=8, huber_delta=1.0)
    assert robust.values == pytest.approx(fits["chinchilla"].values, rel=0.01)
    assert abs(square.values["A"] / robust.values["A"] - 1) > 0.05
    assert square.objective == pytest.approx(huber_sum(square, data, 1.0), rel=1e-9) and square.huber_delta == 1.0


@pytest.mark.parametrize("name", ["continual", "data-constrained"])
def test_condition_is_that_of_the_derivatives_by_logarithms(fits, name):
    found, law = fits[name], FORMS[name]
    x = law.prepare({role: inputs(240, seed=2)[role] for role in law.inputs})
    theta, columns = law.internal(found.values), []
    for place in range(len(theta)):
        move = np.where(np.arange(len(theta)) == place, 1e-6, 0)
        column = law.log_loss(theta + move, x)[0] - law.log_loss(theta - move, x)[0]
        columns.append(column / np.linalg.norm(column))
    assert found.condition == pytest.approx(np.linalg.cond(np.array(columns).T), rel=1e-3)


@pytest.mark.parametrize("workers", [2, 3])
def test_bootstrap_does_not_depend_on_the_number_of_workers(monkeypatch, workers):
    monkeypatch.setattr(bootstrap, "SERIAL", 0)
    data = measured("chinchilla", TRUTH["chinchilla"], points=60)
    with threadpool_limits(2, "blas"):  # threads would sum in another order
        told = {1: [], workers: []}
        alone, together = (
            fit("chinchilla", data, bootstrap=120, starts=8, workers=count, progress=lambda *now, to=told[count]: to.append(now))
            for count in (1, workers)
        )
    assert np.array_equal(alone.replicates, together.replicates)
    assert alone.parameters == together.parameters
    assert told[1] == [(0, 120), (30, 120), (60, 120), (90, 120), (120, 120)]
    assert told[workers][0] == (0, 120) and [done for done, _ in told[workers][1:]] == list(
        range(120 // (4 * workers), 121, 120 // (4 * workers))
    )


def test_the_same_seed_gives_the_same_fit_and_another_one_another_sample():
    data = measured("continual", TRUTH["continual"], points=60)
    one, same, other = (fit("continual", data, bootstrap=12, starts=16, seed=seed) for seed in (5, 5, 6))
    assert strict_json(one) | {"seconds": 0} == strict_json(same) | {"seconds": 0}
    assert np.array_equal(one.replicates, same.replicates)
    assert not np.isclose(one.replicates["alpha"], other.replicates["alpha"], rtol=1e-6).any()
    assert other.values == pytest.approx(one.values, rel=1e-4)
    assert len(one.replicates.drop_duplicates()) == 12 and one.replicates.index.tolist() == list(range(12))


def test_intervals_are_percentiles_of_the_replicates(fits):
    found = fits["continual"]
    assert list(found.replicates) == list(FORMS["continual"].names) and len(found.replicates) == 200
    low, high = np.percentile(found.replicates["gamma"], [2.5, 97.5])
    assert (found.parameters["gamma"].low, found.parameters["gamma"].high) == (low, high)
    assert 0 < low < 0.08 < high < 0.2


@pytest.mark.parametrize(
    ("noise", "delta"),
    [
        (0.003, 0.01),
        (1e-5, 1e-3),
        (0.003, 1.0),
    ],
)
def test_intervals_have_the_width_that_linear_theory_expects(noise, delta):
    truth, data = TRUTH["chinchilla"], measured("chinchilla", TRUTH["chinchilla"], noise, points=120)
    found = fit("chinchilla", data, bootstrap=100, starts=8, huber_delta=delta)
    n, d = data["n"], data["d"]
    loss = found.loss(n=n, d=d)
    a, b = truth["A"] / n ** truth["alpha"], truth["B"] / d ** truth["beta"]
    jacobian = np.stack([np.full(120, truth["E"]), a, b, -a * np.log(n), -b * np.log(d)], axis=1) / loss[:, None]
    spread = noise * np.sqrt(np.diag(np.linalg.inv(jacobian.T @ jacobian)))
    for name, expected in zip(("alpha", "beta"), spread[3:], strict=True):
        assert found.replicates[name].std() == pytest.approx(expected, rel=0.35), name


def test_frozen_parameters_keep_their_value_and_have_no_interval():
    data = good("continual")
    frozen = {"E": 1.55, "A": 420, "alpha": 0.4}
    found = fit("continual", data, freeze=frozen, bootstrap=30)
    assert found.frozen == ("E", "A", "alpha")
    for name, value in frozen.items():
        estimate = found.parameters[name]
        assert estimate.low == estimate.high == estimate.value == pytest.approx(value, rel=1e-14)
        assert strict_json(found)["parameters"][name]["frozen"] is True
        assert f"  {name:9} {value:<12.6g} frozen" in str(found)
        assert (found.replicates[name] == estimate.value).all()
    whole = fit("continual", data, bootstrap=30)
    for name in ("B", "beta", "gamma"):
        pinned, loose = found.parameters[name], whole.parameters[name]
        assert pinned.value == pytest.approx(TRUTH["continual"][name], rel=0.05)
        assert pinned.high - pinned.low < loose.high - loose.low
    assert found.objective > whole.objective and found.condition < whole.condition


def test_two_steps_of_the_cross_lingual_study():
    """Scratch law first, then the continual one with E, A and alpha kept; both from the printed parameters."""
    printed = {"E": 1.55, "A": 420.0, "B": 719.5, "alpha": 0.40, "beta": 0.30}
    scratch = fit("chinchilla", measured("chinchilla", printed), bootstrap=40)
    assert {name: scratch.values[name] for name in ("E", "alpha", "beta")} == pytest.approx(
        {"E": 1.55, "alpha": 0.4, "beta": 0.3}, rel=0.04
    )
    assert scratch.values["A"] == pytest.approx(420, rel=0.25) and scratch.values["B"] == pytest.approx(719.5, rel=0.1)
    kept = {name: scratch.values[name] for name in ("E", "A", "alpha")}
    found = fit("continual", measured("continual", TRUTH["continual"], seed=1), freeze=kept, bootstrap=40)
    assert found.frozen == ("E", "A", "alpha") and found.status == "converged" and found.agreement > 0.7
    assert {name: found.values[name] for name in kept} == pytest.approx(kept, rel=1e-14)
    assert found.values["beta"] == pytest.approx(0.20, rel=0.05) and found.values["gamma"] == pytest.approx(0.08, rel=0.15)
    assert found.values["B"] == pytest.approx(433.3, rel=0.1)
    assert found.parameters["gamma"].low > 0
    without = fit("continual", measured("continual", TRUTH["continual"], seed=1), freeze=kept | {"gamma": 0.0}, bootstrap=0)
    assert without.objective > 1.5 * found.objective


def test_a_coefficient_frozen_at_zero_drops_its_term_and_its_input():
    data = measured("chinchilla", TRUTH["chinchilla"] | {"A": 0.0}).assign(n=1.4e9)
    with pytest.raises(DataError, match="'n' has only one value, 1.4e\\+09"):
        fit("chinchilla", data, bootstrap=0)
    found = fit("chinchilla", data, freeze={"A": 0, "alpha": 0.3}, bootstrap=20)
    assert {name: found.values[name] for name in ("E", "B", "beta")} == pytest.approx({"E": 1.69, "B": 410.7, "beta": 0.28}, rel=0.05)
    assert found.values["A"] == 0.0 and (found.replicates["A"] == 0.0).all()
    assert found.loss(n=1e6, d=1e10) == found.loss(n=1e12, d=1e10)
    assert found.status == "converged" and not found.unidentified


def test_gamma_frozen_at_zero_makes_the_continual_law_the_scratch_law(fits):
    found = fit("continual", good("chinchilla"), freeze={"gamma": 0.0}, bootstrap=0)
    assert found.objective == pytest.approx(fits["chinchilla"].objective, rel=1e-6)
    assert {name: found.values[name] for name in TRUTH["chinchilla"]} == pytest.approx(fits["chinchilla"].values, rel=1e-4)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"freeze": {"gamma": 0.1}}, ConfigError, "form chinchilla has no parameter 'gamma': it has E, A, B, alpha, beta"),
        ({"freeze": {"A": -1.0}}, ConfigError, "parameter A = -1.0"),
        ({"freeze": {"alpha": math.inf}}, ConfigError, "parameter alpha = inf"),
        ({"freeze": TRUTH["chinchilla"]}, ConfigError, "every parameter of chinchilla is frozen: nothing is left to fit"),
        ({"huber_delta": 0}, ConfigError, "huber_delta 0: give a positive number"),
        ({"huber_delta": math.nan}, ConfigError, "huber_delta nan"),
        ({"bootstrap": -1}, ConfigError, "bootstrap -1"),
        ({"starts": 0}, ConfigError, "starts 0"),
        ({"seed": -1}, ConfigError, "seed -1"),
    ],
)
def test_options_that_cannot_be_are_refused(options, error, message):
    with pytest.raises(error, match=message):
        fit("chinchilla", good("chinchilla"), **{"bootstrap": 0} | options)


def test_too_few_points_for_the_free_parameters():
    data = measured("chinchilla", TRUTH["chinchilla"], points=5)
    with pytest.raises(DataError, match="5 points to fit, the 5 free parameters of chinchilla need at least 6.*E, A, B, alpha, beta"):
        fit("chinchilla", data, bootstrap=0)
    found = fit("chinchilla", data, freeze={"alpha": 0.34}, bootstrap=0)
    assert any("5 points for 4 free parameters" in text for text in found.warnings)


def test_a_constant_ratio_of_tokens_to_parameters_cannot_tell_beta_from_gamma():
    n = np.geomspace(4e7, 1.6e10, 60)
    loss = FORMS["continual"].loss(TRUTH["continual"], n=n, d=20 * n) * np.exp(np.random.default_rng(0).normal(0, 0.003, 60))
    found = fit("continual", {"n": n, "d": 20 * n, "loss": loss}, bootstrap=10, starts=12)
    assert {"B", "beta", "gamma"} <= set(found.unidentified)
    assert found.condition > 1e10
    assert any("condition number" in text and "stand in for one another" in text for text in found.warnings)
    assert any(text.startswith("not determined by these data") and "beta, gamma" in text for text in found.warnings)
    assert all(f"{name} " in str(found) and "NOT DETERMINED" in str(found) for name in ("beta", "gamma"))
    strict_json(found)


def test_two_sizes_cannot_tell_the_floor_from_the_size_term():
    data = good("chinchilla")
    sizes = np.where(data["n"] > 1e9, 1e10, 1e8)
    noise = np.random.default_rng(3).normal(0, 0.003, 240)
    loss = FORMS["chinchilla"].loss(TRUTH["chinchilla"], n=sizes, d=data["d"]) * np.exp(noise)
    found = fit("chinchilla", data.assign(n=sizes, loss=loss), bootstrap=10, starts=8)
    assert found.unidentified == ("E", "A", "alpha") and found.condition > 1e12
    assert found.values["beta"] == pytest.approx(0.28, rel=0.02)


@pytest.fixture(scope="module")
def runaway() -> Fit:
    """Losses that surplus parameters lower by more than any R_N can say."""
    x = {role: values for role, values in inputs(120).items() if role in "ndu"}
    truth = TRUTH["data-constrained"] | {"R_N_star": 1e12}
    surplus = np.maximum(np.log(x["n"] / enough(truth, np.minimum(x["u"], x["d"]))), 0)
    better = FORMS["data-constrained"].loss(truth, **x) * np.exp(np.random.default_rng(0).normal(0, 0.001, 120) - 0.001 * surplus)
    return fit("data-constrained", x | {"loss": better}, bootstrap=10, starts=16)


def test_surplus_parameters_that_never_lose_worth_have_no_finite_optimum(runaway):
    found, truth = runaway, TRUTH["data-constrained"]
    assert found.status == "no finite optimum"
    assert found.values["R_N_star"] > 1e5 and any("no finite optimum: R_N_star" in text for text in found.warnings)
    assert found.values["alpha"] == pytest.approx(truth["alpha"], rel=0.05) and "alpha" not in found.unidentified
    assert found.values["R_D_star"] == pytest.approx(truth["R_D_star"], rel=0.15)
    strict_json(found)


def test_a_parameter_that_runs_off_is_not_determined(runaway):
    assert "R_N_star" in runaway.unidentified


def test_a_term_that_the_data_do_not_show_is_said():
    data = measured("chinchilla", TRUTH["chinchilla"] | {"A": 0.0})
    found = fit("chinchilla", data, bootstrap=10, starts=16)
    assert {"A", "alpha"} & set(found.unidentified)
    assert any(text.startswith("not determined") and "A" in text for text in found.warnings)
    assert found.values["beta"] == pytest.approx(0.28, rel=0.05) and "beta" not in found.unidentified


def test_runs_drawn_whole_give_wider_intervals_than_points():
    generator = np.random.default_rng(4)
    runs = {role: np.repeat(values, 8) for role, values in inputs(30).items() if role in "nd"}
    runs["d"] = runs["d"] * np.tile(np.geomspace(0.1, 1, 8), 30)
    noise = np.repeat(generator.normal(0, 0.01, 30), 8) + generator.normal(0, 0.0005, 240)
    data = pd.DataFrame(runs).assign(
        loss=FORMS["chinchilla"].loss(TRUTH["chinchilla"], **runs) * np.exp(noise), run=[f"run-{i // 8}" for i in range(240)]
    )
    points = fit("chinchilla", data, bootstrap=60, starts=8)
    whole = fit("chinchilla", data, {"group": "run"}, bootstrap=60, starts=8)
    assert whole.values == points.values
    ratio = whole.replicates.std() / points.replicates.std()
    assert (ratio > 1.2).all() and ratio[["E", "A", "alpha"]].min() > 1.6
    truth = TRUTH["chinchilla"]
    assert sum(whole.parameters[name].low <= truth[name] <= whole.parameters[name].high for name in truth) >= 4


def check_held_out(found: Fit, data: pd.DataFrame, held: np.ndarray) -> None:
    rows = data[held]
    error = np.log(found.form.loss(found.values, n=rows["n"], d=rows["d"]) / rows["loss"].to_numpy())
    assert found.held_out["points"] == len(rows) and found.points == len(data) - len(rows)
    assert found.held_out["rms_log_error"] == pytest.approx(np.sqrt(np.mean(error**2)), rel=1e-9)
    assert found.held_out["mean_log_error"] == pytest.approx(error.mean(), rel=1e-9)
    assert found.held_out["worst_log_error"] == pytest.approx(error[np.abs(error).argmax()], rel=1e-9)
    assert strict_json(found)["held_out"] == found.held_out and "held out" in str(found)


def test_rows_held_out_by_a_condition_are_predicted_and_not_fitted():
    data = good("chinchilla")
    held = (data["n"] >= 5e9).to_numpy()
    found = fit("chinchilla", data, holdout="n >= 5e9", bootstrap=0, starts=8)
    check_held_out(found, data, held)
    assert found.held_out["rms_log_error"] < 0.008 and 20 < held.sum() < 100
    assert found.values == fit("chinchilla", data[~held], bootstrap=0, starts=8).values
    renamed = data.rename(columns={"n": "size"})
    assert fit("chinchilla", renamed, {"n": "size"}, holdout="size >= 5e9", bootstrap=0, starts=8).values == found.values


def test_a_share_of_the_rows_is_held_out_by_the_seed():
    data = good("chinchilla")
    found = fit("chinchilla", data, holdout=0.25, bootstrap=0, starts=8, seed=3)
    held = load(data, FORMS["chinchilla"], holdout=0.25, seed=3).held
    assert held.sum() == 60
    check_held_out(found, data, held)
    assert not np.array_equal(held, load(data, FORMS["chinchilla"], holdout=0.25, seed=4).held)


def test_a_bad_extrapolation_is_warned_of():
    data = good("chinchilla")
    data["loss"] = np.where(data["n"] > 5e9, data["loss"] * 1.1, data["loss"])
    found = fit("chinchilla", data, holdout="n > 5e9", bootstrap=0, starts=8)
    check_held_out(found, data, (data["n"] > 5e9).to_numpy())
    assert found.held_out["worst_log_error"] < found.held_out["mean_log_error"] < -0.05
    assert any(text.startswith("on held-out points the error is") for text in found.warnings)


def test_derived_quantities_carry_the_spread_of_the_replicates(fits):
    found = fits["continual"]
    share = found.derive(lambda law: optimal.compute_optimal(law).a)
    draws = optimal.compute_optimal({name: found.replicates[name].to_numpy() for name in found.replicates}).a
    assert share.value == pytest.approx(0.2 / 0.52, rel=0.05)
    assert share.value == pytest.approx(float(optimal.compute_optimal(found.values).a), rel=1e-14)
    assert (share.low, share.high) == pytest.approx(tuple(np.percentile(draws, [2.5, 97.5])), rel=1e-12)
    half = found.derive(lambda law: optimal.compute_optimal(law).a, confidence=0.5)
    assert share.low < half.low < half.high < share.high
    bare = fit("continual", good("continual"), bootstrap=0, starts=8).derive(lambda law: law["alpha"])
    assert math.isnan(bare.low) and math.isnan(bare.high) and bare.value == pytest.approx(0.4, rel=0.1)


@pytest.mark.parametrize("name", FORMS)
def test_json_is_strict_and_keeps_full_precision(fits, name):
    found = fits[name]
    record = strict_json(found)
    assert {"form", "parameters", "objective", "status", "agreement", "condition", "seconds", "warnings"} <= set(record)
    for parameter, estimate in found.parameters.items():
        assert record["parameters"][parameter] == {"value": estimate.value, "low": estimate.low, "high": estimate.high}
    assert record["bootstrap"] == REFITS[name] and record["minima"][0]["objective"] == pytest.approx(found.objective, rel=1e-6)


def test_json_without_a_bootstrap_has_null_bounds():
    found = fit("chinchilla", good("chinchilla"), bootstrap=0, starts=8)
    assert strict_json(found)["parameters"]["alpha"] == {"value": found.values["alpha"], "low": None, "high": None}
    assert found.replicates.empty and "no interval" in str(found) and found.unidentified == ()


@pytest.mark.parametrize("kind", ["constant", "noise", "rising"])
def test_degenerate_data_are_not_certified(kind):
    data, generator = measured("chinchilla", TRUTH["chinchilla"], points=40), np.random.default_rng(2)
    data["loss"] = {"constant": 2.5, "noise": np.exp(generator.normal(0, 1, 40)), "rising": data["n"] ** 0.1}[kind]
    found = fit("chinchilla", data, bootstrap=10, starts=8)
    assert found.unidentified and found.warnings
    assert strict_json(found)["unidentified"] == list(found.unidentified)


@pytest.mark.parametrize("scale", [1e-6, 1e6])
def test_units_of_the_inputs_do_not_matter(fits, scale):
    data = good("chinchilla")
    found = fit("chinchilla", data.assign(n=data["n"] * scale, d=data["d"] * scale), bootstrap=0, starts=8)
    whole = fits["chinchilla"]
    assert found.objective == pytest.approx(whole.objective, rel=1e-6)
    for name in ("E", "alpha", "beta"):
        assert found.values[name] == pytest.approx(whole.values[name], rel=1e-4)
    assert found.values["A"] == pytest.approx(whole.values["A"] * scale ** whole.values["alpha"], rel=1e-2)


@pytest.mark.parametrize("name", FORMS)
def test_losses_in_another_unit_give_the_same_exponents(fits, name):
    data = good(name)
    found = fit(name, data.assign(loss=data["loss"] / 10), bootstrap=0, starts=16)
    assert found.objective == pytest.approx(fits[name].objective, rel=1e-6)
    assert found.values["alpha"] == pytest.approx(fits[name].values["alpha"], rel=1e-3)


def test_exact_losses_are_not_warned_of():
    found = fit("chinchilla", measured("chinchilla", TRUTH["chinchilla"], noise=0.0), bootstrap=0, starts=16)
    assert found.agreement > 0.5 and found.warnings == ()


def test_least_squares_through_a_huge_delta_is_the_least_squares_fit():
    data = good("chinchilla")
    square, large = (fit("chinchilla", data, bootstrap=0, starts=8, huber_delta=delta) for delta in (0.1, 100.0))
    assert large.objective == pytest.approx(square.objective, rel=1e-5)


@needs_data
def test_published_fit_of_repeated_data_and_its_flat_valley():
    columns = {"n": "params_N", "d": "tokens_D", "u": "unique_tokens_U", "loss": "val_loss"}
    law = {"E": math.exp(0.6254804), "A": math.exp(6.255414), "B": math.exp(7.3049974), "alpha": 0.3526596, "beta": 0.3526596}
    stars = {"R_D_star": 15.387756, "R_N_star": 5.309743}
    data = pd.read_csv(REPEATED).rename(columns={column: role for role, column in columns.items()})
    found = fit("data-constrained", REPEATED, columns, freeze=law, bootstrap=60)
    published = FORMS["data-constrained"].loss(law | stars, n=data["n"], d=data["d"], u=data["u"])
    size = np.abs(np.log(published / data["loss"]))
    assert len(data) == found.points == 182
    assert np.where(size <= 1e-3, size**2 / 2, 1e-3 * (size - 5e-4)).sum() == pytest.approx(0.0158259, abs=1e-7)

    assert 0.015800 < found.objective < 0.015810
    assert found.objective == pytest.approx(huber_sum(found, data), rel=1e-9)
    valley = [minimum["R_D_star"] for minimum in found.minima if minimum["objective"] < 0.01583]
    assert len(valley) >= 3 and max(valley) > 3 * min(valley)
    assert any(value == pytest.approx(15.4, abs=0.2) for value in valley)
    assert found.agreement < 0.5 and "R_D_star" in found.unidentified and found.status == "converged"
    assert any(text.startswith("a flat valley") and "R_D_star" in text for text in found.warnings)


@needs_data
def test_runs_below_a_billion_parameters_predict_larger_ones():
    table = pd.read_csv(FLAT)
    assert len(table) == 104
    wide = []
    for _, data in table.groupby("dataset"):
        found = fit("chinchilla", data, {"loss": "loss_c4_val"}, holdout="params >= 1e9", bootstrap=100, starts=16)
        large = data["params"] >= 1e9
        guess = np.log(data.loc[~large, "loss_c4_val"].mean() / data.loc[large, "loss_c4_val"])
        assert found.held_out["points"] == large.sum() == 3 and found.status == "converged"
        # The fitted runs scatter by 0.03 in log loss; the larger ones (3 to 17 times the size) are missed by 0.02 to 0.05.
        assert found.held_out["rms_log_error"] < 0.06 < np.sqrt(np.mean(guess**2)) / 5
        wide.append("E" in found.unidentified)
        assert found.parameters["E"].low < 0.5 < 1.5 < found.parameters["E"].high < 2.3
    assert any(wide)


def warned(found, words: str) -> bool:
    return any(words in text for text in found.warnings)


def test_copies_of_rows_are_no_evidence():
    data = measured("chinchilla", TRUTH["chinchilla"], points=40)
    with pytest.raises(DataError, match="2 different points to fit"):
        fit("chinchilla", pd.concat([data.iloc[:2]] * 20))
    assert warned(fit("chinchilla", pd.concat([data] * 3), bootstrap=0, starts=8), "80 rows are copies of others")
    assert not warned(fit("chinchilla", data, bootstrap=0, starts=8), "copies")


def test_a_bootstrap_by_run_needs_runs():
    data = measured("chinchilla", TRUTH["chinchilla"], points=40)
    few = fit("chinchilla", data.assign(run=[f"r{i % 5}" for i in range(40)]), {"group": "run"}, bootstrap=20, starts=8)
    assert warned(few, "intervals from 5 independent runs only") and warned(few, "intervals from 20 refits only")
    with pytest.raises(DataError, match="all rows belong to one run"):
        fit("chinchilla", data.assign(run="a"), {"group": "run"}, bootstrap=20, starts=8)
    with pytest.raises(DataError, match="row 7, column 'run': no value"):
        fit("chinchilla", data.assign(run=["a"] * 7 + [None] + ["b"] * 32), {"group": "run"}, bootstrap=20)


def test_what_only_a_dropped_term_needs_is_frozen_with_it():
    data = measured("chinchilla", TRUTH["chinchilla"], points=40)
    found = fit("chinchilla", data.assign(n=1e9), freeze={"A": 0}, bootstrap=20, starts=8)
    assert found.frozen == ("A", "alpha") and found.values["A"] == found.values["alpha"] == 0.0
    assert found.condition < 1e4
    whole = fit("dcpt", measured("dcpt", TRUTH["dcpt"], points=60), freeze={"C": 0}, bootstrap=0, starts=8)
    assert whole.frozen == ("C", "gamma", "eps")


def test_a_refit_that_finds_what_the_starts_missed_is_taken_and_told():
    data = measured("chinchilla", TRUTH["chinchilla"], points=60)  # starts have positive exponents, the losses want -0.1
    rising = fit("chinchilla", data.assign(loss=data["n"] ** 0.1), bootstrap=30, starts=8)
    assert rising.values["alpha"] == pytest.approx(-0.1, rel=0.01) and rising.rms_log_error < 1e-3
    assert warned(rising, "the starts missed a lower objective") and warned(rising, "alpha came out at or below zero")
    assert rising.agreement == 0 and rising.starts == 8


def test_what_the_losses_do_not_feel_has_no_interval():
    data = measured("chinchilla", TRUTH["chinchilla"], points=60)
    two = data.assign(d=np.where(np.arange(60) % 2, 1e9, 4e9))
    two["loss"] = FORMS["chinchilla"].loss(TRUTH["chinchilla"], n=two["n"], d=two["d"]) * (data["loss"] / data["loss"].mean()) ** 0.001
    found = fit("chinchilla", two, bootstrap=30, starts=8)
    open_ = {name for name, estimate in found.parameters.items() if math.isnan(estimate.low)}
    assert open_ == {"E", "B", "beta"} <= set(found.unidentified) and found.condition > 1e8
    assert strict_json(found)["parameters"]["beta"]["low"] is None and "no interval" in str(found)


def test_a_row_far_off_is_named():
    data = measured("chinchilla", TRUTH["chinchilla"], points=60)
    wrong = data.assign(loss=data["loss"].where(data.index != data.index[5], 1.5 * data["loss"]))
    assert warned(
        fit("chinchilla", wrong, bootstrap=0, starts=8), "1 of 60 rows lie more than 10 typical errors from the law, the worst by -41"
    )
    assert not warned(fit("chinchilla", data, bootstrap=0, starts=8), "typical errors")


def test_a_law_that_does_not_describe_the_losses_is_called_so():
    data = measured("chinchilla", TRUTH["chinchilla"], points=60)
    assert warned(fit("chinchilla", data, freeze={"E": 50.0}, bootstrap=0, starts=8), "it does not describe them")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"sum": ()}, "the terms' coefficients"),
        ({"sum": (laws.Term("B", over={"d": "beta"}), laws.Term("E"))}, "in their order: E, B"),
        ({"inputs": ("d", "tokens")}, "inputs are some of n, d, r, u"),
        ({"sum": (laws.Term("E"), laws.Term("B", over={"n": "beta"}))}, "those of the terms among them"),
        ({"sum": (laws.Term("E"), laws.Term("B", over={"d": "delta"}))}, "no parameter 'delta'"),
        ({"outer": "beta"}, "declared with positive"),
    ],
)
def test_a_declaration_that_contradicts_itself_is_refused(change, words):
    right = dict(name="x", equation="L = E + B/d^beta", source="test", inputs=("d",))
    right |= {"parameters": (laws.coefficient("E"), laws.coefficient("B"), laws.exponent("beta"))}
    right |= {"sum": (laws.Term("E"), laws.Term("B", over={"d": "beta"}))}
    laws.PowerSum(**right)
    with pytest.raises(ConfigError, match=words):
        laws.PowerSum(**right | change)


@pytest.mark.parametrize("inputs", [{"n": -1e9, "d": 1e9}, {"n": 1e9, "d": np.inf}, {"n": 1e9}, {"n": 1e9, "d": 1e9, "r": 0.5}])
def test_predictions_are_made_for_possible_inputs_only(inputs):
    with pytest.raises(ConfigError):
        laws.form("chinchilla").loss(TRUTH["chinchilla"], **inputs)


def test_numpy_scalars_are_as_good_as_numbers():
    data = measured("chinchilla", TRUTH["chinchilla"], points=40)
    found = fit(
        "chinchilla", data, freeze={"E": np.float64(1.7)}, seed=np.int64(3), huber_delta=np.float64(1e-3), bootstrap=np.int64(0), starts=8
    )
    assert strict_json(found)["seed"] == 3 and found.values["E"] == 1.7


def test_a_large_exponent_that_the_data_show_is_no_run_away():
    truth = TRUTH["dcpt"] | {"eta": 12.0}
    found = fit("dcpt", measured("dcpt", truth, 0.001, points=120), bootstrap=0, starts=16)
    assert found.status == "converged" and found.values["eta"] == pytest.approx(12, rel=0.05) and "eta" not in found.unidentified


def test_a_coefficient_beyond_all_bounds_still_predicts():
    data = measured("chinchilla", TRUTH["chinchilla"], points=40)
    found = fit("chinchilla", data.assign(d=20 * data["n"]), bootstrap=0, starts=4)
    huge = found.values | {"A": 1e304, "alpha": 40.0}
    assert np.isfinite(found.form.loss(huge, n=1e9, d=1e10))
