"""What a run IS: the fields that determine its weights, and nothing else.

A run is described by a :class:`RunSpec`; its identity is the sha256 of the spec in canonical JSON, which takes in the corpus
fingerprint and the identities of the runs it starts from. Device, paths, threads, world size and ZeRO stage are left out:
they say how a run is executed (:class:`cptlab.runs.execution.Execution`), not what it is.
"""

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from types import MappingProxyType

from cptlab.corpora.recipe import CorpusRecipe
from cptlab.errors import require, require_whole
from cptlab.identity import PlainSpec, canonical_fields, digest
from cptlab.runs.data_order import DataOrder, Phase, normalised, plain, rebuild, settled_order, settled_phases
from cptlab.runs.objectives import OBJECTIVES, facts_of
from cptlab.runs.shapes import ModelSpec, flops_per_token

# Raised by hand when a change of the engine changes the weights that a spec leads to: every stored run is then another run. A new field
# needs no other version (see cptlab.identity.ADDED). Version 2 renamed fields, made the added ones plain and left one way to sample.
RECIPE_VERSION = 2

SCHEDULES = ("constant", "linear", "cosine", "wsd")
PRECISIONS = ("bf16", "fp32", "fp16")
STATES = ("reset", "carry", "continue")
REVISION = re.compile(r"[0-9a-f]{40}|sha256:[0-9a-f]{64}")


@dataclass(frozen=True)
class Schedule(PlainSpec):
    """Learning rate over the steps of one run.

    Every kind begins with a linear (re-)warm-up from ``warmup_start_ratio * max_lr`` over ``warmup_tokens``: in tokens, so that it is the
    same at every budget. Then: ``constant`` stays; ``linear`` and ``cosine`` fall to ``min_lr_ratio * max_lr`` at the last step; ``wsd``
    (warm-up-stable-decay) stays, then falls there linearly over the last ``decay_fraction``.

    The schedule began ``elapsed_tokens`` before this run and is ``horizon_tokens`` long (0, or less than what has passed at the end of
    this run: it ends with it); ``decay_fraction`` is of the whole of it. All tokens are rounded down to whole steps.
    """

    kind: str = "cosine"
    max_lr: float = 3e-3
    min_lr_ratio: float = 0.1
    warmup_tokens: int = 0
    warmup_start_ratio: float = 0.0
    decay_fraction: float = 0.2
    horizon_tokens: int = 0
    elapsed_tokens: int = 0

    def __post_init__(self):
        require(self.kind in SCHEDULES, f"schedule.kind {self.kind!r} is unknown: use one of {', '.join(SCHEDULES)}")
        require(self.max_lr > 0, f"schedule.max_lr is {self.max_lr}: give a positive learning rate")
        for name in ("min_lr_ratio", "warmup_start_ratio", "decay_fraction"):
            value = getattr(self, name)
            require(0 <= value <= 1, f"schedule.{name} is {value}: give a fraction from 0 to 1")
        for name in ("warmup_tokens", "horizon_tokens", "elapsed_tokens"):
            value = getattr(self, name)
            require(value is not None, f"schedule.{name} is None: give a whole number of at least 0")
            require_whole(f"schedule.{name}", value, 0)


@dataclass(frozen=True)
class Optimiser(PlainSpec):
    """AdamW with clipping of the global gradient norm.

    ``state``: ``reset`` starts with empty moments; ``carry`` takes the moments and Adam's step count of the ``init`` upstream, the weights
    being its checkpoint's, in its precision; ``continue`` takes its fp32 master weights, too: the run goes on as if it had never stopped.
    Parameters that the upstream left frozen start with their checkpoint's weights and empty moments, but share the step count: Adam then
    hardly corrects their moments for having begun at zero (at the default betas their first update is 0.45 of a fresh one).
    ``lr_factors``: pairs (or a mapping) of a shell pattern of parameter names and a factor on their learning rate, kept in the order
    given: the first pattern that a name matches decides, and a name that matches none has the factor 1.
    """

    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-8
    weight_decay: float = 0.1
    clip_norm: float = 1.0
    state: str = "reset"
    lr_factors: tuple[tuple[str, float], ...] = ()

    def __post_init__(self):
        require(self.state in STATES, f"optimiser.state {self.state!r} is unknown: use one of {', '.join(STATES)}")
        given = self.lr_factors.items() if isinstance(self.lr_factors, Mapping) else self.lr_factors
        pairs = [tuple(pair) if isinstance(pair, list | tuple) else () for pair in given] if isinstance(given, Iterable) else [()]
        for pair in pairs:
            valid = len(pair) == 2 and isinstance(pair[0], str) and isinstance(pair[1], int | float) and 0 < pair[1] < math.inf
            require(
                valid, f"optimiser.lr_factors is {self.lr_factors!r}: give patterns with positive factors ('trainable' leaves parts out)"
            )
        object.__setattr__(self, "lr_factors", tuple(pairs))


@dataclass(frozen=True)
class Upstream:
    """A model this run depends on: a step of another run (``step`` None: its last), or a Hugging Face model.

    ``hub`` is a name with a commit as ``revision`` (:func:`cptlab.revisions.hub_commit`), or a folder with the digest of its content
    (:func:`cptlab.revisions.folder_revision`), which then alone is its identity.
    """

    run: "RunSpec | None" = None
    step: int | None = None
    hub: str | None = None
    revision: str | None = None

    def __post_init__(self):
        require(
            (self.run is None) != (self.hub is None), "an upstream names either a run or a Hugging Face model, not both and not neither"
        )
        require(
            self.hub is None or bool(REVISION.fullmatch(self.revision or "")),
            f"upstream {self.hub!r} has revision {self.revision!r}, which may mean other weights tomorrow: give the commit, 40 hex digits, "
            f"which cptlab.revisions.hub_commit({self.hub!r}, {self.revision or 'main'!r}) finds; of a folder, folder_revision(path)",
        )
        require(
            self.hub is None or self.step is None,
            f"upstream {self.hub!r} has step {self.step}, but only runs have steps: leave it out, and give the commit of that checkpoint",
        )
        if self.run is not None:
            step = self.run.steps if self.step is None else self.step
            require(0 < step <= self.run.steps, f"upstream step {step} is outside 1..{self.run.steps} of the run it names")
            object.__setattr__(self, "step", step)

    @property
    def is_folder(self) -> bool:
        """Whether ``hub`` is a folder of this machine."""
        return self.hub is not None and self.revision.startswith("sha256:")

    def canonical(self) -> dict:
        if self.run is not None:
            return {"run": self.run.id, "step": self.step}
        return {"folder": self.revision} if self.is_folder else {"hub": self.hub, "revision": self.revision}


@dataclass(frozen=True)
class RunSpec:
    """One training run.

    Args:
        model: the shape.
        corpus: recipe of the corpus; only its fingerprint enters the identity.
        mixture: weight of each of the corpus's sources; normalised to sum to 1. A sequence is from one source, and the shares are exact.
            None with ``phases``: their mixtures, weighted by their tokens.
        tokens: budget in tokens; rounded down to whole steps. None with ``phases``: their sum.
        batch_tokens: tokens a step (global batch).
        trainable: ``("*",)`` or shell patterns of parameter names to train; the others stay frozen.
        upstreams: ``init`` gives the starting weights; other names are for objectives that need them (a teacher).
        precision: ``bf16`` (fp32 master weights), ``fp32`` or ``fp16`` (dynamic loss scale).
        seed: of the initial weights and of the data order.
        data_order: in which order the sources are read.
        phases: two or more parts of the run with mixtures (and, over equal windows, objectives) of their own, under one schedule. Each
            mixes its sources anew and reads every source on where the one before stopped: the run is the chain of its phases as runs, to
            the bit, each of which continues the one before (``optimiser.state``), reads on (``data_order``) and goes on along the
            schedule (``elapsed_tokens``).
        objective_options: settings of the objective (:mod:`cptlab.runs.objectives`); those at their default are left out.
    """

    model: ModelSpec
    corpus: CorpusRecipe
    mixture: dict | None
    tokens: int | None
    batch_tokens: int = 4096
    schedule: Schedule = field(default_factory=Schedule)
    optimiser: Optimiser = field(default_factory=Optimiser)
    objective: str = "token"
    trainable: tuple[str, ...] = ("*",)
    upstreams: dict = field(default_factory=dict)
    precision: str = "bf16"
    seed: int = 0
    data_order: DataOrder = field(default_factory=DataOrder)
    phases: tuple[Phase, ...] = ()
    objective_options: dict | None = None

    def __post_init__(self):
        self._check_objective()
        object.__setattr__(self, "phases", tuple(self.phases))
        if self.phases or self.mixture is None or self.tokens is None:
            for name, value in settled_phases(self).items():
                object.__setattr__(self, name, value)
        require(self.precision in PRECISIONS, f"precision {self.precision!r} is unknown: use one of {', '.join(PRECISIONS)}")
        require(self.tokens >= self.batch_tokens, f"tokens = {self.tokens} is less than one batch of {self.batch_tokens}")
        unknown = sorted(set(self.mixture) - set(self.corpus.names))
        require(not unknown, f"mixture names {unknown}, which corpus {self.corpus.name!r} lacks: it has {', '.join(self.corpus.names)}")
        self._check_init()
        require(
            self.model.vocab == self.corpus.vocab or self.model.family == "hub",
            f"model.vocab = {self.model.vocab}, but corpus {self.corpus.name!r} has a vocabulary of {self.corpus.vocab}",
        )
        require(
            self.optimiser.state == "reset" or self._init_run() is not None,
            f"optimiser.state = {self.optimiser.state!r} needs an upstream run named 'init'",
        )
        # Dictionaries are stored sorted and read-only, so that a spec can be neither changed nor told apart by insertion order.
        object.__setattr__(self, "mixture", normalised(self.mixture))
        object.__setattr__(self, "upstreams", MappingProxyType({k: self.upstreams[k] for k in sorted(self.upstreams)}))
        object.__setattr__(self, "trainable", tuple(self.trainable))
        require(isinstance(self.data_order, DataOrder), f"data_order is {self.data_order!r}: give a DataOrder, or leave it out")
        object.__setattr__(self, "data_order", settled_order(self))
        self._check_warmup()

    def chain(self) -> "list[tuple[RunSpec, int]]":
        """The runs behind ``init``, nearest first, each with the step that the next one starts from."""
        upstream = self.upstreams.get("init")
        return [] if upstream is None or upstream.run is None else [(upstream.run, upstream.step), *upstream.run.chain()]

    def _check_init(self) -> None:
        """A shape that comes with the weights of ``init`` is of family ``hub``, and no other shape is."""
        init, family = self.upstreams.get("init"), self.model.family
        if init is None:
            require(family != "hub", "a model of family 'hub' needs an upstream named 'init'")
            return
        begun = "hub" if init.run is None else init.run.model.family
        require(
            begun != "hub" or family == "hub",
            f"init is a Hugging Face model or goes on from one, whose shape comes with its weights, but model.family is {family!r}: "
            "use ModelSpec(0, 0, 0, 0, vocab=0, context=..., family='hub')",
        )
        require(
            begun == "hub" or family != "hub",
            f"model.family is 'hub', but init names a run of family {begun!r}: use the model of that run",
        )

    def _check_warmup(self) -> None:
        """A warm-up ends before the schedule does, and before it decays; otherwise the rate would jump, or never be reached."""
        plan, batch = self.schedule, self.batch_tokens
        total = max(plan.elapsed_tokens // batch + self.steps, plan.horizon_tokens // batch)
        decay = max(1, round(plan.decay_fraction * total)) if plan.kind == "wsd" else 0
        warmup = plan.warmup_tokens // batch
        require(
            warmup <= total - decay,
            f"schedule.warmup_tokens = {plan.warmup_tokens:,} is {warmup} steps of {batch:,} tokens, but the schedule has {total} steps"
            f"{f', of which the last {decay} decay' if decay else ''}: give a shorter warm-up, or more tokens",
        )

    def _check_objective(self) -> None:
        object.__setattr__(self, "objective_options", facts_of(self.objective).checked(self.objective_options, self.objective))
        for objective, options in self.objectives:
            facts, context = facts_of(objective), self.model.context
            missing = [name for name in facts.upstreams if name not in self.upstreams]
            require(not missing, f"objective {objective!r} needs an upstream named {' and one named '.join(map(repr, missing))}")
            require(
                facts.window(context, options) == (self.window_length, self.window),
                f"objective {objective!r} of a phase reads other windows than the run's {self.objective!r}: make each phase a run, which "
                "goes on from the one before (optimiser.state = 'continue', data_order.read_on, schedule.elapsed_tokens)",
            )
        stride, context = self.window, self.model.context
        per_window = f"the context, {context}" if stride == context else f"the {stride} tokens that a window of {self.objective!r} moves on"
        require(self.batch_tokens % stride == 0, f"batch_tokens = {self.batch_tokens} is not a multiple of {per_window}")

    def _init_run(self) -> "RunSpec | None":
        return self.upstreams["init"].run if "init" in self.upstreams else None

    @property
    def steps(self) -> int:
        """Optimiser steps of the run."""
        return self.tokens // self.batch_tokens

    @property
    def tokens_trained(self) -> int:
        """Tokens of the whole steps that the budget gives."""
        return self.steps * self.batch_tokens

    @property
    def options(self) -> dict:
        """All options of the objective, defaults included."""
        return OBJECTIVES[self.objective].complete(self.objective_options)

    @property
    def objectives(self) -> tuple[tuple[str, dict], ...]:
        """Name and all options of the objective of each phase; of a run without phases, of the run."""
        named = [(phase.objective, phase.objective_options) for phase in self.phases]
        return tuple((name, facts_of(name).complete(options)) if name else (self.objective, self.options) for name, options in named) or (
            (self.objective, self.options),
        )

    @property
    def window(self) -> int:
        """Tokens of text of a sequence: from the begin of one window that the run trains on to the next."""
        return OBJECTIVES[self.objective].window(self.model.context, self.options)[1]

    @property
    def window_length(self) -> int:
        """Tokens of such a window; what goes beyond :attr:`window` is labels alone."""
        return OBJECTIVES[self.objective].window(self.model.context, self.options)[0]

    @property
    def flops(self) -> float:
        """Training FLOPs of the whole run; 0 where a hub model takes part, whose shape is known only once it is loaded."""
        return self.flops_with({})

    def flops_with(self, hub_flops: Mapping[str, float]) -> float:
        """:attr:`flops`, given what training takes a token of the hub models by upstream name (``init``: of the run's own).

        What the objective reads of other models is a third of training them.
        """

        def a_position(model: ModelSpec | None, name: str) -> float:
            return hub_flops.get(name, 0.0) if model is None or model.family == "hub" else flops_per_token(model)

        total = 0.0
        for (objective, _), tokens in zip(self.objectives, [phase.tokens for phase in self.phases] or [self.tokens_trained], strict=True):
            read = {name: self.upstreams[name].run for name in OBJECTIVES[objective].upstreams}
            costs = [a_position(self.model, "init"), *(a_position(run and run.model, name) / 3 for name, run in read.items())]
            if not all(costs):
                return 0.0
            total += sum(costs) * (self.model.context / self.window) * tokens
        return total

    @property
    def batch(self) -> int:
        """Sequences a step."""
        return self.batch_tokens // self.window

    def canonical(self) -> dict:
        """The spec as plain JSON: the corpus by fingerprint, upstream runs by id."""
        values = canonical_fields(self, leave_out=("corpus",))
        return values | {"corpus": {"fingerprint": self.corpus.fingerprint, "name": self.corpus.name}}

    @cached_property
    def id(self) -> str:
        """Identity: first 16 hex digits of the sha256 of the canonical spec and the recipe version.

        The corpus counts by fingerprint, not by name.
        """
        content = self.canonical()
        content["corpus"] = content["corpus"]["fingerprint"]
        content["recipe_version"] = RECIPE_VERSION
        return digest(content)[:16]

    def runs_upstream(self) -> "list[tuple[RunSpec, int]]":
        """The (run, step) pairs this run needs before it can start."""
        return [(up.run, up.step) for up in self.upstreams.values() if up.run is not None]

    def __reduce__(self):  # mapping proxies do not pickle; rebuild from plain values
        return rebuild, (RunSpec, plain(self))

    def __hash__(self):
        return hash(self.id)

    def __eq__(self, other):
        return isinstance(other, RunSpec) and self.id == other.id
