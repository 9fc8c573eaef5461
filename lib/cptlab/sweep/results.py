"""What came of a grid of runs, as tidy tables."""

from collections.abc import Iterable
from dataclasses import dataclass

import pandas as pd

from cptlab.runs.provenance import warn_drift
from cptlab.runs.record import compute_of
from cptlab.runs.request import Request
from cptlab.runs.shapes import parameter_counts
from cptlab.runs.store import Store


@dataclass(frozen=True)
class Results:
    """Tables of a grid that has been run, one row a run, a logged step or a measurement, each with the labels of its run.

    ``runs``: id, status, tokens, flops, parameters, compute (what matrices were multiplied in). ``curves``: step, tokens, lr, loss_nats,
    grad_norm, what else a run's objective tells, compute. ``measurements``: step, tokens, flops, set, loss_nats, accuracy, compute.
    ``samples``: step, prompt, text. ``failures``: the runs that failed or were skipped, with the error.
    """

    runs: pd.DataFrame
    curves: pd.DataFrame
    measurements: pd.DataFrame
    samples: pd.DataFrame
    failures: pd.DataFrame

    @property
    def ids(self) -> list[str]:
        """Ids of the runs that finished."""
        return self.runs.loc[self.runs["status"] == "done", "id"].tolist()

    def final(self, name: str) -> pd.DataFrame:
        """Measurements on one set at each run's last step."""
        table = self.measurements[self.measurements["set"] == name]
        return table[table["step"] == table.groupby("id")["step"].transform("max")].reset_index(drop=True)


def tables(store: Store, cells: Iterable[tuple[Request, dict]], ended: dict[str, str]) -> Results:
    """Tables of what the store holds now of ``cells`` (requests with their labels); ``ended`` has the statuses of runs just worked on."""
    runs, curves, measured, samples, failures, records = [], [], [], [], [], []
    for request, labels in cells:
        run_id, spec = request.id, request.spec
        found = ended.get(run_id) or store.status(run_id)
        size = {} if spec.model.family == "hub" else parameter_counts(spec.model)
        row = {"id": run_id, "status": found} | labels | {"tokens": spec.tokens_trained, "flops": spec.flops} | size
        record = store.record(run_id) if store.status(run_id) in ("done", "failed") else {}
        if found != "done":
            failures.append({"id": run_id, "status": found} | labels | {"error": (record.get("error") or {}).get("message")})
        else:
            records.append(record)
            summary = record["summary"]
            row |= {key: summary[key] for key in ("flops", "seconds", "tokens_per_s", "utilisation")}
            row |= {"epochs": max(summary["epochs"].values()), "compute": compute_of(record)}
            names = {"id": run_id} | labels | size | {"compute": row["compute"]}
            curves.append(store.curve(run_id).assign(**names))
            table = store.measurements(run_id)
            table = table[table["set"].isin(request.sets) & table["step"].isin(request.steps)]
            measured.append(table.assign(**names, flops=table["tokens"] * (summary["flops"] / summary["tokens"])))
            samples += [sample | names for sample in store.samples(run_id)]
        runs.append(row)
    warn_drift(records)
    empty = pd.DataFrame(columns=["id", "step", "tokens", "set", "loss_nats"])
    joined = [pd.concat(table, ignore_index=True) if table else empty for table in (curves, measured)]
    failed = pd.DataFrame(failures, columns=None if failures else ["id", "status", "error"])
    return Results(pd.DataFrame(runs), *joined, pd.DataFrame(samples), failed)
