"""The data of a run: in which order it reads its sources, and its phases. What comes of both is in :mod:`cptlab.runs.reading`."""

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from cptlab.errors import require, require_whole
from cptlab.identity import PlainSpec
from cptlab.runs.objectives import facts_of

if TYPE_CHECKING:
    from cptlab.runs.spec import RunSpec


@dataclass(frozen=True)
class DataOrder(PlainSpec):
    """In which order a run reads its sources.

    A source's text is shuffled anew each pass by the seed; what it is mixed with does not change its order.

    Args:
        block_tokens: the text is shuffled in blocks of so many tokens, a multiple of the context, and each block is read window after
            window, so that runs of several contexts read it in one order; None: the context.
        read_on: go on, in each source, where the last run behind ``init`` that read it stopped, in the order that it was read in. Such a
            run may itself have read on, or have begun the source anew. A source that none of them read begins in this run's order;
            runs on other corpora read other texts and do not count. Where it is one source that is read on, the run's seed decides nothing.
        unique_tokens: cap for each source, in whole blocks: the first ones of the first pass, so that a capped run begins as an uncapped
            one; later passes shuffle these. None, or more than there are: all of the text.
    """

    block_tokens: int | None = None
    read_on: bool = False
    unique_tokens: int | None = None

    def __post_init__(self):
        for name in ("block_tokens", "unique_tokens"):
            require_whole(f"data_order.{name}", getattr(self, name))


@dataclass(frozen=True)
class Phase(PlainSpec):
    """A part of a run: ``tokens`` (rounded down to whole steps) of ``mixture``, with an objective of its own or (None) the run's."""

    tokens: int
    mixture: dict
    objective: str | None = None
    objective_options: dict | None = None

    def __post_init__(self):
        require_whole("phase.tokens", self.tokens)
        object.__setattr__(self, "mixture", normalised(self.mixture))
        require(
            self.objective is not None or not self.objective_options,
            f"phase.objective_options = {self.objective_options} has no phase.objective: name it, or give the options to the run",
        )
        object.__setattr__(self, "objective_options", self.objective_options or None)
        if self.objective is not None:
            object.__setattr__(self, "objective_options", facts_of(self.objective).checked(self.objective_options, self.objective))

    def __reduce__(self):
        return rebuild, (Phase, plain(self))


def normalised(mixture: Mapping[str, float]) -> Mapping[str, float]:
    """A mixture that sums to 1, sorted and read-only."""
    require(
        bool(mixture) and all(weight >= 0 for weight in mixture.values()) and sum(mixture.values()) > 0,
        f"mixture {dict(mixture)} has no positive weight or a negative one",
    )
    total = sum(mixture.values())
    total = 1.0 if abs(total - 1) < 1e-12 else total  # weights already normalised keep their bits, or a copy would be another run
    return MappingProxyType({name: mixture[name] / total for name in sorted(mixture) if mixture[name]})


def settled_phases(run: "RunSpec") -> dict:
    """``phases`` in whole steps, and the ``tokens`` and ``mixture`` that they come to; such values beside them have to be these."""
    require(bool(run.phases), "a run without phases needs a mixture and tokens")
    require(len(run.phases) > 1, "phases has one phase: give its mixture and tokens to the run itself")
    for number, phase in enumerate(run.phases):
        require(
            phase.tokens >= run.batch_tokens,
            f"phases[{number}].tokens = {phase.tokens} is less than one batch of {run.batch_tokens}: give more",
        )
    phases = tuple(replace(phase, tokens=phase.tokens // run.batch_tokens * run.batch_tokens) for phase in run.phases)
    own = (run.objective, run.objective_options)  # said once more for a phase, it is the same run
    phases = tuple(
        replace(phase, objective=None, objective_options=None) if (phase.objective, phase.objective_options) == own else phase
        for phase in phases
    )
    tokens = sum(phase.tokens for phase in phases)
    names = sorted({name for phase in phases for name in phase.mixture})
    mixture = {name: sum(phase.tokens * phase.mixture.get(name, 0.0) for phase in phases) / tokens for name in names}
    given = mixture if run.mixture is None else run.mixture
    same = given.keys() == mixture.keys() and all(abs(given[name] - mixture[name]) < 1e-9 for name in names)
    require(
        same and run.tokens in (None, tokens),
        f"mixture = {run.mixture} and tokens = {run.tokens} are not those of the phases, {mixture} and {tokens}: give None for both",
    )
    return {"phases": phases, "tokens": tokens, "mixture": mixture}


def settled_order(run: "RunSpec") -> DataOrder:
    """The data order in the form that equal ones share."""
    order = run.data_order
    block = order.block_tokens or run.window
    require(block % run.window == 0, f"data_order.block_tokens = {block} is not a multiple of the context, {run.window}")
    unique = order.unique_tokens and order.unique_tokens // block * block
    require(unique != 0, f"data_order.unique_tokens = {order.unique_tokens} is less than one block of {block} tokens: give more")
    return DataOrder(None if block == run.window else block, order.read_on and _reads_on(run, block, unique), unique)


def _reads_on(run: "RunSpec", block: int, unique: int | None) -> bool:
    """Whether there is a source to read on: a run that finds none is the same run as one that does not read on."""
    earlier = [before for before, _ in run.chain() if before.corpus.fingerprint == run.corpus.fingerprint]
    require(
        bool(earlier),
        f"data_order.read_on = True needs an upstream named 'init' that is a run on corpus {run.corpus.name!r}, or started from one: "
        "texts of another corpus cannot be read on",
    )
    found = False
    for name in run.mixture:
        last = next((before for before in earlier if name in before.mixture), None)
        if last is not None:
            found, order = True, last.data_order
            known = order.block_tokens or last.window, order.unique_tokens
            require(
                known == (block, unique),
                f"data_order.read_on = True: run {last.id} read {name!r} with block_tokens = {known[0]} and unique_tokens = {known[1]}, "
                f"this one has {block} and {unique}, which is another order: give both the same",
            )
    return found


def plain(spec: Any) -> dict:
    """Fields of a spec as values that pickle (mapping proxies do not), for :func:`rebuild`."""
    values = {f.name: getattr(spec, f.name) for f in fields(spec)}
    return {name: dict(value) if isinstance(value, MappingProxyType) else value for name, value in values.items()}


def rebuild(kind: type, values: dict) -> Any:
    """The spec of :func:`plain` values."""
    return kind(**values)
