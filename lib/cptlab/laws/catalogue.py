"""The five laws of the works: three sums of power terms, and two with a structure of their own."""

from dataclasses import dataclass

import numpy as np

from cptlab.laws.forms import Form, PowerSum, Term, bounded_exp, coefficient, exponent, positive, register


@dataclass(frozen=True)
class Kaplan(Form):
    """The joint law of arXiv 2001.08361: a sum of two terms to a power."""

    def terms(self, theta, x):
        """See :meth:`Form.terms`."""
        log_n_c, log_d_c, log_alpha, log_beta = theta
        ratio = bounded_exp(log_alpha - log_beta)
        over = log_n_c - x["log_n"]
        slopes = np.zeros((4, 2, len(over)))
        slopes[0, 0], slopes[1, 1] = ratio, 1.0
        slopes[2, 0], slopes[3, 0] = ratio * over, -ratio * over
        return np.stack([ratio * over, log_d_c - x["log_d"]]), slopes


@dataclass(frozen=True)
class DataConstrained(Form):
    """Repeated data and surplus parameters are worth exponentially less; arXiv 2305.16264, equations 5 and 6, and appendix A."""

    def terms(self, theta, x):
        """See :meth:`Form.terms`."""
        log_e, log_a, log_b, log_alpha, log_beta, log_rd, log_rn = theta
        alpha, beta = bounded_exp(log_alpha), bounded_exp(log_beta)
        # Parameters that are compute-optimal for the unique tokens: G (G U)^(beta/alpha); fewer than that are all worth their number.
        unique = np.minimum(x["log_u"], x["log_d"])
        g = (log_alpha + log_a - log_beta - log_b) / (alpha + beta)
        base = g + beta / alpha * (g + unique)
        below = base < x["log_n"]
        base = np.minimum(base, x["log_n"])
        d, by_rd, _ = _saturated(unique, x["log_d"], log_rd)
        n, by_rn, by_base = _saturated(base, x["log_n"], log_rn)
        # Derivatives of g and of base; log_alpha and log_beta are the coordinates.
        g_by = {1: 1.0, 2: -1.0, 3: 1.0 - alpha * g, 4: -1.0 - beta * g}
        base_by = {at: (1 + beta / alpha) * slope / (alpha + beta) for at, slope in g_by.items()}
        extra = beta / alpha * (g + unique)
        slopes = np.zeros((7, 3, len(unique)))
        for at in g_by:
            shift = base_by[at] + (0 if at < 3 else -extra if at == 3 else extra)
            slopes[at, 1] = -alpha * by_base * below * shift
        slopes[0, 0] = 1.0
        slopes[1, 1] += 1.0
        slopes[2, 2] = 1.0
        slopes[3, 1] -= alpha * n
        slopes[4, 2] = -beta * d
        slopes[5, 2] = -beta * by_rd
        slopes[6, 1] = -alpha * by_rn
        return np.stack([np.full_like(n, log_e), log_a - alpha * n, log_b - beta * d]), slopes


def _saturated(log_base: np.ndarray, log_total: np.ndarray, log_half: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """log of U (1 + R* (1 - exp(-R / R*))) with U = base, R = total / U - 1, R* = exp(log_half); derivatives by log R* and by log U."""
    half = bounded_exp(log_half)
    repeats = np.expm1(np.clip(log_total - log_base, 0.0, 200.0))
    decay = np.exp(-repeats / half)
    worth = 1 - half * np.expm1(-repeats / half)
    by_half = (half * (1 - decay) - repeats * decay) / worth
    return log_base + np.log(worth), by_half, 1 - (repeats + 1) * decay / worth


E, A, B = coefficient("E"), coefficient("A"), coefficient("B")
ALPHA, BETA = exponent("alpha"), exponent("beta")

register(
    Kaplan(
        name="kaplan",
        equation="L = ((N_c/n)^(alpha/beta) + D_c/d)^beta",
        source="arXiv 2001.08361, equation 1.5 (alpha and beta are its alpha_N and alpha_D)",
        parameters=(coefficient("N_c"), coefficient("D_c"), positive("alpha", 0.02, 1.0), positive("beta", 0.02, 1.0)),
        identifies={"n": ("alpha",), "d": ("beta",)},
        outer="beta",
    )
)
register(
    PowerSum(
        name="chinchilla",
        equation="L = E + A/n^alpha + B/d^beta",
        source="arXiv 2203.15556, equation 2; the scratch law of arXiv 2407.02118",
        parameters=(E, A, B, ALPHA, BETA),
        sum=(Term("E"), Term("A", over={"n": "alpha"}), Term("B", over={"d": "beta"})),
    )
)
register(
    PowerSum(
        name="continual",
        equation="L = E + A/n^alpha + B/(d^beta n^gamma)",
        source="arXiv 2407.02118, the continual law (B, beta and gamma are its B', beta' and gamma)",
        parameters=(E, A, B, ALPHA, BETA, exponent("gamma", -0.3, 0.5)),
        sum=(Term("E"), Term("A", over={"n": "alpha"}), Term("B", over={"d": "beta", "n": "gamma"})),
    )
)
register(
    DataConstrained(
        name="data-constrained",
        equation="L = E + A/n'^alpha + B/d'^beta, d' = u (1 + R_D_star (1 - exp(-(d/u - 1)/R_D_star))), n' likewise",
        source="arXiv 2305.16264, equations 5 and 6",
        parameters=(
            E,
            A,
            B,
            positive("alpha", 0.1, 1.0),
            positive("beta", 0.1, 1.0),
            positive("R_D_star", 1, 100),
            positive("R_N_star", 1, 100),
        ),
        inputs=("n", "d", "u"),
        identifies={"n": ("alpha", "R_N_star"), "d": ("beta", "R_D_star")},
        coupled=True,
    )
)
register(
    PowerSum(
        name="dcpt",
        equation="L = E + A/n^alpha + B r^eta/d^beta + C/(r + eps)^gamma",
        source="arXiv 2406.01375, the D-CPT law",
        parameters=(
            E,
            A,
            B,
            coefficient("C"),
            ALPHA,
            BETA,
            exponent("gamma", 0.05, 2.0),
            exponent("eta", 0.1, 3.0),
            positive("eps", 1e-3, 1.0),
        ),
        inputs=("n", "d", "r"),
        sum=(
            Term("E"),
            Term("A", over={"n": "alpha"}),
            Term("B", over={"d": "beta"}, times={"r": "eta"}),
            Term("C", over={"r": "gamma"}, shift={"r": "eps"}),
        ),
    )
)
