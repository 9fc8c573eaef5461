"""Fitting a law: a Huber loss on the logarithm of the loss, summed; starts explored by Optuna, each refined by L-BFGS.

The objective is that of arXiv 2203.15556, appendix D.3: sum of Huber(log predicted - log measured) with delta = 1e-3. Summed, not
averaged, and minimised in whitened coordinates with tight tolerances: an averaged sum is so small that default tolerances stop at once.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize, nnls

from cptlab.laws.forms import Form

TOLERANCE = 1e-5  # of the gradient in whitened coordinates, where 1 is one step of Gauss and Newton
UNIT = 1e-3  # of log loss: the objective is minimised in units of its square (of delta's, when that is smaller)
SAME = 1e-6  # relative difference of objectives that counts as the same optimum
NOTHING = 1e-8  # as much a point, in units of UNIT^2, counts as the same where the fit is exact
RIDGE = 1e-12
ROUNDS = 6
ITERATIONS = 200  # of L-BFGS in one round


def huber(residual: np.ndarray, delta: float) -> np.ndarray:
    """Huber's loss: r^2 / 2 up to delta, then delta (|r| - delta / 2)."""
    size = np.abs(residual)
    inside = np.minimum(size, delta)
    return inside * (size - inside / 2)


@dataclass(frozen=True)
class Problem:
    """A form, data and what is frozen: a function of the free internal coordinates.

    ``log_measured`` has shape (points,), ``weights`` too (how often a point counts); ``start`` is a full vector of internal coordinates
    whose entries at ``free`` (positions) are varied.
    """

    form: Form
    x: Mapping[str, np.ndarray]
    log_measured: np.ndarray
    weights: np.ndarray
    delta: float
    start: np.ndarray
    free: np.ndarray

    @property
    def unit(self) -> float:
        """The log loss that counts as one where gradients are compared with tolerances."""
        return min(self.delta, UNIT)

    def same(self, objective: float, best: float) -> bool:
        """Whether an objective is that of the best optimum, up to rounding."""
        return objective <= best * (1 + SAME) + NOTHING * len(self.log_measured) * self.unit**2

    def residual(self, theta: np.ndarray) -> np.ndarray:
        """log predicted - log measured, shape (points,)."""
        return self.form.log_loss(theta, self.x)[0] - self.log_measured

    def objective(self, theta: np.ndarray) -> float:
        """Sum of the weighted Huber losses."""
        return float(self.weights @ huber(self.residual(theta), self.delta))

    def jacobian(self, theta: np.ndarray) -> np.ndarray:
        """Derivative of the log loss by the free coordinates, shape (free, points)."""
        return self.form.log_loss(theta, self.x)[1][self.free]

    def curvature(self, theta: np.ndarray) -> np.ndarray:
        """Gauss-Newton matrix of the objective, shape (free, free); residuals beyond delta weigh delta / |r| (iterative re-weighting)."""
        value, slope = self.form.log_loss(theta, self.x)
        size = np.maximum(np.abs(value - self.log_measured), 1e-300)
        slope = slope[self.free]
        return (slope * (self.weights * np.minimum(1.0, self.delta / size))) @ slope.T


@dataclass(frozen=True)
class Point:
    """Where a refinement ended: full internal coordinates, objective, norm of the whitened gradient, and whether it is a minimum."""

    theta: np.ndarray
    objective: float
    gradient: float

    @property
    def converged(self) -> bool:
        """Whether the gradient vanished."""
        return self.gradient <= TOLERANCE


def whitening(problem: Problem, theta: np.ndarray) -> np.ndarray:
    """Columns that span the free coordinates and in which the objective's curvature at ``theta`` is about one, shape (P, free).

    A direction that the data leave flat gets a bounded step.
    """
    values, vectors = np.linalg.eigh(problem.curvature(theta) / problem.unit**2)
    scale = 1 / np.sqrt(np.maximum(values, RIDGE * max(values.max(), 1.0)))
    basis = np.zeros((len(theta), len(problem.free)))
    basis[problem.free] = vectors * np.minimum(scale, 1.0)
    return basis


def descend(problem: Problem, origin: np.ndarray, basis: np.ndarray, iterations: int = ITERATIONS, tolerance: float = TOLERANCE) -> Point:
    """One run of L-BFGS from ``origin`` over the columns of ``basis``, on the objective over unit^2."""
    log_loss, x, measured, delta = problem.form.log_loss, problem.x, problem.log_measured, problem.delta
    weights = problem.weights / problem.unit**2

    def function(z: np.ndarray) -> tuple[float, np.ndarray]:
        value, slope = log_loss(origin + basis @ z, x)
        residual = value - measured
        inside = np.minimum(np.maximum(residual, -delta), delta)
        pull = weights * inside
        return float(pull @ (residual - inside / 2)), (slope @ pull) @ basis

    options = {"maxiter": iterations, "maxfun": 4 * iterations, "maxcor": 20, "ftol": 0.0, "gtol": tolerance}
    found = minimize(function, np.zeros(basis.shape[1]), jac=True, method="L-BFGS-B", options=options)
    return Point(origin + basis @ found.x, float(found.fun) * problem.unit**2, float(np.abs(found.jac).max()))


def refine(problem: Problem, start: np.ndarray) -> Point:
    """L-BFGS from a start until the gradient vanishes; the coordinates are whitened anew whenever it stops early."""
    found = Point(start, np.inf, np.inf)
    for round_ in range(ROUNDS):
        last, found = found, descend(problem, found.theta, whitening(problem, found.theta), 40 if round_ == 0 else ITERATIONS)
        if found.converged or (round_ > 1 and found.objective >= last.objective * (1 - SAME / 10)):
            break
    return found


def project(problem: Problem, theta: np.ndarray) -> np.ndarray:
    """Variable projection: the free coefficients that suit the other coordinates of ``theta`` best.

    Given the exponents a law is linear in its coefficients, so non-negative least squares on relative errors gives them at once; only the
    exponents need to be searched. A term that comes out as zero keeps a ten-thousandth of the loss, so that refinement can bring it back.
    """
    form = problem.form
    at = [place for place, parameter in enumerate(form.parameters) if parameter.coefficient]
    loose = np.isin(at, problem.free)
    if not loose.any():
        return theta
    theta = theta.copy()
    power = 1.0 if form.outer is None else np.exp(theta[form.index(form.outer)])
    scale = np.sqrt(problem.weights)
    for _ in range(3 if form.coupled else 1):
        terms, slopes = form.terms(theta, problem.x)
        factors = np.array([slopes[place, k, 0] for k, place in enumerate(at)]) if not form.coupled else np.ones(len(at))
        columns = np.exp(np.clip(terms - problem.log_measured / power, -600, 600))  # each term as a share of the measured loss
        rest = 1 - columns[~loose].sum(axis=0)
        peaks = columns[loose].max(axis=1)
        shares, _ = nnls((columns[loose] / peaks[:, None] * scale).T, rest * scale)
        shares = np.maximum(shares, 1e-4) / peaks
        theta[np.array(at)[loose]] += np.log(shares) / factors[loose]
    return theta


def explore(problem: Problem, starts: int, seed: int) -> list[np.ndarray]:
    """``starts`` vectors of internal coordinates, best first, that Optuna finds: the free exponents are searched in their ranges (half of
    the trials at random, the rest by a tree of Parzen estimators), the coefficients projected."""
    import optuna

    searched = [place for place in problem.free if not problem.form.parameters[place].coefficient]
    if not searched:
        return [project(problem, problem.start)]
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=seed, n_startup_trials=starts // 2, multivariate=True))
    space = {}
    for place in searched:
        parameter = problem.form.parameters[place]
        space[parameter.name] = optuna.distributions.FloatDistribution(parameter.low, parameter.high, log=parameter.log)
    found = []
    for _ in range(starts):
        trial = study.ask(space)
        theta = problem.start.copy()
        for place in searched:
            parameter = problem.form.parameters[place]
            theta[place] = parameter.internal(trial.params[parameter.name])
        theta = project(problem, theta)
        value = problem.objective(theta)
        study.tell(trial, value)
        found.append((value, theta))
    return [theta for _, theta in sorted(found, key=lambda pair: pair[0])]
