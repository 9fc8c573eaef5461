"""What a fit is worth: its condition, the parameters that the data do not determine, and warnings in words."""

from collections.abc import Mapping

import numpy as np

from cptlab.laws.fitting import Point, Problem

WIDE_FACTOR = 10.0  # a positive parameter whose interval spans more than this factor is not determined
WIDE_EXPONENT = 0.5  # nor is an exponent whose interval is wider
NULL = 1e-7  # singular values below this part of the largest are a direction that the data do not see
LOADING = 1e-3  # least weight of a parameter in such a direction
FADED = 1e-3  # a term that is nowhere a larger part of the loss than this
LOW_AGREEMENT = 0.5
HIGH_CONDITION = 1e4
FEW_POINTS = 3  # a free parameter
FEW_GROUPS = 8
FEW_REFITS = 100
BAD_FIT = 0.05  # typical error of log loss
OUTLIER = 10  # typical errors


def scaled_jacobian(problem: Problem, theta: np.ndarray) -> np.ndarray:
    """Derivatives of the log loss by the free internal coordinates, shape (points, free), each column of length one (or zero)."""
    jacobian = problem.jacobian(theta).T * np.sqrt(problem.weights)[:, None]
    lengths = np.linalg.norm(jacobian, axis=0)
    return jacobian / np.where(lengths > 0, lengths, 1.0)


def condition(problem: Problem, theta: np.ndarray) -> float:
    """Largest over smallest singular value of :func:`scaled_jacobian`: 1 for parameters that act independently, 1e16 (the most that floats
    can show) when some cannot be told apart. The internal coordinates are logarithms of positive parameters and plain exponents."""
    values = np.linalg.svd(scaled_jacobian(problem, theta), compute_uv=False)
    return float(values[0] / max(values[-1], 1e-16 * values[0]))


def spread(problem: Problem, theta: np.ndarray) -> np.ndarray:
    """Standard errors of the free internal coordinates from the linearised fit, infinite along directions the data do not see."""
    jacobian = problem.jacobian(theta).T * np.sqrt(problem.weights)[:, None]
    dof = max(len(problem.log_measured) - len(problem.free), 1)
    rms = np.sqrt(float(problem.weights @ problem.residual(theta) ** 2) / dof)
    _, values, rows = np.linalg.svd(jacobian, full_matrices=False)
    with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
        variance = (np.where(np.abs(rows) > 1e-6, rows, 0.0) ** 2 / (values[:, None] ** 2)) * rms**2
        return np.sqrt(np.nansum(variance, axis=0))


def unidentified(problem: Problem, theta: np.ndarray, low: np.ndarray, high: np.ndarray) -> list[str]:
    """Names of free parameters that the data do not determine.

    Those with weight in a direction that the losses do not feel, those of a term that has faded, and those whose 95 % interval
    (``low``, ``high``: full vectors of internal coordinates) spans a factor of 10, or 0.5 for an exponent.
    """
    form, found = problem.form, unfelt(problem, theta)
    scaled = scaled_jacobian(problem, theta)
    for place in problem.free:
        wide = np.log(WIDE_FACTOR) if form.parameters[place].log else WIDE_EXPONENT
        if not high[place] - low[place] <= wide:  # also NaN
            found.add(int(place))
    faint = faded(problem, theta)
    for place, column in zip(problem.free, scaled.T, strict=True):
        if not column.any() or form.names[place] in faint:
            found.add(int(place))
    found |= {form.index(name) for name in astray(problem, theta)}
    return [form.names[place] for place in sorted(found)]


def unfelt(problem: Problem, theta: np.ndarray) -> set[int]:
    """Places of free parameters with weight in a direction that the losses do not feel.

    Where along it a fit or a refit stops is an accident: such a parameter has a value to print and no interval.
    """
    _, values, rows = np.linalg.svd(scaled_jacobian(problem, theta), full_matrices=True)
    values = np.concatenate([values, np.zeros(len(rows) - len(values))])
    null = rows[values < NULL * values[0]]
    return {int(place) for place, weights in zip(problem.free, null.T, strict=True) if np.any(np.abs(weights) > LOADING)}


def typical(residual: np.ndarray) -> float:
    """Typical error of log loss, whatever a few rows do: the median absolute residual in units of a normal standard deviation."""
    return float(1.4826 * np.median(np.abs(residual)))


def faded(problem: Problem, theta: np.ndarray) -> list[str]:
    """Free coefficients whose term is nowhere more than a thousandth of the sum."""
    terms, _ = problem.form.terms(theta, problem.x)
    shares = np.exp(terms - terms.max(axis=0))
    peaks = (shares / shares.sum(axis=0)).max(axis=1)
    places = [place for place, parameter in enumerate(problem.form.parameters) if parameter.coefficient]
    return [problem.form.names[place] for place, peak in zip(places, peaks, strict=True) if place in problem.free and peak < FADED]


def astray(problem: Problem, theta: np.ndarray) -> list[str]:
    """Free parameters that ran off to where they hardly change the loss: a thousand times outside their range or an exponent beyond 10, and
    with a standard error of more than a twentieth."""
    found, errors = [], spread(problem, theta)
    for place, error in zip(problem.free, errors, strict=True):
        parameter, value = problem.form.parameters[place], theta[place]
        if parameter.coefficient:
            continue
        if parameter.log:
            off = not np.log(parameter.low) - np.log(1e3) <= value <= np.log(parameter.high) + np.log(1e3) and not error < 0.05
        else:
            off = abs(value) > 10 and not error < 0.05 * abs(value)
        if off:
            found.append(parameter.name)
    return found


def status(problem: Problem, best: Point) -> str:
    """``converged``; ``no finite optimum`` when a parameter runs off; ``not converged`` when refinement stopped before a minimum."""
    if astray(problem, best.theta):
        return "no finite optimum"
    return "converged" if best.converged else "not converged"


def warnings(
    problem: Problem, best: Point, ends: list[Point], agreement: float, number: float, loose: list[str], notes: Mapping
) -> list[str]:
    """Reasons not to trust a fit, in words. ``notes`` holds what the bootstrap and the hold-out have to say."""
    form, theta, said = problem.form, best.theta, []
    rows, free = int(notes["distinct"]), len(problem.free)
    copies = len(problem.log_measured) - rows
    if rows < FEW_POINTS * free:
        said.append(f"{rows} points for {free} free parameters: fewer than {FEW_POINTS} a parameter; the fit can follow noise")
    if copies:
        said.append(f"{copies} rows are copies of others: they are no further evidence, and the intervals are too narrow; leave them out")
    residual = problem.residual(theta)
    usual = typical(residual)
    if usual > BAD_FIT:
        said.append(f"the law misses the losses by {usual:.0%} (typical error): it does not describe them")
    far = int((np.abs(residual) > OUTLIER * usual).sum()) if usual > 1e-9 else 0
    if far:
        worst = int(np.argmax(np.abs(residual)))
        said.append(
            f"{far} of {len(residual)} rows lie more than {OUTLIER} typical errors from the law, the worst by {residual[worst]:+.1%}"
            f" at a loss of {np.exp(problem.log_measured[worst]):.4g}: look at them"
        )
    gone = astray(problem, theta)
    if gone:
        values = ", ".join(f"{name} = {form.named(theta)[name]:.3g}" for name in gone)
        said.append(f"the objective has no finite optimum: {values} still moves away without changing the losses")
    elif not best.converged:
        said.append("refinement stopped before a minimum: do not use the parameters")
    if agreement < LOW_AGREEMENT and len(ends) > 1:
        others = sorted({float(f"{end.objective:.4g}") for end in ends if not problem.same(end.objective, best.objective)})
        said.append(
            f"only {agreement:.0%} of {len(ends)} starts reached the optimum: others ended at objectives from {others[0]:.4g} to"
            f" {others[-1]:.4g} against {best.objective:.4g}; there may be a better one still"
        )
    near = [end for end in ends if end.objective <= best.objective * 1.01 or problem.same(end.objective, best.objective)]
    apart = [
        form.names[place] for place in problem.free if any(_apart(form.parameters[place], end.theta[place], theta[place]) for end in near)
    ]
    if apart:
        said.append(
            f"a flat valley: starts that ended within 1 % of the optimum's objective differ in {', '.join(apart)} by more than a quarter"
        )
    faint = faded(problem, theta)
    if faint:
        said.append(f"the term of {', '.join(faint)} is nowhere more than {FADED:.1%} of the loss: the data do not show it")
    if number > HIGH_CONDITION:
        said.append(f"condition number {number:.1e}: some parameters stand in for one another")
    if loose:
        said.append(f"not determined by these data: {', '.join(loose)}; freeze them or measure where they matter")
    values = form.named(theta)
    falling = [name for name in ("alpha", "beta", "eta") if name in form.names and form.index(name) in problem.free and values[name] <= 0]
    if falling:
        said.append(f"{', '.join(falling)} came out at or below zero, against the meaning of the law")
    if notes.get("missed"):
        said.append("the starts missed a lower objective that a bootstrap refit came upon: try more starts; the intervals are rough")
    if notes.get("outside"):
        said.append(f"the value of {', '.join(notes['outside'])} lies outside its own interval: fit and refits ended in different places")
    if 0 < notes.get("groups", FEW_GROUPS) < FEW_GROUPS:
        said.append(f"intervals from {notes['groups']} independent runs only")
    if 0 < notes["bootstrap"] < FEW_REFITS:
        said.append(f"intervals from {notes['bootstrap']} refits only: they are rough")
    if notes.get("unsettled", 0) > 0.05:
        said.append(f"{notes['unsettled']:.0%} of the bootstrap refits did not settle: the intervals are rough")
    if notes.get("redrawn", 0) > 0.05:
        said.append(
            f"{notes['redrawn']:.0%} of the bootstrap samples had too few different points, others took their place: intervals too narrow"
        )
    if notes["held_rms"] > 3 * usual > 0:
        said.append(f"on held-out points the error is {notes['held_rms'] / usual:.1f} times the typical one on the fitted points")
    return said


def _apart(parameter, a: float, b: float) -> bool:
    """Whether two internal values differ by more than a quarter."""
    return abs(a - b) > (np.log(1.25) if parameter.log else 0.25 * max(abs(a), abs(b)))
