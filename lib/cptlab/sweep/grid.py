"""A grid of runs and what came of it: what a notebook plans, trains and plots."""

import os
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import replace

import pandas as pd

from cptlab.errors import ConfigError, require
from cptlab.runs.execution import Execution
from cptlab.runs.lacking import lacking
from cptlab.runs.request import Prompt, Request
from cptlab.runs.spec import RunSpec
from cptlab.runs.store import Store
from cptlab.sweep.cost import costs, minutes, wall
from cptlab.sweep.results import Results, tables
from cptlab.sweep.scheduler import needed, train


class Grid:
    """Runs with labels. ``add`` describes them, ``plan`` says what they cost, ``train`` brings them about or serves them from the store."""

    def __init__(
        self,
        store: Store,
        execution: Execution,
        notebook: str = "",
        sets: Sequence[str] = (),
        before: "Callable[[Grid], None] | None" = None,
        after: Callable[[Results], None] | None = None,
    ):
        """``before`` is called when something is about to be trained, ``after`` with what came of it."""
        self.store, self.execution, self.notebook, self.sets = store, execution, notebook, tuple(sets)
        self._before, self._after = before, after
        self._cells: list[tuple[Request, dict]] = []

    def __len__(self) -> int:
        return len(self._cells)

    @property
    def requests(self) -> list[Request]:
        """What is asked, in the order of ``add``. A run that others start from is measured on every source of its corpus when it is
        trained, so that a grid with another target does not train it again."""
        starts = {spec.id for request, _ in self._cells for spec, _ in request.spec.runs_upstream()}
        return [replace(request, also_sets=request.spec.corpus.names) if request.id in starts else request for request, _ in self._cells]

    def add(
        self,
        spec: RunSpec,
        *,
        sets: Sequence[str] | None = None,
        steps: Sequence[int] = (),
        keep: Sequence[int] = (),
        prompts: Sequence[Prompt] = (),
        **labels,
    ) -> RunSpec:
        """Add a run and return its spec (to start others from). Labels are free names and values; see :class:`Request` for the rest."""
        reserved = {"id", "status", "step", "tokens", "flops", "set", "loss_nats", "compute"} & set(labels)
        if reserved:
            raise ConfigError(f"labels {sorted(reserved)} are names of result columns: choose others")
        sets = self.sets if sets is None else tuple(sets)
        request = Request(spec, {"notebook": self.notebook} | labels, sets, tuple(steps), tuple(keep), (), tuple(prompts))
        self._cells.append((request, labels))
        return spec

    def plan(self) -> pd.DataFrame:
        """What the grid would cost: a row a run, upstreams that have to be trained included; nothing is trained. Prints the minutes of all.

        Columns: id, status (``cached``, ``evaluate`` (a kept checkpoint), ``partial``, ``missing``, ``failed``), labels, tokens, flops,
        minutes (of one worker, here, measurements, samples and compilation included: :mod:`cptlab.sweep.cost`). ``attrs`` of the table
        has ``minutes`` (of the whole sweep: start-up and corpora once, and the workers side by side), ``chain`` (of its longest chain
        of runs alone, which no number of workers undercuts), ``workers`` and ``basis`` (where the speeds are from).
        """
        todo = needed(self.store, self.requests)
        flops = {run_id: _flops(request.spec) for run_id, request in todo.items()}
        found = costs(self.store, todo, self.execution, flops, calibrate=True)
        rows, seen = [], set()
        upstream = [(request, {"role": "upstream"}) for run_id, request in todo.items() if run_id not in {r.id for r in self.requests}]
        for request, labels in [*self._cells, *upstream]:
            if request.id in seen:
                continue
            seen.add(request.id)
            status = self._status(request, todo)
            trained = status in ("missing", "partial")
            cost = {"tokens": request.spec.tokens_trained if trained else 0, "flops": flops[request.id] if trained else 0.0}
            seconds = found[request.id].seconds if request.id in found else 0.0
            rows.append({"id": request.id, "status": status} | labels | cost | {"minutes": minutes(seconds)})
        table = pd.DataFrame(rows)
        whole, chain = map(minutes, wall(todo, found, self.execution))
        table.attrs = {"minutes": whole, "chain": chain, "workers": self.execution.workers}
        table.attrs |= {"basis": sorted({cost.basis for cost in found.values()})}
        if todo:
            workers = self.execution.workers
            runs = f"{len(todo)} run{'s' if len(todo) > 1 else ''} to do"
            print(f"{runs}: about {whole:.1f} min here with {workers} workers, {chain:.1f} min for the longest chain")
        return table

    def _status(self, request: Request, todo: dict[str, Request]) -> str:
        if request.id not in todo:
            return "failed" if self.store.status(request.id) == "failed" else "cached"
        if not lacking(self.store, todo[request.id]).train:
            return "evaluate"
        found = self.store.status(request.id)
        return found if found in ("partial", "running") else "missing"

    def train(self, executor: Executor | None = None) -> Results:
        """Train what is missing, then return the tables of everything. Failed runs are listed, not raised.

        Raises:
            ConfigError: while a notebook is planned, which never trains.
            Interrupted: by the user; the message says where the runs stopped. The same call again goes on from there.
        """
        from cptlab.sweep.progress import Progress

        require(
            not os.environ.get("CPTLAB_PLANNING"),
            "a cell tagged `grid` calls train(): planning never trains. Describe the runs there and train them in a cell of its own",
        )
        if self._before and needed(self.store, self.requests):
            self._before(self)

        progress = Progress(self)
        try:
            status = train(self.requests, self.store, self.execution, executor, progress.update)
        finally:
            progress.close()
        results = self.results(status)
        if self._after:
            self._after(results)
        return results

    def results(self, status: dict[str, str] | None = None) -> Results:
        """Tables of what the store holds now."""
        return tables(self.store, self._cells, status or {})


def _flops(spec: RunSpec) -> float:
    """Training FLOPs of a run; NaN, with a warning that says why, for a Hugging Face model whose configuration cannot be had."""
    if spec.model.family != "hub" and all(upstream.run is not None for upstream in spec.upstreams.values()):
        return spec.flops
    from cptlab.training.models import hub_flops_per_token, hub_parameters, hub_start  # torch, for these models alone

    hubs = {name: upstream for name, upstream in spec.upstreams.items() if upstream.run is None}
    if spec.model.family == "hub":
        hubs["init"] = hub_start(spec)
    for upstream in hubs.values():
        if reason := hub_parameters(upstream).get("reason"):
            warnings.warn(f"the FLOPs of run {spec.id} are not known: {reason}", stacklevel=3)
    return spec.flops_with({name: hub_flops_per_token(upstream, spec.model.context) for name, upstream in hubs.items()})
