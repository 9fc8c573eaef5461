"""Bootstrap of a fit: points (or whole runs) drawn with replacement, each sample fitted from the optimum and from three other starts."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from cptlab.errors import DataError
from cptlab.laws.fitting import Problem, descend, project, whitening

OTHERS = 3
TOLERANCE = 1e-2  # of the whitened gradient: a hundredth of a Gauss-Newton step, small against the spread between samples
SERIAL = 200  # up to here processes cost more than they save
ATTEMPTS = 100
PART = 50  # samples, at most: so often progress is told


def resample(
    problem: Problem,
    optimum: np.ndarray,
    others: list[np.ndarray],
    groups: np.ndarray,
    count: int,
    seed: int,
    workers: int,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[np.ndarray, dict[str, float]]:
    """Refits of ``count`` samples, internal coordinates of shape (count, P).

    ``groups`` (one code a point) are drawn whole. Each sample is fitted from the ``optimum`` and three of ``others``; the lowest
    objective counts. Sample i depends on ``seed`` and i alone. The second value tells the shares of samples ``redrawn`` and
    ``unsettled`` and the number of ``groups``. ``progress`` is told again and again how many samples are done, and of how many.
    """
    if not count:
        return np.empty((0, len(optimum))), {}
    codes, groups = np.unique(groups, return_inverse=True)
    if len(codes) < 2:
        raise DataError(
            "all rows belong to one run: a bootstrap of whole runs needs several; fit without it (bootstrap 0) or leave the group out"
        )
    starts = _spaced(others)
    basis = whitening(problem, optimum)
    parts = np.array_split(np.arange(count), min(max(4 * workers, -(-count // PART)), count))
    if workers == 1 or count <= SERIAL:
        results = (_refits(problem, optimum, starts, basis, groups, part, seed) for part in parts)
    else:
        from joblib import Parallel, delayed

        jobs = (delayed(_refits)(problem, optimum, starts, basis, groups, part, seed) for part in parts)
        results = Parallel(n_jobs=workers, return_as="generator")(jobs)
    progress(0, count)
    found, done = [], 0
    for part in results:
        found.append(part)
        done += len(part[0])
        progress(done, count)
    redrawn, unsettled = (sum(part[at] for part in found) / count for at in (1, 2))
    return np.concatenate([part[0] for part in found]), {"redrawn": redrawn, "unsettled": unsettled, "groups": len(codes)}


def _spaced(others: list[np.ndarray]) -> list[np.ndarray]:
    """Three of a list whose first entries are the most promising: the first, and two more within its best quarter."""
    best = max(len(others) // 4, min(len(others), OTHERS))
    return [others[at] for at in sorted({0, best // 3, 2 * best // 3})] if others else []


def _refits(
    problem: Problem, optimum: np.ndarray, starts: list[np.ndarray], basis: np.ndarray, groups: np.ndarray, samples: np.ndarray, seed: int
) -> tuple[np.ndarray, int, int]:
    found, redrawn, unsettled = np.empty((len(samples), len(optimum))), 0, 0
    for row, sample in enumerate(samples):
        weights, attempts = _draw(problem, groups, np.random.default_rng([seed, int(sample)]))
        redrawn += attempts > 1
        part = weights > 0  # points that were not drawn cost time and change nothing
        x = {name: values[..., part] for name, values in problem.x.items()}
        drawn = replace(problem, x=x, log_measured=problem.log_measured[part], weights=weights[part])
        origins = [optimum, *(project(drawn, start) for start in starts)]
        ends = [descend(drawn, origin, basis, tolerance=TOLERANCE) for origin in origins]
        best = min(ends, key=lambda end: end.objective)
        unsettled += best.gradient > 10 * TOLERANCE
        found[row] = best.theta
    return found, redrawn, unsettled


def _draw(problem: Problem, groups: np.ndarray, generator: np.random.Generator) -> tuple[np.ndarray, int]:
    """How often each point was drawn, and in how many attempts; a sample that cannot determine the free parameters is drawn again."""
    count = int(groups.max()) + 1
    law = problem.form
    for attempt in range(1, ATTEMPTS + 1):
        weights = np.bincount(generator.integers(0, count, count), minlength=count)[groups].astype(float)
        part = weights > 0
        varied = all(
            np.ptp(problem.x[role][part]) > 0
            for role, names in law.identifies.items()
            if any(law.index(name) in problem.free for name in names)
        )
        if varied and part.sum() > len(problem.free):
            return weights, attempt
    raise DataError(
        f"the bootstrap found no sample in {ATTEMPTS} that can determine {law.name}: there are too few different points for intervals;"
        " fit without them (bootstrap 0) or freeze parameters"
    )
