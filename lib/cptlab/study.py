"""A notebook's view of the laboratory: its settings in a profile, its corpus, its store, and short ways to describe runs."""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cptlab import claims, dials, outputs, paths, verdicts
from cptlab.cards import Card
from cptlab.corpora.recipe import CorpusRecipe, holding
from cptlab.corpora.recipe import recipe as corpus_recipe
from cptlab.errors import ConfigError, CorpusError, require
from cptlab.files import atomic_write
from cptlab.profiles import load_profile, profile_names  # noqa: F401  profile_names for those who look here for it
from cptlab.runs.execution import Execution
from cptlab.runs.shapes import ModelSpec, shape_named
from cptlab.runs.spec import DataOrder, Optimiser, RunSpec, Schedule, Upstream
from cptlab.runs.store import Store
from cptlab.sweep.grid import Grid
from cptlab.sweep.results import Results

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

    from cptlab.estimate import Estimate


class Settings(dict):
    """A section of a profile; a missing key is an error that names the file and the section."""

    def __init__(self, values: dict, where: str):
        super().__init__(values)
        self.where = where

    def __missing__(self, key: str) -> Any:
        raise ConfigError(f"{self.where} has no setting {key!r}: it has {', '.join(map(str, self))}")


@dataclass(frozen=True)
class Study:
    """One notebook at one profile, with the dials that were turned (see :mod:`cptlab.dials`)."""

    name: str
    profile: str
    content: dict
    given: Mapping[str, Any] = field(default_factory=dict)
    _ended: list[Results] = field(default_factory=list, repr=False, compare=False)
    _promises: dict[str, tuple[str, ...]] = field(default_factory=dict, repr=False, compare=False)

    @cached_property
    def _dialled(self) -> tuple[Settings, dict]:
        sections = self.content["notebooks"]
        if self.name not in sections:
            raise ConfigError(f"profile {self.profile} has no section for notebook {self.name}: it has {', '.join(sections)}")
        where = f"profile {self.profile}, notebook {self.name}"
        dials.check(sections[self.name], where)
        values, turned = dials.apply(self.given, sections[self.name], where)
        return Settings(values, where), turned

    @property
    def settings(self) -> Settings:
        """The notebook's own section of the profile, with the dials in place."""
        return self._dialled[0]

    @property
    def dials(self) -> dict[str, Any]:
        """The dials that were turned: those whose value is not None."""
        return self._dialled[1]

    @cached_property
    def execution(self) -> Execution:
        """How runs are executed here."""
        return Execution.from_mapping(self.content["execution"])

    @property
    def frame(self) -> dict:
        """What the profile's runs share: corpus, context, batch, precision, schedule; a notebook's section may override each, and single
        fields of the schedule."""
        common, own = self.content["frame"], self.content["notebooks"].get(self.name, {}).get("frame", {})
        return common | own | {"schedule": common["schedule"] | own.get("schedule", {})}

    @cached_property
    def corpus(self) -> CorpusRecipe:
        """The profile's corpus; where a dial or a setting names a language that it lacks, one of its family, built on demand."""
        found = corpus_recipe(self.frame["corpus"])
        if self.name not in self.content["notebooks"]:
            return found
        wanted = list(dict.fromkeys(["en", *dials.languages_of(self.settings)]))
        if set(wanted) <= set(found.names) or len(wanted) == 1:
            return found
        try:
            return holding(found, wanted)
        except CorpusError as error:
            named = ", ".join(f"{name} = {self.settings[name]!r}" for name in dials.LANGUAGES if name in self.settings)
            raise ConfigError(f"{self.settings.where}, {named}: {error}") from None

    @cached_property
    def store(self) -> Store:
        """The run store: ``CPTLAB_RUNS`` by itself, else the local layer over ``runs/``, both in the folder that the profile names."""
        if os.environ.get("CPTLAB_RUNS"):
            return Store(Path(os.environ["CPTLAB_RUNS"]))
        folder = self.content.get("store", "")
        return Store(paths.local_runs_dir() / folder, paths.runs_dir() / folder)

    def grid(self, sets: tuple[str, ...] = (), decides: Mapping[str, Sequence[str]] | None = None) -> Grid:
        """An empty grid.

        Args:
            sets: the evaluation sets of its runs, unless a run names others.
            decides: the claims that its runs decide, id -> quantities that the notebook will compute.

        Raises:
            ConfigError: a claim has no rule in ``claims.yaml``, or one that stands on other quantities: known before anything is trained.
        """
        decides = {} if decides is None else decides
        require(isinstance(decides, Mapping), f'decides is {decides!r}: give claims with the quantities to come, {{"C1.4": ["saving"]}}')
        promises = {name: (q,) if isinstance(q, str) else tuple(q) for name, q in decides.items()}
        claims.check_promises(promises, self.name)
        self._promises.update(promises)
        return Grid(self.store, self.execution, self.name, sets, outputs.refuse_outside, self._after)

    def _after(self, results: Results) -> None:
        self._ended.append(results)
        if outputs.headless():
            number = f"-{len(self._ended)}" if len(self._ended) > 1 else ""
            results.save(outputs.executed_dir(self.profile, self.dials) / f"{self.name}{number}")

    @property
    def runs(self) -> list[str]:
        """Ids of the finished runs of the grids that were trained, or served, so far."""
        return list(dict.fromkeys(run for results in self._ended for run in results.ids))

    def figure(
        self, fig: "Figure", name: str, data: "pd.DataFrame", caption: str, runs: Sequence[str] | None = None, records: Sequence[str] = ()
    ) -> None:
        """Save a figure with the table that it shows, as ``<number of the notebook>_<name>``, and say where if that is not ``figures/``.

        Args:
            runs: ids of the runs that it shows; default: :attr:`runs`.
            records: other records that it shows (``Fit.record``, the ``record`` of a corpus).

        Raises:
            ConfigError: see :func:`cptlab.figures.save`.
        """
        from cptlab import figures

        runs = self.runs if runs is None else list(runs)
        folder = self._folder(runs, records)
        figures.save(fig, f"{self.prefix}_{name}", data, self.name, self.profile, [*runs, *records], caption, folder)

    def save_table(self, name: str, table: "pd.DataFrame", runs: Sequence[str] | None = None) -> Path:
        """Write a table as ``<number of the notebook>_<name>.csv`` to where the figures of its runs go; returns its path."""
        path = self._folder(self.runs if runs is None else list(runs), ()) / f"{self.prefix}_{name}.csv"
        atomic_write(path, table.to_csv(index=False, lineterminator="\n"))
        return path

    def decide(
        self, claim: str, estimates: "Mapping[str, Estimate]", runs: Sequence[str] | None = None, records: Sequence[str] = ()
    ) -> Card:
        """Apply the rule of ``claim`` in ``claims.yaml`` to the estimates (quantity -> Estimate), save the verdict, return its card.

        Raises:
            ConfigError: the grid did not declare the claim, or an estimate is missing; see :func:`cptlab.claims.decide`.
        """
        require(
            claim in self._promises,
            f"claim {claim} was not declared before the runs: name it where the grid is made, "
            f'study.grid(decides={{"{claim}": {json.dumps(list(estimates))}}})',
        )
        runs = self.runs if runs is None else list(runs)
        verdict = claims.decide(claim, estimates, self.profile, self.name, [*runs, *records], self.dials)
        verdicts.save([verdict], self._folder(runs, records))
        if outputs.headless():
            verdicts.save([verdict], outputs.executed_dir(self.profile, self.dials) / self.name)  # beside the tables, whatever was changed
        return Card(verdict)

    @property
    def prefix(self) -> str:
        """What names of the notebook's files begin with: its number, or its name where it has none."""
        number = self.name.split("_")[0]
        return number if number.isdigit() else self.name

    def _folder(self, runs: Sequence[str], records: Sequence[str]) -> Path:
        local = sorted({run for results in self._ended for run in results.local} & set(runs))
        local += [record for record in records if self.store.committed and not (self.store.committed / f"{record}.json").is_file()]
        return outputs.folder(self.name, self.profile, self.dials, self.store, local)

    def model(self, size: str, **changes) -> ModelSpec:
        """A shape by name at the profile's vocabulary and context."""
        return shape_named(size, self.corpus.vocab, self.frame["context"], **changes)

    def tuned(self, size: str, arm: str, role: str = "near") -> dict[str, Any]:
        """What the profile's table ``tuned`` gives an arm, as arguments of :meth:`run` and :meth:`branches`: ``lr``, ``schedule`` with the
        warm-up, and ``batch_tokens`` where the size has its own.

        Args:
            arm: ``base``, ``scratch`` or ``continual``; a table that does not tell arms apart has one value for all.
            role: of the language, ``near`` or ``far``; a table that does not tell them apart has one value for both.

        Raises:
            ConfigError: no row for the size, or no value for the arm and role.
        """
        rows, where = self.content.get("tuned", {}), f"profile {self.profile}: tuned"
        there = f"has rows for {', '.join(rows)}, none for {size!r}" if rows else "is empty"
        require(size in rows, f"{where} {there}: add one, with lr and warmup_tokens")

        def value(name: str) -> float:
            found, place = rows[size].get(name), f"{where}.{size}.{name}"
            for key in (arm, role):
                if isinstance(found, dict):
                    require(key in found, f"{place} has {', '.join(found)}, no {key!r}: add it, or ask for one of them")
                    found, place = found[key], f"{place}.{key}"
            require(found is not None, f"{place} is not there: add it")
            return found

        own = {"batch_tokens": rows[size]["batch_tokens"]} if "batch_tokens" in rows[size] else {}
        return {"lr": value("lr"), "schedule": {"warmup_tokens": value("warmup_tokens")}} | own

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
            schedule: other fields of :class:`Schedule`; those of the frame's ``schedule`` by default.
            optimiser: fields of :class:`Optimiser`.
            fields: any other field of :class:`RunSpec`; ``corpus`` and ``model`` take the place of the profile's. Without
                ``data_order`` a run goes on in the text where its upstream stopped.
        """
        upstreams = dict(fields.pop("upstreams", {}))
        if init is not None:
            upstreams["init"] = init if isinstance(init, Upstream) else Upstream(run=init)
        corpus = fields.pop("corpus", self.corpus)
        model = fields.pop("model", None)
        require((model is None) != (size is None), f"size = {size!r} and model = {model!r}: give one of them, the other is None")
        model = model or shape_named(size, corpus.vocab, self.frame["context"])
        start = upstreams["init"].run if "init" in upstreams else None
        if start is not None and start.corpus.fingerprint == corpus.fingerprint:
            fields = {"data_order": DataOrder(read_on=True)} | fields
        common = {"batch_tokens": self.frame["batch_tokens"], "precision": self.frame["precision"]} | fields
        return RunSpec(
            model=model,
            corpus=corpus,
            mixture={mixture: 1.0} if isinstance(mixture, str) else mixture,
            tokens=None if tokens is None else int(tokens),
            schedule=Schedule(max_lr=lr, **self.frame["schedule"] | (schedule or {})),
            optimiser=Optimiser(**(optimiser or {})),
            upstreams=upstreams,
            seed=seed,
            **common,
        )

    def branches(
        self,
        size: str,
        mixture: dict[str, float] | str,
        budgets: Sequence[int],
        lr: float,
        seed: int = 0,
        init: RunSpec | None = None,
        schedule: dict | None = None,
        **fields,
    ) -> dict[int, RunSpec]:
        """Runs of several budgets for little more than the largest: one trunk at a constant rate, and for each budget a branch that leaves
        it and decays. A branch ends with the weights of an uninterrupted warm-up-stable-decay run of its budget, to the bit: it takes the
        trunk's master weights and moments and reads on where the trunk stopped.

        Args:
            budgets: in tokens, of the whole run; the trunk is the ``init`` upstream of every branch.
            schedule: fields of :class:`Schedule`; the frame's by default, but for the kind, which is ``wsd`` here.
            fields: as for :meth:`run`.

        Raises:
            ConfigError: a schedule of another kind, a warm-up that has not ended where the first branch leaves, or no budget.
        """
        kind = (schedule or {}).get("kind", "wsd")
        require(kind == "wsd", f"branches: schedule.kind is {kind!r}, but branches leave a stable trunk: leave it out, or use run()")
        schedule = {"decay_fraction": Schedule.decay_fraction} | self.frame["schedule"] | (schedule or {}) | {"kind": "wsd"}
        batch = fields.get("batch_tokens", self.frame["batch_tokens"])
        warmup = schedule.get("warmup_tokens", 0)
        require(bool(budgets), "branches: budgets is empty")
        ends = {budget: budget // batch for budget in budgets}
        starts = {budget: end - max(1, round(schedule["decay_fraction"] * end)) for budget, end in ends.items()}
        first = min(starts, key=starts.get)
        require(
            0 < starts[first] >= warmup // batch,
            f"branches: the one of {first:,} tokens leaves the trunk after {starts[first] * batch:,}, within the warm-up of {warmup:,}",
        )
        same_text = init is not None and init.corpus.fingerprint == fields.get("corpus", self.corpus).fingerprint
        order = fields.pop("data_order", DataOrder(read_on=same_text))
        steady = schedule | {"kind": "constant"}
        trunk = self.run(size, mixture, max(starts.values()) * batch, lr, seed, init, steady, data_order=order, **fields)
        return {
            budget: self.run(
                size, mixture, (ends[budget] - start) * batch, lr, seed, Upstream(run=trunk, step=start),
                schedule | {"elapsed_tokens": start * batch}, {"state": "continue"}, data_order=replace(order, read_on=True), **fields,
            )
            for budget, start in starts.items()
        }  # fmt: skip


def open_study(name: str, profile: str = "laptop", **given: Any) -> Study:
    """The study of notebook ``name`` (its file name without ``.ipynb``) at ``profile``.

    Args:
        given: dials, the parameters of the notebook that take the place of the profile's values; None leaves the profile's.

    Raises:
        ConfigError: an unknown profile, or a dial whose value is not of its kind; the message names the parameter and the remedy.
    """
    outputs.warn_outside()
    study = Study(name, profile, load_profile(profile), given)
    if given:
        _ = study.settings, study.corpus  # a dial that is wrong is told at once
    return study
