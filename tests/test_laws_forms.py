"""Forms of scaling laws: each equation written out plainly, gradients against finite differences, forms of one's own."""

from dataclasses import dataclass

import numpy as np
import pandas as pd
import pytest

from cptlab import cli_laws
from cptlab.errors import ConfigError
from cptlab.laws import FORMS, Form, PowerSum, Term, coefficient, exponent, fit, form, optimal, positive, register

TRUTH = {
    "kaplan": {"N_c": 8.8e13, "D_c": 5.4e13, "alpha": 0.076, "beta": 0.095},
    "chinchilla": {"E": 1.69, "A": 406.4, "B": 410.7, "alpha": 0.34, "beta": 0.28},
    "continual": {"E": 1.55, "A": 420.0, "B": 433.3, "alpha": 0.40, "beta": 0.20, "gamma": 0.08},
    "data-constrained": {"E": 1.87, "A": 521.0, "B": 1488.0, "alpha": 0.353, "beta": 0.353, "R_D_star": 15.4, "R_N_star": 5.31},
    "dcpt": {"E": 1.3, "A": 400.0, "B": 300.0, "C": 0.25, "alpha": 0.38, "beta": 0.25, "gamma": 0.6, "eta": 0.5, "eps": 0.05},
}
REPLAY = PowerSum(
    name="replay",
    equation="L = E + A/n^alpha + B (r + rho)^kappa / d^beta",
    source="this test",
    parameters=(
        *(coefficient(name) for name in ("E", "A", "B")),
        *(exponent(name) for name in ("alpha", "beta", "kappa")),
        positive("rho", 0.01, 1.0),
    ),
    inputs=("n", "d", "r"),
    sum=(Term("E"), Term("A", over={"n": "alpha"}), Term("B", over={"d": "beta"}, times={"r": "kappa"}, shift={"r": "rho"})),
)
REPLAY_TRUTH = {"E": 1.6, "A": 400.0, "B": 600.0, "alpha": 0.36, "beta": 0.27, "kappa": 0.5, "rho": 0.1}


@dataclass(frozen=True)
class Onset(Form):
    """Loss that falls only once training is under way: E + A / (1 + d/D_0)^beta."""

    def terms(self, theta, x):
        log_e, log_a, beta, log_d0 = theta
        ratio = x["d"] / np.exp(log_d0)
        slopes = np.zeros((4, 2, len(ratio)))
        slopes[0, 0] = slopes[1, 1] = 1.0
        slopes[2, 1] = -np.log1p(ratio)
        slopes[3, 1] = beta * ratio / (1 + ratio)
        return np.stack([np.full_like(ratio, log_e), log_a - beta * np.log1p(ratio)]), slopes


ONSET = Onset(
    name="onset",
    equation="L = E + A/(1 + d/D_0)^beta",
    source="this test",
    parameters=(coefficient("E"), coefficient("A"), exponent("beta"), positive("D_0", 1e8, 1e11)),
    inputs=("d",),
    identifies={"d": ("beta", "D_0")},
)
ONSET_TRUTH = {"E": 1.8, "A": 3.0, "beta": 0.6, "D_0": 5e9}


def inputs(points: int, seed: int = 0) -> dict[str, np.ndarray]:
    """Runs over the sizes, durations, shares and repetitions at which such laws are fitted."""
    generator = np.random.default_rng(seed)
    n = np.exp(generator.uniform(np.log(4e7), np.log(1.6e10), points))
    d = n * np.exp(generator.uniform(np.log(2), np.log(200), points))
    return {"n": n, "d": d, "r": generator.uniform(0.02, 1, points), "u": d / np.exp(generator.uniform(0, 4, points))}


def measured(law: Form | str, truth: dict[str, float], noise: float = 0.003, points: int = 240, seed: int = 0) -> pd.DataFrame:
    """A table of losses of a law with log-normal noise, columns named by role."""
    law = form(law)
    x = {role: values for role, values in inputs(points, seed).items() if role in law.inputs}
    return pd.DataFrame(x).assign(loss=law.loss(truth, **x) * np.exp(np.random.default_rng([seed, 1]).normal(0, noise, points)))


def plain(name: str, p: dict[str, float], n, d, r, u) -> np.ndarray:
    """The published equations, from the papers and not from the library."""
    if name == "kaplan":
        return ((p["N_c"] / n) ** (p["alpha"] / p["beta"]) + p["D_c"] / d) ** p["beta"]
    if name == "chinchilla":
        return p["E"] + p["A"] / n ** p["alpha"] + p["B"] / d ** p["beta"]
    if name == "continual":
        return p["E"] + p["A"] / n ** p["alpha"] + p["B"] / (d ** p["beta"] * n ** p["gamma"])
    if name == "dcpt":
        mixture = p["B"] * r ** p["eta"] / d ** p["beta"] + p["C"] / (r + p["eps"]) ** p["gamma"]
        return p["E"] + p["A"] / n ** p["alpha"] + mixture
    d_unique = np.minimum(u, d)
    n_unique = np.minimum(enough(p, d_unique), n)
    worth_n = n_unique + n_unique * p["R_N_star"] * (1 - np.exp(-(n / n_unique - 1) / p["R_N_star"]))
    worth_d = d_unique + d_unique * p["R_D_star"] * (1 - np.exp(-(d / d_unique - 1) / p["R_D_star"]))
    return p["E"] + p["A"] / worth_n ** p["alpha"] + p["B"] / worth_d ** p["beta"]


def enough(p: dict[str, float], unique: np.ndarray) -> np.ndarray:
    """Parameters that are compute-optimal for ``unique`` tokens."""
    g = (p["alpha"] * p["A"] / (p["beta"] * p["B"])) ** (1 / (p["alpha"] + p["beta"]))
    return g * (g * unique) ** (p["beta"] / p["alpha"])


def awkward(points: int = 60, seed: int = 3) -> dict[str, np.ndarray]:
    """Ordinary inputs, and the corners: no share at all, all of it, fewer tokens than unique ones, data seen once and often."""
    x = inputs(points, seed)
    x["r"][:4] = 0.0, 1.0, 1e-9, 0.5
    x["u"][4:8] = x["d"][4:8] * np.array([1.0, 3.0, 1e-3, 0.02])
    x["n"][8:12] = 1e4, 1e6, 1e13, 1e15
    return x


def test_the_corners_of_the_data_constrained_law_are_among_the_inputs():
    x = awkward()
    surplus = x["n"] > enough(TRUTH["data-constrained"], np.minimum(x["u"], x["d"]))
    assert surplus.sum() >= 8 and (~surplus).sum() >= 8
    assert (x["u"] > x["d"]).any() and (x["u"] < x["d"]).sum() > 30


@pytest.mark.parametrize("name", FORMS)
def test_loss_is_the_published_equation(name):
    x = awkward()
    law = FORMS[name]
    assert law.loss(TRUTH[name], **{role: x[role] for role in law.inputs}) == pytest.approx(plain(name, TRUTH[name], **x), rel=1e-12)


@pytest.mark.parametrize("law", [*FORMS.values(), REPLAY, ONSET], ids=lambda law: law.name)
@pytest.mark.parametrize("seed", range(3))
def test_gradient_is_that_of_finite_differences(law, seed):
    truth = TRUTH | {"replay": REPLAY_TRUTH, "onset": ONSET_TRUTH}
    theta = law.internal(truth[law.name])
    theta = theta + np.random.default_rng(seed).normal(0, 0.15, len(theta)) * np.maximum(abs(theta) / 5, 0.3)
    x = law.prepare(awkward(seed=seed))
    _, slope = law.log_loss(theta, x)
    assert slope.shape == (len(law.parameters), 60) and np.isfinite(slope).all()
    step = 1e-5
    for place, row in enumerate(slope):
        move = np.where(np.arange(len(theta)) == place, step, 0)
        difference = (law.log_loss(theta + move, x)[0] - law.log_loss(theta - move, x)[0]) / (2 * step)
        assert np.abs(row).max() > 1e-3, law.names[place]
        assert row == pytest.approx(difference, rel=1e-5, abs=1e-8), law.names[place]


@pytest.mark.parametrize("name", FORMS)
def test_internal_and_named_values_are_each_others_inverse(name):
    law = FORMS[name]
    theta = law.internal(TRUTH[name])
    assert law.named(theta) == pytest.approx(TRUTH[name], rel=1e-14)
    logs = [parameter.log for parameter in law.parameters]
    assert theta[logs] == pytest.approx(np.log(np.array(list(TRUTH[name].values()))[logs]))


def test_parameters_beyond_what_unique_data_deserve_follow_from_the_optimal_allocation():
    truth, unique = TRUTH["data-constrained"], np.array([1e9, 3e10, 1e12])
    best = optimal.compute_optimal(truth)
    flops = (unique / best.d_factor) ** (1 / best.b)
    assert enough(truth, unique) == pytest.approx(best.n(flops), rel=1e-10)


def test_data_seen_once_with_few_parameters_is_the_chinchilla_law():
    truth = TRUTH["data-constrained"]
    d = np.array([1e9, 1e11])
    n = enough(truth, d) / 2
    once = FORMS["data-constrained"].loss(truth, n=n, d=d, u=d)
    assert once == pytest.approx(FORMS["chinchilla"].loss({name: truth[name] for name in FORMS["chinchilla"].names}, n=n, d=d), rel=1e-12)
    assert (FORMS["data-constrained"].loss(truth, n=n, d=d, u=d / 50) > once).all()


def test_repetition_is_worth_less_and_less_and_never_more_than_its_limit():
    truth, u = TRUTH["data-constrained"], 1e9
    n = enough(truth, u) / 2
    losses = FORMS["data-constrained"].loss(truth, n=n, d=u * np.array([1.0, 2.0, 4.0, 16.0, 1e3, 1e6]), u=u)
    assert (np.diff(losses) <= 0).all() and losses[0] - losses[1] > 0.05
    limit = FORMS["data-constrained"].loss(truth, n=n, d=u * (1 + truth["R_D_star"]), u=u * (1 + truth["R_D_star"]))
    assert losses[-1] == pytest.approx(float(limit), rel=1e-3)


def test_a_coefficient_of_zero_leaves_its_term_out():
    law = FORMS["dcpt"]
    x = {role: inputs(20)[role] for role in law.inputs}
    without = law.loss(TRUTH["dcpt"] | {"B": 0.0, "C": 0.0}, **x)
    truth = TRUTH["dcpt"]
    assert without == pytest.approx(truth["E"] + truth["A"] / x["n"] ** truth["alpha"], rel=1e-14)
    theta = law.internal(truth | {"C": 0.0})
    assert law.named(theta)["C"] == 0.0
    _, slope = law.log_loss(theta, law.prepare(x))
    assert np.isfinite(slope).all() and not np.abs(slope[[law.index("C"), law.index("gamma"), law.index("eps")]]).max() > 1e-100


def test_loss_broadcasts_and_keeps_the_shape_of_its_inputs():
    law, truth = FORMS["chinchilla"], TRUTH["chinchilla"]
    table = law.loss(truth, n=np.array([[1e8], [1e9]]), d=[1e9, 1e10, 1e11])
    assert table.shape == (2, 3)
    assert table[1, 2] == pytest.approx(1.69 + 406.4 / 1e9**0.34 + 410.7 / 1e11**0.28)
    assert law.loss(truth, n=10**9, d=10**11).shape == () and float(law.loss(truth, n=10**9, d=10**11)) == table[1, 2]


def test_extreme_coordinates_give_finite_losses_and_slopes():
    for law in FORMS.values():
        x = law.prepare(awkward())
        for shift in (-40.0, 40.0):
            value, slope = law.log_loss(law.internal(TRUTH[law.name]) + np.where([p.log for p in law.parameters], shift, shift / 20), x)
            assert np.isfinite(value).all() and np.isfinite(slope).all(), (law.name, shift)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: form("chinchila"), "form 'chinchila' is unknown: use one of kaplan, chinchilla, continual, data-constrained, dcpt"),
        (lambda: FORMS["chinchilla"].index("gamma"), "form chinchilla has no parameter 'gamma': it has E, A, B, alpha, beta"),
        (lambda: FORMS["chinchilla"].loss({"E": 1.0, "A": 1.0}, n=1, d=1), "needs a value of B, alpha, beta"),
        (lambda: FORMS["dcpt"].loss(TRUTH["dcpt"], n=1e9, d=1e9), r"form dcpt needs r .*given: n, d"),
        (lambda: FORMS["chinchilla"].loss(TRUTH["chinchilla"] | {"A": -1.0}, n=1, d=1), "parameter A = -1.0: .*zero or a positive"),
        (lambda: FORMS["kaplan"].loss(TRUTH["kaplan"] | {"beta": 0.0}, n=1, d=1), "parameter beta = 0.0: .*a positive number"),
        (lambda: FORMS["chinchilla"].loss(TRUTH["chinchilla"] | {"alpha": np.nan}, n=1, d=1), "parameter alpha = nan"),
    ],
)
def test_wrong_names_and_values_say_what_is_valid(call, message):
    with pytest.raises(ConfigError, match=message):
        call()


def test_help_of_the_command_lists_exactly_the_registered_forms():
    assert list(cli_laws.EQUATIONS) == list(FORMS)
    assert set(TRUTH) == set(FORMS), "a new form needs its plain equation and its truth in these tests"
    for name in set(FORMS) - {"data-constrained"}:
        assert cli_laws.EQUATIONS[name] == FORMS[name].equation


def test_a_form_declared_as_a_sum_of_terms_is_fitted_by_name():
    register(REPLAY)
    try:
        x = inputs(7)
        expected = 1.6 + 400 / x["n"] ** 0.36 + 600 * (x["r"] + 0.1) ** 0.5 / x["d"] ** 0.27
        assert form("replay").loss(REPLAY_TRUTH, n=x["n"], d=x["d"], r=x["r"]) == pytest.approx(expected, rel=1e-12)
        found = fit("replay", measured(REPLAY, REPLAY_TRUTH, noise=0.001), bootstrap=0, starts=16)
    finally:
        del FORMS["replay"]
    assert found.status == "converged" and found.values == pytest.approx(REPLAY_TRUTH, rel=0.05)
    assert REPLAY.identifies == {"n": ("alpha",), "d": ("beta",), "r": ("kappa",)}
    with pytest.raises(ConfigError, match="unknown"):
        form("replay")


def test_a_form_with_a_structure_of_its_own_is_fitted():
    found = fit(ONSET, measured(ONSET, ONSET_TRUTH), bootstrap=20, starts=16)
    assert found.status == "converged" and not found.unidentified
    assert found.values == pytest.approx(ONSET_TRUTH, rel=0.06)
    assert found.loss(d=ONSET_TRUTH["D_0"]) == pytest.approx(1.8 + 3 / 2**0.6, rel=1e-3)
