"""What is asked of a run beside training it: measurements, kept checkpoints, samples. None of it is identity; all of it is additive."""

from dataclasses import dataclass, field

from cptlab.errors import ConfigError
from cptlab.runs.spec import RunSpec
from cptlab.runs.store import Store

# Errors that the run itself leads to: trying again gives the same end. All others (memory, disk, a killed process) are tried again.
FINAL_ERRORS = ("NonFiniteLoss",)


def log_steps(total: int, per_decade: int = 8, first: int = 4) -> tuple[int, ...]:
    """Steps at which a run is measured: 0, then about ``per_decade`` a factor of ten from ``first`` on, and ``total``."""
    if total <= first:
        return tuple(sorted({0, total}))
    grid, step = {0, total}, float(first)
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
        sets: evaluation sets: ``NAME`` is 64 windows spread evenly over the validation text of that source, ``NAME:n`` is n windows,
            ``NAME:all`` all.
        steps: steps (updates done) to measure at; empty: :func:`log_steps`.
        keep: steps whose weights are kept on disk beside the last.
        keep_state: steps whose optimiser state is kept too, for a run that carries it over.
        prompts: text to continue at the measured steps.
    """

    spec: RunSpec
    labels: dict = field(default_factory=dict)
    sets: tuple[str, ...] = ()
    steps: tuple[int, ...] = ()
    keep: tuple[int, ...] = ()
    keep_state: tuple[int, ...] = ()
    prompts: tuple[Prompt, ...] = ()

    def __post_init__(self):
        for name in self.sets:
            source, _, size = name.partition(":")
            if source not in self.spec.corpus.names or not (size in ("", "all") or size.isdigit() and int(size) > 0):
                raise ConfigError(
                    f"evaluation set {name!r} is not valid: name a source of the corpus ({', '.join(self.spec.corpus.names)}), "
                    "if need be with a number of windows, such as 'fr:128' or 'fr:all'"
                )
        outside = [step for step in (*self.steps, *self.keep, *self.keep_state) if not 0 <= step <= self.spec.steps]
        if outside:
            raise ConfigError(f"steps {outside} are outside 0..{self.spec.steps}, the steps of the run")
        if not self.steps:
            object.__setattr__(self, "steps", log_steps(self.spec.steps))

    @property
    def id(self) -> str:
        """The run's id."""
        return self.spec.id

    def merged(self, other: "Request") -> "Request":
        """One request that asks for what both ask."""

        def union(name: str) -> tuple:
            return tuple(dict.fromkeys((*getattr(self, name), *getattr(other, name))))

        steps = tuple(sorted(set(self.steps) | set(other.steps)))
        return Request(self.spec, self.labels | other.labels, union("sets"), steps, union("keep"), union("keep_state"), union("prompts"))


@dataclass(frozen=True)
class Missing:
    """What the store lacks of a request. ``train`` says that it takes training, not only a kept checkpoint."""

    measurements: tuple[tuple[int, str], ...]
    samples: bool
    checkpoints: tuple[int, ...]
    states: tuple[int, ...]
    record: bool
    train: bool

    def __bool__(self):
        return self.record or self.samples or bool(self.measurements or self.checkpoints or self.states)


def missing(store: Store, request: Request) -> Missing:
    """Compare a request with the store; reads files only (a few milliseconds)."""
    run_id = request.id
    status = store.status(run_id)
    if status in ("failed", "running") and (store.path(run_id) / "run.json").exists():  # "running" also while we hold its lock ourselves
        error = store.record(run_id)["error"] or {}
        if error.get("type") in FINAL_ERRORS:
            return Missing((), False, (), (), False, False)
    done = status == "done"
    pairs, samples = (), bool(request.prompts)
    if done:
        table = store.measurements(run_id)
        known = set(zip(table["step"].tolist(), table["set"].tolist(), strict=True))
        pairs = tuple((step, name) for step in request.steps for name in request.sets if (step, name) not in known)
        if request.prompts:
            sampled = {(s["step"], s["prompt"], s["seed"]) for s in store.samples(run_id)}
            samples = not all((step, p.text, p.seed) in sampled for step in request.steps for p in request.prompts)
    else:
        pairs = tuple((step, name) for step in request.steps for name in request.sets)
    checkpoints = tuple(step for step in request.keep if store.checkpoint(run_id, step) is None)
    states = tuple(step for step in request.keep_state if not state_file(store, run_id, step).is_file())
    have = set(store.checkpoint_steps(run_id))
    train = not done or bool(checkpoints or states) or samples or any(step not in have for step, _ in pairs)
    return Missing(pairs, samples, checkpoints, states, not done, train)


def state_file(store: Store, run_id: str, step: int):
    """Where the optimiser state of a kept step lies."""
    return store.checkpoint_dir(run_id, step) / "optimizer.safetensors"
