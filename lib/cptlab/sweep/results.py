"""What came of a grid of runs, as tidy tables."""

import io
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from cptlab.files import atomic_write
from cptlab.runs.evaluation_sets import EvaluationSet
from cptlab.runs.lacking import lacking
from cptlab.runs.provenance import warn_drift
from cptlab.runs.record import compute_of
from cptlab.runs.request import Request
from cptlab.runs.shapes import parameter_counts
from cptlab.runs.store import Store, StoreWarning
from cptlab.runs.view import sample_key


@dataclass(frozen=True)
class Results:
    """Tables of a grid that has been run, one row a run, a logged step or a measurement, each with the labels of its run.

    ``runs``: id, status, tokens, flops, parameters, seconds, tokens_per_s, utilisation, epochs, compute (what matrices were multiplied in).
    ``curves``: step, tokens, lr, loss_nats, grad_norm, what else a run's objective tells, compute. ``measurements``: step, tokens, flops,
    set, loss_nats, accuracy, compute. ``samples``: step, prompt, text. ``failures``: the runs that failed or were skipped, with the error.
    ``local`` are the ids of those that show something trained or measured here, which no committed record holds.
    """

    runs: pd.DataFrame
    curves: pd.DataFrame
    measurements: pd.DataFrame
    samples: pd.DataFrame
    failures: pd.DataFrame
    local: tuple[str, ...] = ()

    @property
    def ids(self) -> list[str]:
        """Ids of the runs that finished."""
        return self.runs.loc[self.runs["status"] == "done", "id"].tolist()

    def save(self, folder: Path) -> None:
        """Write each table that has rows as ``<folder>/<table>.parquet``."""
        folder.mkdir(parents=True, exist_ok=True)
        for name in TABLES:
            table, path = getattr(self, name), folder / f"{name}.parquet"
            path.unlink(missing_ok=True)  # an earlier execution's
            if len(table):
                mixed = [column for column in table if table[column].dropna().map(type).nunique() > 1]  # labels may be
                table = table.assign(**{column: table[column].map(str, na_action="ignore") for column in mixed})
                buffer = io.BytesIO()
                table.to_parquet(buffer, index=False)
                atomic_write(path, buffer.getvalue())

    def final(self, name: str) -> pd.DataFrame:
        """Measurements on one evaluation set at each run's last step."""
        table = self.measurements[self.measurements["set"] == EvaluationSet.parse(name).name]
        return table[table["step"] == table.groupby("id")["step"].transform("max")].reset_index(drop=True)


TABLES = ("runs", "curves", "measurements", "samples", "failures")

# Columns of runs that have not finished, too: a table in which all failed has the same ones.
RUN_COLUMNS = ("seconds", "tokens_per_s", "utilisation", "epochs", "compute")


def tables(store: Store, cells: Iterable[tuple[Request, dict]], ended: dict[str, str]) -> Results:
    """Tables of what the store holds now of ``cells`` (requests with their labels); ``ended`` has the statuses of runs just worked on."""
    runs, curves, measured, samples, failures, records, others, local = [], [], [], [], [], [], [], []
    for request, labels in cells:
        run_id, spec = request.id, request.spec
        view = lacking(store, request).view
        found = ended.get(run_id, "done")  # of this view, not of another one
        if found == "done":
            here = store.status(run_id)
            found = view.status or (here if here != "done" else "missing")
        size = {} if spec.model.family == "hub" else parameter_counts(spec.model)
        row = {"id": run_id, "status": found} | labels | {"tokens": spec.tokens_trained, "flops": spec.flops} | size
        row |= dict.fromkeys(RUN_COLUMNS)
        if found == "done":
            if spec.model.family == "hub":
                size = {name: view.record["summary"]["parameters"][name] for name in ("non_embedding", "total")}
                row |= size
            records.append(view.record)
            if view.layer == "local" or any((f / part).exists() for f in view.folders[1:] for part in ("measurements.csv", "samples.json")):
                local.append(run_id)
            if view.layer == "local" and store.committed is not None and store.views(run_id)[0].layer == "committed":
                others.append(run_id)
            summary = view.record["summary"]
            row |= {key: summary[key] for key in ("flops", "seconds", "tokens_per_s", "utilisation")}
            row |= {"epochs": max(summary["epochs"].values()), "compute": compute_of(view.record)}
            names = {"id": run_id} | labels | size | {"compute": row["compute"]}
            curves.append(view.curve().assign(**names))
            table = view.measurements()
            table = table[table["set"].isin(request.sets) & table["step"].isin(request.measured_steps)]
            measured.append(table.assign(**names, flops=table["tokens"] * (summary["flops"] / spec.tokens_trained)))
            asked = {(step, p.text, p.seed, p.temperature, p.length) for step in request.steps for p in request.prompts}
            samples += [sample | names for sample in view.samples() if sample_key(sample) in asked]
        else:
            error = view.record["error"] if view.status == "failed" else None
            failures.append({"id": run_id, "status": found} | labels | {"error": (error or {}).get("message")})
        runs.append(row)
    warn_drift(records)
    if others:
        warnings.warn(
            f"{len(others)} of the runs shown were trained again here for what their committed records lack, and gave other numbers; they "
            f"are shown as trained here ({', '.join(others[:3])}): delete their folders in {store.root} to go back to the committed ones",
            StoreWarning,
            stacklevel=3,
        )
    empty = pd.DataFrame(columns=["id", "step", "tokens", "set", "loss_nats"])
    joined = [pd.concat(table, ignore_index=True) if table else empty for table in (curves, measured)]
    failed = pd.DataFrame(failures, columns=None if failures else ["id", "status", "error"])
    return Results(pd.DataFrame(runs), *joined, pd.DataFrame(samples), failed, tuple(dict.fromkeys(local)))
