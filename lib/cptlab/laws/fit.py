"""A fitted law with its certificate: :func:`fit` explores, refines, examines and resamples; :class:`Fit` is what it found."""

import math
import os
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
from threadpoolctl import threadpool_limits

from cptlab.errors import ConfigError, DataError
from cptlab.laws import certificate
from cptlab.laws.bootstrap import resample
from cptlab.laws.fitting import Point, Problem, explore, refine
from cptlab.laws.forms import Form, form
from cptlab.laws.table import Table, load
from cptlab.statistics import Estimate

STARTS = 64
DELTA = 1e-3


@dataclass(frozen=True)
class Fit:
    """A fitted law.

    ``parameters`` holds an :class:`~cptlab.statistics.Estimate` a parameter (value at full precision, 95 % percentile interval of the
    bootstrap; bounds NaN without one and for what moves along a direction that the losses do not feel, equal to the value when
    ``frozen``); ``objective`` the sum of Huber losses of log loss;
    ``status`` says whether it is a minimum; ``agreement`` the share of the ``starts`` that reached it; ``condition`` and
    ``unidentified`` what the data determine; ``rms_log_error`` the root mean square of log predicted - log measured on the fitted
    points; ``held_out`` the errors on the held-out ones; ``replicates`` the bootstrap refits, one row each; ``minima`` the distinct
    minima that refinement met, best first; ``record`` the record it was read from; ``warnings`` the reasons not to trust the fit.
    """

    form: Form
    parameters: Mapping[str, Estimate]
    frozen: tuple[str, ...]
    points: int
    objective: float
    status: str
    agreement: float
    starts: int
    condition: float
    unidentified: tuple[str, ...]
    rms_log_error: float
    held_out: Mapping[str, float] | None
    replicates: pd.DataFrame
    warnings: tuple[str, ...]
    huber_delta: float
    seed: int
    seconds: float
    minima: tuple[Mapping[str, float], ...] = field(default=(), repr=False)
    record: str | None = None

    @property
    def values(self) -> dict[str, float]:
        """Parameter values by name."""
        return {name: estimate.value for name, estimate in self.parameters.items()}

    def loss(self, **inputs) -> np.ndarray:
        """Predicted loss (nats) at n=, d=, ... (numbers or arrays that broadcast)."""
        return self.form.loss(self.values, **inputs)

    def derive(self, function: Callable[[dict[str, float]], float], confidence: float = 0.95) -> Estimate:
        """A quantity computed from the parameters, with the percentile interval of its values over the bootstrap replicates.

        Replicates that give NaN are left out, with a warning that says how many.
        """
        if not 0 < confidence < 1:
            raise ConfigError(f"confidence must lie between 0 and 1, got {confidence}")
        draws = np.array([float(function(row)) for row in self.replicates.to_dict("records")])
        there = draws[~np.isnan(draws)] if len(draws) else draws
        if len(there) < len(draws):
            warnings.warn(f"{1 - len(there) / len(draws):.0%} of the replicates have no such quantity (NaN) and are left out", stacklevel=2)
        low, high = np.percentile(there, [50 * (1 - confidence), 50 * (1 + confidence)]) if len(there) else (math.nan, math.nan)
        return Estimate(float(function(self.values)), float(low), float(high), self.points)

    def to_json(self) -> dict:
        """Everything but the replicates, as plain JSON values; a bound that is not known is null."""
        rows = {}
        for name, estimate in self.parameters.items():
            rows[name] = {"value": estimate.value, "low": _plain(estimate.low), "high": _plain(estimate.high)}
            if name in self.frozen:
                rows[name]["frozen"] = True
        own = {
            "form": self.form.name,
            "equation": self.form.equation,
            "parameters": rows,
            "objective": self.objective,
            "status": self.status,
        }
        own |= {"agreement": self.agreement, "condition": self.condition, "seconds": self.seconds, "warnings": list(self.warnings)}
        own |= {"unidentified": list(self.unidentified), "points": self.points, "starts": self.starts, "bootstrap": len(self.replicates)}
        own |= {"huber_delta": self.huber_delta, "rms_log_error": self.rms_log_error, "held_out": self.held_out, "seed": self.seed}
        return own | {"minima": [dict(row) for row in self.minima]}

    def __str__(self) -> str:
        lines = [f"{self.form.name}: {self.form.equation}", f"{self.points} points, Huber delta {self.huber_delta:g}, seed {self.seed}"]
        for name, estimate in self.parameters.items():
            mark = "frozen" if name in self.frozen else f"[{estimate.low:.5g}, {estimate.high:.5g}]"
            mark = "no interval" if math.isnan(estimate.low) else mark
            lines.append(f"  {name:9} {estimate.value:<12.6g} {mark}{'  NOT DETERMINED' if name in self.unidentified else ''}")
        lines.append(f"objective {self.objective:.8g} ({self.status}), reached by {self.agreement:.0%} of {self.starts} starts")
        lines.append(f"condition {self.condition:.3g}, rms error of log loss {self.rms_log_error:.3g}, {self.seconds:.2f} s")
        if self.held_out:
            held = self.held_out
            lines.append(
                f"held out: {held['points']} points, rms error of log loss {held['rms_log_error']:.3g}, mean {held['mean_log_error']:+.3g},"
                f" worst {held['worst_log_error']:+.3g}"
            )
        return "\n".join(lines + [f"warning: {text}" for text in self.warnings])


def _plain(value: float) -> float | None:
    return value if math.isfinite(value) else None


def fit(
    law: str | Form,
    data: pd.DataFrame | Mapping | str | Path,
    columns: Mapping[str, str] | None = None,
    *,
    freeze: Mapping[str, float] | None = None,
    huber_delta: float = DELTA,
    bootstrap: int = 4000,
    holdout: float | str | None = None,
    seed: int = 0,
    starts: int = STARTS,
    workers: int | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Fit:
    """Fit a scaling law to measured losses.

    Args:
        law: name of a form, or a :class:`~cptlab.laws.forms.Form` of your own.
        data: table, mapping of columns or path of a CSV file; ``columns`` maps roles (n, d, r, u, loss, group) to its columns. Rows of
            one ``group`` (evaluations of one run) are resampled together.
        freeze: parameters that keep a value (named scale); a coefficient frozen at 0 leaves its term out.
        huber_delta: where Huber's loss turns from square to linear.
        bootstrap: refits of resampled points behind the 95 % intervals; 0 for none.
        holdout: share of the rows (of whole groups), or a condition such as ``"tokens > 1e9"``: these are predicted, not fitted.
        seed: of the starts, the resampling and a hold-out by share.
        starts: how many starts Optuna explores and L-BFGS refines.
        workers: processes for the bootstrap (default: one a core). The result does not depend on it.
        progress: is told during the bootstrap how many refits are done, and of how many.

    Raises:
        DataError: a bad cell (row and column are named), too few points, or an input that does not vary although a free parameter
            needs it to.
        ConfigError: an unknown form, parameter, role or column.
    """
    law = form(law)
    huber_delta, seed = float(huber_delta), int(seed)
    if not 1e-9 <= huber_delta <= 1e3:
        raise ConfigError(f"huber_delta {huber_delta:g}: give a positive number from 1e-9 to 1e3; arXiv 2203.15556 takes 1e-3")
    if not 0 <= seed < 2**32:
        raise ConfigError(f"seed {seed}: give a whole number from 0 to {2**32 - 1}")
    if bootstrap != int(bootstrap) or not 0 <= bootstrap <= 1_000_000:
        raise ConfigError(f"bootstrap {bootstrap}: give a whole number of refits, 0 for none, at most a million")
    if starts < 1 or (workers is not None and workers < 1):
        raise ConfigError(f"starts {starts}, workers {workers}: give 1 or more")
    table = load(data, law, columns, holdout, seed)
    freeze = _frozen(law, freeze or {})
    with threadpool_limits(1, "blas"):  # the matrices are tiny: threads would only wait for one another
        return _fit(law, table, freeze, huber_delta, int(bootstrap), seed, starts, workers or _cores(), progress)


def _fit(
    law: Form,
    table: Table,
    freeze: dict[str, float],
    huber_delta: float,
    bootstrap: int,
    seed: int,
    starts: int,
    workers: int,
    progress: Callable[[int, int], None],
) -> Fit:
    began = time.perf_counter()
    problem = _problem(law, table, freeze, huber_delta)
    explored = explore(problem, starts, seed)
    ends = sorted((refine(problem, start) for start in explored), key=lambda end: end.objective)
    best, minima = _best(problem, ends), _minima(problem, ends)
    codes = table.groups[~table.held]
    others = [end.theta for end in minima[1:]] + explored
    replicates, notes = resample(problem, best.theta, others, codes, bootstrap, seed, workers, progress)
    if bootstrap:  # a refit may have come upon what the starts missed
        found = refine(problem, min(replicates, key=problem.objective))
        if not problem.same(best.objective, found.objective):
            notes["missed"] = True
            # One that ran off is no better, only further out, unless the best one did so too.
            if certificate.astray(problem, best.theta) or not certificate.astray(problem, found.theta):
                best, minima = _best(problem, [found, *ends]), _minima(problem, [found, *ends])
    agreement = sum(problem.same(end.objective, best.objective) for end in ends) / len(ends)
    low, high = (
        np.percentile(replicates, [2.5, 97.5], axis=0) if bootstrap else best.theta + np.outer([-2, 2], _spread(problem, best.theta))
    )
    loose = certificate.unidentified(problem, best.theta, low, high)
    unfelt = [law.names[place] for place in sorted(certificate.unfelt(problem, best.theta))]
    number = certificate.condition(problem, best.theta)
    residual = problem.residual(best.theta)
    notes["bootstrap"], notes["distinct"] = bootstrap, _distinct(table)
    notes["outside"] = [law.names[i] for i in problem.free if bootstrap and not low[i] <= best.theta[i] <= high[i]]
    held = _held_out(law, table, best.theta)
    notes["held_rms"] = held["rms_log_error"] if held else 0.0
    frozen = tuple(name for place, name in enumerate(law.names) if place not in problem.free)
    named = {p.name: freeze.get(p.name, p.named(replicates[:, i])) for i, p in enumerate(law.parameters)}
    draws = pd.DataFrame(named, index=range(bootstrap), columns=list(law.names), dtype=float)
    return Fit(
        form=law,
        parameters=_estimates(law, best.theta, draws, freeze, unfelt, len(residual)),
        frozen=frozen,
        points=len(residual),
        objective=best.objective,
        status=certificate.status(problem, best),
        agreement=agreement,
        starts=len(ends),
        condition=number,
        unidentified=tuple(loose),
        rms_log_error=math.sqrt(float(np.mean(residual**2))),
        held_out=held,
        replicates=draws,
        warnings=tuple(certificate.warnings(problem, best, ends, agreement, number, loose, notes)),
        huber_delta=huber_delta,
        seed=seed,
        seconds=time.perf_counter() - began,
        minima=tuple(law.named(end.theta) | {"objective": end.objective} for end in minima),
    )


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _problem(law: Form, table: Table, freeze: dict[str, float], delta: float) -> Problem:
    """The problem of the rows that are not held out; DataError when they cannot determine what is free."""
    start = np.zeros(len(law.names))
    if law.coupled:  # see project: the first pass needs terms that do not depend on the others
        start[law.index("A")] = 50.0
    for name, value in freeze.items():
        start[law.index(name)] = law.parameters[law.index(name)].internal(value)
    free = np.array([place for place, name in enumerate(law.names) if name not in freeze])
    if not len(free):
        raise ConfigError(f"every parameter of {law.name} is frozen: nothing is left to fit")
    kept = ~table.held
    points, rows = int(kept.sum()), _distinct(table)
    if rows <= len(free):
        kind = "different points" if rows < points else "points"
        raise DataError(
            f"{table.source} has {rows} {kind} to fit, the {len(free)} free parameters of {law.name} need at least {len(free) + 1}:"
            f" measure more, hold out fewer or freeze some of {', '.join(law.names[place] for place in free)}"
        )
    for role, needing in law.identifies.items():
        values = np.unique(table.inputs[role][kept])
        wanting = [name for name in needing if name not in freeze]
        if len(values) == 1 and wanting:
            raise DataError(
                f"{table.source}: column {table.columns[role]!r} has only one value, {values[0]:g}, in the rows to fit, which cannot tell"
                f" {', '.join(wanting)}: add rows with others, or freeze (--freeze {','.join(f'{name}=VALUE' for name in wanting)})"
            )
    x = law.prepare({role: values[kept] for role, values in table.inputs.items()})
    return Problem(law, x, np.log(table.loss[kept]), np.ones(points), delta, start, free)


def _frozen(law: Form, freeze: Mapping[str, float]) -> dict[str, float]:
    """The values to keep, as floats; with a coefficient at zero also the parameters that then do nothing."""
    found = {}
    for name, value in freeze.items():
        law.index(name)
        try:
            found[name] = float(value)
        except (TypeError, ValueError):
            raise ConfigError(f"freeze {name}={value!r}: that is not a number") from None
    zero = [name for name, value in found.items() if value == 0 and law.parameters[law.index(name)].coefficient]
    for name in law.idle(zero):
        parameter = law.parameters[law.index(name)]
        found.setdefault(name, parameter.low if parameter.log else 0.0)
    return found


def _best(problem: Problem, ends: list[Point]) -> Point:
    """The lowest end; among ends that are the same up to rounding one that converged."""
    lowest = min(ends, key=lambda end: end.objective)
    return next((end for end in ends if end.converged and problem.same(end.objective, lowest.objective)), lowest)


def _minima(problem: Problem, ends: list[Point]) -> list[Point]:
    """Of refined starts, sorted by objective: one for each distinct minimum."""
    found: list[Point] = []
    for end in ends:
        if end.converged and (not found or not problem.same(end.objective, found[-1].objective * (1 + 1e-4))):
            found.append(end)
    return found or ends[:1]


def _distinct(table: Table) -> int:
    """Rows to fit that are no copies of another."""
    columns = [*table.inputs.values(), table.loss]
    return len(np.unique(np.stack(columns, axis=1)[~table.held], axis=0))


def _spread(problem: Problem, theta: np.ndarray) -> np.ndarray:
    full = np.zeros(len(theta))
    full[problem.free] = certificate.spread(problem, theta)
    return full


def _estimates(
    law: Form, theta: np.ndarray, draws: pd.DataFrame, freeze: dict[str, float], unfelt: list[str], points: int
) -> dict[str, Estimate]:
    found = {}
    for name, value in law.named(theta).items():
        low, high = np.percentile(draws[name], [2.5, 97.5]) if len(draws) and name not in unfelt else (math.nan, math.nan)
        if name in freeze:
            value = low = high = freeze[name]
        found[name] = Estimate(value, float(low), float(high), points)
    return found


def _held_out(law: Form, table: Table, theta: np.ndarray) -> dict[str, float] | None:
    """Errors of the prediction, log predicted - log measured, on the held-out rows."""
    if not table.held.any():
        return None
    x = law.prepare({role: values[table.held] for role, values in table.inputs.items()})
    error = law.log_loss(theta, x)[0] - np.log(table.loss[table.held])
    worst = float(error[np.argmax(np.abs(error))])
    return {
        "points": len(error),
        "rms_log_error": math.sqrt(float(np.mean(error**2))),
        "mean_log_error": float(error.mean()),
        "worst_log_error": worst,
    }
