"""What is asked of a run beside training it: measurements, kept checkpoints, samples. None of it is identity; all of it is additive."""

from dataclasses import dataclass, field

from cptlab.errors import ConfigError
from cptlab.runs.evaluation_sets import EvaluationSet
from cptlab.runs.spec import RunSpec


def log_steps(total: int, per_decade: int = 8, first: int = 4) -> tuple[int, ...]:
    """Steps at which a run is measured: those before ``first``, then about ``per_decade`` a factor of ten, and ``total``."""
    grid, step = {*range(min(first, total)), total}, float(first)
    while round(step) < total:
        grid.add(round(step))
        step *= 10 ** (1 / per_decade)
    return tuple(sorted(grid))


@dataclass(frozen=True)
class Prompt:
    """Text to continue along training: ``length`` tokens are sampled at ``temperature`` with a generator of its own."""

    text: str
    length: int = 40
    temperature: float = 0.7
    seed: int = 0


@dataclass(frozen=True)
class Request:
    """A run and what is wanted of it.

    Args:
        spec: the run.
        labels: what the notebook calls it (arm, language, size, ...); kept in the record for people, never compared.
        sets: names of evaluation sets (:mod:`cptlab.runs.evaluation_sets`); kept in their canonical form, each once.
        steps: steps (updates done) to measure at; empty: :func:`log_steps`.
        keep: steps whose weights are kept on disk beside the last.
        keep_state: steps whose optimiser state is kept too, for a run that carries it over.
        prompts: text to continue at the measured steps.
        also_sets, also_steps: measured too whenever the run is trained; a finished run that lacks them lacks nothing.
    """

    spec: RunSpec
    labels: dict = field(default_factory=dict)
    sets: tuple[str, ...] = ()
    steps: tuple[int, ...] = ()
    keep: tuple[int, ...] = ()
    keep_state: tuple[int, ...] = ()
    prompts: tuple[Prompt, ...] = ()
    also_sets: tuple[str, ...] = ()
    also_steps: tuple[int, ...] = ()

    def __post_init__(self):
        for field_name in ("sets", "also_sets"):
            names = dict.fromkeys(EvaluationSet.parse(name, self.spec.corpus.names).name for name in getattr(self, field_name))
            object.__setattr__(self, field_name, tuple(names))
        outside = [step for step in (*self.steps, *self.keep, *self.keep_state, *self.also_steps) if not 0 <= step <= self.spec.steps]
        if outside:
            raise ConfigError(f"steps {outside} are outside 0..{self.spec.steps}, the steps of the run")
        if not self.steps:
            object.__setattr__(self, "steps", log_steps(self.spec.steps))

    @property
    def measured_sets(self) -> tuple[str, ...]:
        """Sets measured when the run is trained."""
        return tuple(dict.fromkeys((*self.sets, *self.also_sets)))

    @property
    def measured_steps(self) -> tuple[int, ...]:
        """Steps measured at when the run is trained."""
        return tuple(sorted({*self.steps, *self.also_steps}))

    @property
    def id(self) -> str:
        """The run's id."""
        return self.spec.id

    def merged(self, other: "Request") -> "Request":
        """One request that asks for what both ask."""

        def union(name: str) -> tuple:
            return tuple(dict.fromkeys((*getattr(self, name), *getattr(other, name))))

        steps = tuple(sorted(set(self.steps) | set(other.steps)))
        names = ("keep", "keep_state", "prompts", "also_sets", "also_steps")
        return Request(self.spec, self.labels | other.labels, union("sets"), steps, *map(union, names))
