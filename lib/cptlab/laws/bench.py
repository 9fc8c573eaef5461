"""Speed of a certified fit, side by side with the plain recipe: a grid of 4,500 starts, each refined with numeric gradients.

The plain recipe is that of arXiv 2203.15556, appendix D.3, as it is usually copied: every start of its grid, scipy's L-BFGS with default
tolerances and finite differences. It is timed with the objective summed and, since that is a common slip, averaged.
"""

import itertools
import statistics
import time

import numpy as np
from scipy.optimize import minimize
from threadpoolctl import threadpool_limits

from cptlab.laws.fit import DELTA, fit
from cptlab.laws.fitting import huber
from cptlab.laws.forms import form
from cptlab.runs.provenance import collect

TRUTH = {"E": 1.82, "A": 482.0, "B": 2085.0, "alpha": 0.348, "beta": 0.366}  # near the refit of arXiv 2404.10102
POINTS, NOISE, BOOTSTRAP, PLAIN_REPLICATES = 240, 0.005, 4000, 100
GRID = {
    "e": np.arange(-1, 1.5, 0.5),
    "a": np.arange(0, 30, 5),
    "b": np.arange(0, 30, 5),
    "alpha": np.arange(0, 2.5, 0.5),
    "beta": np.arange(0, 2.5, 0.5),
}


def measure(starts_of_grid: int | None = None) -> dict:
    """Seconds and objectives of both recipes on the same 240 synthetic points (minutes). ``starts_of_grid``: only the first so many."""
    data = points()
    grid = np.array(list(itertools.product(*GRID.values())))[:starts_of_grid]
    with threadpool_limits(1, "blas"):
        summed, averaged = plain(data, grid, 1.0), plain(data, grid, 1 / POINTS)
        replicates = _plain_replicates(data, np.array(summed["theta"]))
    ours = [_timed(lambda: fit("chinchilla", data, bootstrap=0)) for _ in range(5)]
    seconds, found = _timed(lambda: fit("chinchilla", data, bootstrap=BOOTSTRAP))
    alone = statistics.median(taken for taken, _ in ours)
    return {
        "points": POINTS,
        "noise_of_log_loss": NOISE,
        "plain_starts": len(grid),
        "plain_summed": summed,
        "plain_averaged": averaged,
        "plain_seconds_per_replicate": replicates,
        "plain_seconds_for_4000_replicates_extrapolated": replicates * BOOTSTRAP,
        "fit_seconds": alone,
        "fit_starts": found.starts,
        "fit_objective": found.objective,
        "fit_agreement": found.agreement,
        "fit_parameters": found.values,
        "bootstrap_replicates": BOOTSTRAP,
        "bootstrap_refits": 4 * BOOTSTRAP,
        "bootstrap_seconds": seconds - alone,
        "speedup_fit": summed["seconds"] / alone,
        "speedup_replicates": replicates * BOOTSTRAP / (seconds - alone),
        "provenance": collect(),
    }


def points() -> dict[str, np.ndarray]:
    """240 runs, log-uniform in parameters (40M to 16B) and in tokens a parameter (2 to 200), with noise."""
    generator = np.random.default_rng(0)
    n = np.exp(generator.uniform(np.log(4e7), np.log(1.6e10), POINTS))
    d = n * np.exp(generator.uniform(np.log(2), np.log(200), POINTS))
    loss = form("chinchilla").loss(TRUTH, n=n, d=d) * np.exp(generator.normal(0, NOISE, POINTS))
    return {"params": n, "tokens": d, "loss": loss}


def plain(data: dict[str, np.ndarray], grid: np.ndarray, scale: float) -> dict:
    """The plain recipe: seconds, best objective (as a sum), share of starts within a millionth of it, share that reported success."""
    objective = _plain_objective(data, np.ones(POINTS), scale)
    began = time.perf_counter()
    ends = [minimize(objective, start, method="L-BFGS-B") for start in grid]
    seconds = time.perf_counter() - began
    best = min(ends, key=lambda end: end.fun)
    agreement = float(np.mean([end.fun <= best.fun * (1 + 1e-6) for end in ends]))
    success = float(np.mean([end.success for end in ends]))
    return {
        "seconds": seconds,
        "objective": best.fun / scale,
        "agreement": agreement,
        "reported_success": success,
        "theta": best.x.tolist(),
    }


def _plain_objective(data: dict[str, np.ndarray], weights: np.ndarray, scale: float):
    log_n, log_d, log_loss = (np.log(data[name]) for name in ("params", "tokens", "loss"))

    def objective(theta: np.ndarray) -> float:
        e, a, b, alpha, beta = theta
        terms = np.stack([np.full_like(log_n, e), a - alpha * log_n, b - beta * log_d])
        top = terms.max(axis=0)
        residual = top + np.log(np.exp(terms - top).sum(axis=0)) - log_loss
        return scale * float(weights @ huber(residual, DELTA))

    return objective


def _plain_replicates(data: dict[str, np.ndarray], start: np.ndarray) -> float:
    """Seconds a bootstrap replicate takes when refitted from the optimum alone."""
    generator = np.random.default_rng(0)
    began = time.perf_counter()
    for _ in range(PLAIN_REPLICATES):
        weights = np.bincount(generator.integers(0, POINTS, POINTS), minlength=POINTS).astype(float)
        minimize(_plain_objective(data, weights, 1.0), start, method="L-BFGS-B")
    return (time.perf_counter() - began) / PLAIN_REPLICATES


def _timed(work) -> tuple:
    began = time.perf_counter()
    found = work()
    return time.perf_counter() - began, found
