"""What follows from the laws of arXiv 2203.15556 and 2407.02118: compute-optimal sizes, frontiers, tokens for a loss.

Parameters come as a mapping with E, A, B, alpha, beta and, for the continual law, gamma (0 where it is missing). Its values may be arrays,
such as draws of a bootstrap or of a rounding box; results broadcast. C = 6 n d training FLOPs (arXiv 2001.08361, section 2.1).
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

FLOPS_PER_TOKEN = 6.0  # and parameter


@dataclass(frozen=True)
class Optimal:
    """n = n_factor C^a parameters and d = d_factor C^b tokens have the lowest loss at C FLOPs (arXiv 2407.02118)."""

    a: np.ndarray
    b: np.ndarray
    n_factor: np.ndarray
    d_factor: np.ndarray

    def n(self, flops: ArrayLike) -> np.ndarray:
        """Optimal parameters at ``flops``."""
        return self.n_factor * np.asarray(flops, dtype=float) ** self.a

    def d(self, flops: ArrayLike) -> np.ndarray:
        """Optimal tokens at ``flops``."""
        return self.d_factor * np.asarray(flops, dtype=float) ** self.b


def _terms(law: Mapping[str, ArrayLike]) -> tuple[np.ndarray, ...]:
    return tuple(np.asarray(law[name], dtype=float) for name in ("E", "A", "B", "alpha", "beta")) + (
        np.asarray(law.get("gamma", 0.0), dtype=float),
    )


def loss(law: Mapping[str, ArrayLike], n: ArrayLike, d: ArrayLike) -> np.ndarray:
    """E + A/n^alpha + B/(d^beta n^gamma), in nats; parameters, ``n`` and ``d`` broadcast."""
    e, a, b, alpha, beta, gamma = _terms(law)
    n, d = np.asarray(n, dtype=float), np.asarray(d, dtype=float)
    return e + a * n**-alpha + b * d**-beta * n**-gamma


def tokens_for(law: Mapping[str, ArrayLike], n: ArrayLike, target: ArrayLike) -> np.ndarray:
    """Tokens at which the law reaches the loss ``target`` with ``n`` parameters; infinite where it never does."""
    e, a, b, alpha, beta, gamma = _terms(law)
    n = np.asarray(n, dtype=float)
    rest = np.asarray(target, dtype=float) - e - a * n**-alpha
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        tokens = (b * n**-gamma / rest) ** (1 / beta)
    return np.where(rest > 0, tokens, np.inf)


def compute_optimal(law: Mapping[str, ArrayLike]) -> Optimal:
    """The allocation of lowest loss at given FLOPs: n = G (C/6)^a and d = (C/6)^b / G with a = beta / (alpha + beta - gamma), b = 1 - a and
    G = (alpha A / ((beta - gamma) B))^(1 / (alpha + beta - gamma)).

    NaN where there is no optimum: gamma not below beta (more parameters are always better), alpha, A or B not above zero.
    """
    _, a, b, alpha, beta, gamma = _terms(law)
    whole = alpha + beta - gamma
    there = (beta > gamma) & (alpha > 0) & (a > 0) & (b > 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        g = np.where(there, alpha * a / ((beta - gamma) * b), np.nan) ** (1 / whole)
        share = np.where(there, beta / whole, np.nan)
    return Optimal(share, 1 - share, g * FLOPS_PER_TOKEN**-share, FLOPS_PER_TOKEN ** (share - 1) / g)


def frontier(law: Mapping[str, ArrayLike], flops: ArrayLike) -> np.ndarray:
    """Lowest loss that the law allows at ``flops``."""
    best = compute_optimal(law)
    return loss(law, best.n(flops), best.d(flops))
