"""What a run must know of an objective without torch: a row an objective. How one is computed: :mod:`cptlab.training.objectives`."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from cptlab.errors import require


@dataclass(frozen=True)
class Option:
    """A setting of an objective: whether a value is valid, what a valid one is in words, and the default (``...``: it has to be given).

    A default is left out of a run's identity, so that options can be added; once runs are recorded it is never changed.
    """

    valid: Callable[[Any], bool]
    says: str
    default: Any = ...


@dataclass(frozen=True)
class ObjectiveFacts:
    """A row of :data:`OBJECTIVES`.

    Args:
        upstreams: names of the upstreams that it needs beside ``init``: models that it reads, one forward pass a position.
        window: function of (context, options) to (length, stride) of the windows of text that it trains on, in tokens. The model sees
            ``context`` positions of each, so that a token of text costs context / stride positions, and a step of ``batch_tokens`` has
            batch_tokens / stride sequences. Inputs are the first ``stride`` tokens of a window, labels the last.
        options: its settings, by name.
    """

    upstreams: tuple[str, ...] = ()
    window: Callable[[int, Mapping], tuple[int, int]] = lambda context, options: (context + 1, context)
    options: Mapping[str, Option] = field(default_factory=dict)

    def checked(self, given: Mapping | None, objective: str) -> Mapping | None:
        """``given`` sorted, read-only and without what is at its default anyway; None when nothing is left.

        Raises:
            ConfigError: an unknown option, one that lacks, or a value that is not valid.
        """
        given = dict(given or {})
        unknown = sorted(set(given) - set(self.options))
        known = ", ".join(self.options) or "none"
        require(not unknown, f"objective_options names {unknown}, which objective {objective!r} lacks: its options are {known}")
        for name, option in self.options.items():
            if name in given:
                require(option.valid(given[name]), f"objective_options.{name} is {given[name]!r}: give {option.says}")
            else:
                require(option.default is not ..., f"objective {objective!r} needs objective_options.{name}: give {option.says}")
        kept = {name: given[name] for name in sorted(given) if given[name] != self.options[name].default}
        return MappingProxyType(kept) if kept else None

    def complete(self, given: Mapping | None) -> dict:
        """All options: those of :meth:`checked` and the defaults of the others."""
        return {name: option.default for name, option in self.options.items()} | dict(given or {})


def facts_of(name: str) -> ObjectiveFacts:
    """The row of an objective.

    Raises:
        ConfigError: there is none of that name.
    """
    require(name in OBJECTIVES, f"objective {name!r} is unknown: use one of {', '.join(OBJECTIVES)}")
    return OBJECTIVES[name]


OBJECTIVES: dict[str, ObjectiveFacts] = {"token": ObjectiveFacts()}
