"""The forms of scaling laws: what each says, where it comes from, and its logarithm with the analytic derivative.

Every form is a sum of positive terms, L = (t_1 + ... + t_K) ** outer, evaluated through log-sum-exp. Parameters are optimised in
*internal* coordinates: positive ones as their logarithm, exponents as they are. Most laws are sums of power terms and are declared as a
:class:`PowerSum`; one with another structure gives ``terms`` itself (see :mod:`cptlab.laws.catalogue`). :func:`register` makes a form
known by name.
"""

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

import numpy as np

from cptlab.errors import ConfigError

INPUTS = {
    "n": "parameters",
    "d": "training tokens",
    "r": "share of the data in question in the mixture, 0 to 1",
    "u": "unique training tokens",
}
LARGEST = 1.1e304  # value of a positive parameter: a fit holds its logarithm below 700
LARGEST_EXPONENT = 1e6
TINY_LOG = -700.0  # the logarithm that stands for a coefficient frozen at zero: exp(-700) is still a normal number


@dataclass(frozen=True)
class Parameter:
    """One parameter of a form: optimised as its logarithm or as it is, and the range in which starts are drawn.

    A ``coefficient`` multiplies one term (the k-th coefficient the k-th term); given the others it is found by projection, so that no
    start needs to be drawn for it.
    """

    name: str
    low: float = 0.0
    high: float = 0.0
    log: bool = False
    coefficient: bool = False

    def internal(self, value: float) -> float:
        """Named scale to internal scale; ConfigError for a value that this parameter cannot have."""
        largest = LARGEST if self.log else LARGEST_EXPONENT
        if not abs(value) <= largest or (self.log and (value < 0 or (value == 0 and not self.coefficient))):
            kind = (
                "zero or a positive number (zero leaves its term out)"
                if self.coefficient
                else "a positive number"
                if self.log
                else "a number"
            )
            raise ConfigError(f"parameter {self.name} = {value}: it has to be {kind}, not beyond {largest:g}")
        if not self.log:
            return float(value)
        return float(np.log(value)) if value > 0 else TINY_LOG

    def named(self, value):
        """Internal scale to named scale (number or array); a coefficient frozen at zero comes back as zero."""
        return np.where(np.asarray(value) <= TINY_LOG, 0.0, np.exp(np.minimum(value, -TINY_LOG))) if self.log else np.asarray(value)


def coefficient(name: str) -> Parameter:
    """A positive factor of a term."""
    return Parameter(name, log=True, coefficient=True)


def exponent(name: str, low: float = 0.05, high: float = 1.2) -> Parameter:
    """An exponent; it may come out negative."""
    return Parameter(name, low, high)


def positive(name: str, low: float, high: float) -> Parameter:
    """A positive parameter that is no factor of a term."""
    return Parameter(name, low, high, log=True)


@dataclass(frozen=True)
class Form:
    """A scaling law. ``terms`` is what a new structure defines; ``identifies`` names, for each input, the parameters that only its
    variation in the data can determine. ``outer`` is the parameter to whose power the sum is raised. ``coupled`` says that terms depend
    on other terms' coefficients."""

    name: str
    equation: str
    source: str
    parameters: tuple[Parameter, ...]
    inputs: tuple[str, ...] = ("n", "d")
    identifies: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    outer: str | None = None
    coupled: bool = False

    def terms(self, theta: np.ndarray, x: Mapping[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """Logarithms of the terms, shape (K, points), and their derivatives by ``theta`` (internal), shape (P, K, points).

        ``x`` holds each input, and its logarithm under ``log_n``, ...
        """
        raise NotImplementedError

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the parameters, in order."""
        return tuple(parameter.name for parameter in self.parameters)

    def index(self, name: str) -> int:
        """Position of a parameter; ConfigError lists the known ones."""
        if name not in self.names:
            raise ConfigError(f"form {self.name} has no parameter {name!r}: it has {', '.join(self.names)}")
        return self.names.index(name)

    def idle(self, zero: Collection[str]) -> list[str]:
        """Parameters that do nothing when the coefficients ``zero`` are zero."""
        return []

    def prepare(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """``inputs`` as float arrays with their logarithms (of a share of zero: a very negative number), as ``terms`` wants them.

        Raises:
            ConfigError: an input is missing or cannot be: a share outside 0 to 1, another that is not positive.
        """
        missing = [name for name in self.inputs if name not in inputs]
        if missing:
            raise ConfigError(f"form {self.name} needs {missing[0]} ({INPUTS[missing[0]]}); given: {', '.join(inputs) or 'nothing'}")
        values = np.broadcast_arrays(*(np.atleast_1d(np.asarray(inputs[name], dtype=float)) for name in self.inputs))
        x = {name: np.ascontiguousarray(value).ravel() for name, value in zip(self.inputs, values, strict=True)}
        for name, value in x.items():
            if not np.all((value >= 0) & (value <= 1) if name == "r" else (value > 0) & np.isfinite(value)):
                raise ConfigError(
                    f"{name} ({INPUTS[name]}) has to be {'within 0 and 1' if name == 'r' else 'positive and finite'} everywhere"
                )
        return x | {f"log_{name}": np.log(np.maximum(value, 1e-300)) for name, value in x.items()}

    def log_loss(self, theta: np.ndarray, x: Mapping[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """Logarithm of the predicted loss, shape (points,), and its derivative by ``theta``, shape (P, points); ``x`` from ``prepare``."""
        terms, slopes = self.terms(theta, x)
        top = terms.max(axis=0)
        shares = np.exp(terms - top)
        total = shares.sum(axis=0)
        shares /= total
        value, slope = top + np.log(total), np.einsum("pkm,km->pm", slopes, shares)
        if self.outer is None:
            return value, slope
        at = self.index(self.outer)
        power = bounded_exp(theta[at])  # every outer power is optimised as its logarithm
        slope *= power
        slope[at] += power * value
        return power * value, slope

    def internal(self, values: Mapping[str, float]) -> np.ndarray:
        """A vector of internal coordinates from named values; all of them are needed."""
        missing = [name for name in self.names if name not in values]
        if missing:
            raise ConfigError(f"form {self.name} needs a value of {', '.join(missing)}")
        return np.array([parameter.internal(values[parameter.name]) for parameter in self.parameters])

    def named(self, theta: np.ndarray) -> dict[str, float]:
        """Named values from a vector of internal coordinates."""
        return {parameter.name: float(parameter.named(value)) for parameter, value in zip(self.parameters, theta, strict=True)}

    def loss(self, values: Mapping[str, float], **inputs) -> np.ndarray:
        """Predicted loss (nats) at ``inputs`` (n=, d=, ...; numbers or arrays that broadcast) for named parameter values.

        Returns an array of the broadcast shape (0-d for numbers).
        """
        unknown = sorted(set(inputs) - set(self.inputs))
        if unknown:
            raise ConfigError(f"form {self.name} does not know {unknown[0]!r}: its inputs are {', '.join(self.inputs)}")
        shape = np.broadcast_shapes(*(np.shape(value) for value in inputs.values()))
        return np.exp(self.log_loss(self.internal(values), self.prepare(inputs))[0]).reshape(shape)


@dataclass(frozen=True)
class Term:
    """One power term: coefficient x product of inputs to the power of exponents, those ``over`` in the denominator.

    ``shift`` adds a positive parameter to an input before it is raised: ``{"r": "eps"}``.
    """

    coefficient: str
    over: Mapping[str, str] = field(default_factory=dict)
    times: Mapping[str, str] = field(default_factory=dict)
    shift: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class PowerSum(Form):
    """A sum of power terms, declared by ``sum``; derivatives follow from the declaration."""

    sum: tuple[Term, ...] = ()

    def __post_init__(self):
        found: dict[str, list[str]] = {}
        for term in self.sum:
            for powers in (term.over, term.times):
                for name, power in powers.items():
                    found.setdefault(name, []).append(power)
        object.__setattr__(self, "identifies", {name: tuple(powers) for name, powers in found.items()})
        self._check()

    def _check(self) -> None:
        """ConfigError for a declaration that contradicts itself."""
        known = [parameter.name for parameter in self.parameters if parameter.coefficient]
        if not self.sum or [term.coefficient for term in self.sum] != known:
            raise ConfigError(
                f"form {self.name}: the terms' coefficients have to be those of parameters, in their order: {', '.join(known)}"
            )
        inputs = {name for term in self.sum for powers in (term.over, term.times, term.shift) for name in powers}
        if not inputs <= set(self.inputs) <= set(INPUTS):
            raise ConfigError(f"form {self.name}: inputs are some of {', '.join(INPUTS)}, and those of the terms among them")
        for term in self.sum:
            for name in (*term.over.values(), *term.times.values(), *term.shift.values()):
                self.index(name)
        if not all(
            self.parameters[self.index(name)].log
            for name in [*(s for t in self.sum for s in t.shift.values()), *filter(None, [self.outer])]
        ):
            raise ConfigError(f"form {self.name}: a shift and an outer power are declared with positive()")

    def idle(self, zero):
        """See :meth:`Form.idle`."""
        used = {
            name
            for term in self.sum
            if term.coefficient not in zero
            for name in (term.coefficient, *term.over.values(), *term.times.values(), *term.shift.values())
        } | {self.outer}
        return [name for name in self.names if name not in used and name not in zero]

    def prepare(self, inputs):
        """See :meth:`Form.prepare`; what does not depend on the parameters is computed once."""
        x = super().prepare(inputs)
        slopes = np.zeros((len(self.parameters), len(self.sum), len(x[self.inputs[0]])))
        for k, term in enumerate(self.sum):
            slopes[self.index(term.coefficient), k] = 1.0
            for sign, powers in ((-1.0, term.over), (1.0, term.times)):
                for name, power in powers.items():
                    if name not in term.shift:
                        slopes[self.index(power), k] = sign * x[f"log_{name}"]
        return x | {"slopes": slopes}

    def terms(self, theta, x):
        """See :meth:`Form.terms`."""
        slopes = x["slopes"]
        terms = np.tensordot(theta, slopes, 1)  # without shifts a term's logarithm is linear in the coordinates
        if not any(term.shift for term in self.sum):
            return terms, slopes
        slopes = slopes.copy()
        for k, term in enumerate(self.sum):
            for name, parameter in term.shift.items():
                sign, power = (-1.0, term.over[name]) if name in term.over else (1.0, term.times[name])
                at, moved = self.index(power), self.index(parameter)
                shift = bounded_exp(theta[moved])
                shifted = x[name] + shift
                slopes[at, k] = sign * np.log(shifted)
                slopes[moved, k] = sign * theta[at] * shift / shifted
                terms[k] += theta[at] * slopes[at, k]
        return terms, slopes


def bounded_exp(value: float) -> float:
    """Exponential of one coordinate, held within what can still be squared: a line search may try anything."""
    return math.exp(min(max(value, -100.0), 100.0))


FORMS: dict[str, Form] = {}


def register(form: Form) -> Form:
    """Make a form known by its name, to :func:`form`, :func:`cptlab.laws.fit` and ``cptlab fit``; returns it."""
    FORMS[form.name] = form
    return form


def form(name: "str | Form") -> Form:
    """A form by name (a form is returned as it is); ConfigError lists the known names."""
    if isinstance(name, Form):
        return name
    if name not in FORMS:
        raise ConfigError(f"form {name!r} is unknown: use one of {', '.join(FORMS)}")
    return FORMS[name]
