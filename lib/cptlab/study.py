"""A notebook's view of the laboratory: its settings in a profile, its corpus, its store, and short ways to describe runs."""

import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from cptlab import paths
from cptlab.corpora.recipe import CorpusRecipe
from cptlab.corpora.recipe import recipe as corpus_recipe
from cptlab.errors import ConfigError, require
from cptlab.profiles import load_profile, profile_names  # noqa: F401  profile_names for those who look here for it
from cptlab.runs.execution import Execution
from cptlab.runs.shapes import ModelSpec, shape_named
from cptlab.runs.spec import DataOrder, Optimiser, RunSpec, Schedule, Upstream
from cptlab.runs.store import Store
from cptlab.sweep.grid import Grid


class Settings(dict):
    """A section of a profile; a missing key is an error that names the file and the section."""

    def __init__(self, values: dict, where: str):
        super().__init__(values)
        self.where = where

    def __missing__(self, key: str) -> Any:
        raise ConfigError(f"{self.where} has no setting {key!r}: it has {', '.join(map(str, self))}")


@dataclass(frozen=True)
class Study:
    """One notebook at one profile."""

    name: str
    profile: str
    content: dict

    @property
    def settings(self) -> Settings:
        """The notebook's own section of the profile."""
        sections = self.content["notebooks"]
        if self.name not in sections:
            raise ConfigError(f"profile {self.profile} has no section for notebook {self.name}: it has {', '.join(sections)}")
        return Settings(sections[self.name], f"profile {self.profile}, notebook {self.name}")

    @cached_property
    def execution(self) -> Execution:
        """How runs are executed here."""
        return Execution.from_mapping(self.content["execution"])

    @property
    def frame(self) -> dict:
        """What the profile's runs share: corpus, context, batch, precision; a notebook's section may override each, and say ``follow``."""
        own = self.content["notebooks"].get(self.name, {}).get("frame", {})
        return self.content["frame"] | own

    @cached_property
    def corpus(self) -> CorpusRecipe:
        """The profile's corpus."""
        return corpus_recipe(self.frame["corpus"])

    @cached_property
    def store(self) -> Store:
        """The run store: ``CPTLAB_RUNS`` by itself, else the local layer over ``runs/``, both in the folder that the profile names."""
        if os.environ.get("CPTLAB_RUNS"):
            return Store(Path(os.environ["CPTLAB_RUNS"]))
        folder = self.content.get("store", "")
        return Store(paths.local_runs_dir() / folder, paths.runs_dir() / folder)

    def grid(self, sets: tuple[str, ...] = ()) -> Grid:
        """An empty grid; ``sets`` are the evaluation sets of its runs unless a run names others."""
        return Grid(self.store, self.execution, self.name, sets)

    def model(self, size: str, **changes) -> ModelSpec:
        """A shape by name at the profile's vocabulary and context."""
        return shape_named(size, self.corpus.vocab, self.frame["context"], **changes)

    def run(
        self,
        size: str | None,
        mixture: dict[str, float] | str | None,
        tokens: int | None,
        lr: float,
        seed: int = 0,
        init: RunSpec | Upstream | None = None,
        schedule: dict | None = None,
        optimiser: dict | None = None,
        **fields,
    ) -> RunSpec:
        """Describe a run in the profile's frame.

        Args:
            size: name of a shape; None with ``model``.
            mixture: source, or weights of several; None with ``phases``.
            tokens: budget; None with ``phases``.
            lr: maximum learning rate.
            init: run (its last step) or upstream to start from; None: random weights.
            schedule: other fields of :class:`Schedule`, cosine by default.
            optimiser: fields of :class:`Optimiser`.
            fields: any other field of :class:`RunSpec`; ``corpus`` and ``model`` take the place of the profile's. Without ``order`` a
                run goes on in the text where its upstream stopped, unless the notebook's frame says ``follow: false``.
        """
        upstreams = dict(fields.pop("upstreams", {}))
        if init is not None:
            upstreams["init"] = init if isinstance(init, Upstream) else Upstream(run=init)
        corpus = fields.pop("corpus", self.corpus)
        model = fields.pop("model", None)
        require((model is None) != (size is None), f"size = {size!r} and model = {model!r}: give one of them, the other is None")
        model = model or shape_named(size, corpus.vocab, self.frame["context"])
        start = upstreams["init"].run if "init" in upstreams else None
        if start is not None and start.corpus.fingerprint == corpus.fingerprint and self.frame.get("follow", True):
            fields = {"order": DataOrder(follow=True)} | fields
        common = {"batch_tokens": self.frame["batch_tokens"], "precision": self.frame["precision"]} | fields
        return RunSpec(
            model=model,
            corpus=corpus,
            mixture={mixture: 1.0} if isinstance(mixture, str) else mixture,
            tokens=None if tokens is None else int(tokens),
            schedule=Schedule(max_lr=lr, **(schedule or {})),
            optimiser=Optimiser(**(optimiser or {})),
            upstreams=upstreams,
            seed=seed,
            **common,
        )


def open_study(name: str, profile: str = "laptop") -> Study:
    """The study of notebook ``name`` (its file name without ``.ipynb``) at ``profile``."""
    return Study(name, profile, load_profile(profile))
