"""Compute-optimal allocations against the printed numbers of arXiv 2407.02118 and against direct minimisation."""

import numpy as np
import pytest
from scipy.optimize import minimize_scalar

from cptlab.laws import FORMS, optimal

SCRATCH = {"E": 1.55, "A": 420.0, "B": 719.5, "alpha": 0.40, "beta": 0.30}
CONTINUAL = {"E": 1.55, "A": 420.0, "B": 433.3, "alpha": 0.40, "beta": 0.20, "gamma": 0.08}


@pytest.mark.parametrize(
    ("law", "printed", "digits"),
    [(SCRATCH, ("0.429", "0.571", "0.324", "0.514"), ".3f"), (CONTINUAL, ("0.385", "0.615", "4.79", "0.035"), ".2g")],
    ids=["scratch", "continual"],
)
def test_printed_numbers_at_the_printed_precision(law, printed, digits):
    best = optimal.compute_optimal(law)
    assert (f"{best.a:.3f}", f"{best.b:.3f}", f"{best.n_factor:.3g}", f"{best.d_factor:{digits}}") == printed


@pytest.mark.parametrize("law", [SCRATCH, CONTINUAL, CONTINUAL | {"gamma": -0.1}], ids=["scratch", "continual", "negative gamma"])
@pytest.mark.parametrize("flops", [1e16, 1e20, 1e24])
def test_the_allocation_has_the_lowest_loss_of_its_compute(law, flops):
    best = optimal.compute_optimal(law)
    assert 6 * best.n(flops) * best.d(flops) == pytest.approx(flops, rel=1e-12)

    def loss(log_n: float) -> float:
        return float(optimal.loss(law, np.exp(log_n), flops / 6 / np.exp(log_n)))

    direct = minimize_scalar(loss, bounds=(0, np.log(flops)), method="bounded", options={"xatol": 1e-10})
    assert np.log(best.n(flops)) == pytest.approx(direct.x, abs=1e-4)
    assert optimal.frontier(law, flops) == pytest.approx(direct.fun, rel=1e-12)
    assert loss(np.log(best.n(flops)) + 0.1) > direct.fun < loss(np.log(best.n(flops)) - 0.1)


@pytest.mark.parametrize(("law", "form"), [(SCRATCH, "chinchilla"), (CONTINUAL, "continual")])
def test_loss_is_that_of_the_form(law, form):
    n, d = np.geomspace(1e6, 1e12, 7)[:, None], np.geomspace(1e8, 1e13, 5)
    assert optimal.loss(law, n, d) == pytest.approx(FORMS[form].loss(law, n=n, d=d), rel=1e-13)


@pytest.mark.parametrize("law", [SCRATCH, CONTINUAL], ids=["scratch", "continual"])
def test_tokens_for_a_loss_invert_the_law(law):
    n, d = np.array([5e7, 1e9, 7e10]), np.array([1e8, 1e11, 3e12])
    assert optimal.tokens_for(law, n, optimal.loss(law, n, d)) == pytest.approx(d, rel=1e-9)


def test_tokens_for_a_loss_that_the_size_never_reaches_are_infinite():
    floor = 1.55 + 420 / 1e9**0.4
    tokens = optimal.tokens_for(SCRATCH, 1e9, [floor + 0.1, floor - 1e-9, floor - 0.1, 1.0])
    assert np.isfinite(tokens[0]) and np.isposinf(tokens[1:]).all()
    assert np.isposinf(optimal.tokens_for(SCRATCH, [1e7, 1e12], 1.8)).tolist() == [True, False]


def test_arrays_of_parameters_broadcast_like_numbers():
    gammas, betas = np.array([0.0, 0.05, 0.08]), np.array([[0.2], [0.3]])
    law = CONTINUAL | {"gamma": gammas, "beta": betas}
    best, flops = optimal.compute_optimal(law), 1e21
    losses, tokens = optimal.frontier(law, flops), optimal.tokens_for(law, 1e9, 3.0)
    for row, beta in enumerate(betas[:, 0]):
        for column, gamma in enumerate(gammas):
            one = CONTINUAL | {"gamma": gamma, "beta": beta}
            alone = optimal.compute_optimal(one)
            assert best.a[row, column] == alone.a and best.n(flops)[row, column] == pytest.approx(alone.n(flops), rel=1e-13)
            assert best.d(flops)[row, column] == pytest.approx(alone.d(flops), rel=1e-13)
            assert losses[row, column] == pytest.approx(optimal.frontier(one, flops), rel=1e-13)
            assert tokens[row, column] == pytest.approx(optimal.tokens_for(one, 1e9, 3.0), rel=1e-13)
    assert optimal.frontier(SCRATCH, np.geomspace(1e18, 1e24, 4)).shape == (4,)


def test_a_gamma_of_zero_is_the_scratch_law():
    flops = np.geomspace(1e15, 1e25, 5)
    assert optimal.frontier(SCRATCH | {"gamma": 0.0}, flops).tolist() == optimal.frontier(SCRATCH, flops).tolist()


@pytest.mark.parametrize("gamma", [0.2, 0.21, 0.5, 0.6, 0.7])
def test_without_an_optimum_there_are_no_numbers(gamma):
    best = optimal.compute_optimal(CONTINUAL | {"gamma": gamma})
    assert np.isnan([best.a, best.b, best.n_factor, best.d_factor]).all()
    assert np.isnan(optimal.frontier(CONTINUAL | {"gamma": gamma}, 1e20))
    mixed = optimal.compute_optimal(CONTINUAL | {"gamma": np.array([0.08, gamma])})
    assert np.isfinite(mixed.a[0]) and np.isnan(mixed.a[1])
