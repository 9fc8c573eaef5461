"""Fits kept as records in a run store: computed once, then served, so that figures need no refit and are the same on every machine."""

import hashlib
import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd

from cptlab.laws.fit import DELTA, STARTS, Fit, fit
from cptlab.laws.forms import Form, form
from cptlab.laws.table import Table, load
from cptlab.runs.measured import measured
from cptlab.runs.store import Store
from cptlab.statistics import Estimate

VERSION = 2  # raise by hand when a change of the fit changes its numbers
DIGITS = 7  # of the bootstrap replicates in a record; parameters keep all


def recorded(
    store: Store,
    law: str | Form,
    data: pd.DataFrame | Mapping | str | Path,
    columns: Mapping[str, str] | None = None,
    *,
    freeze: Mapping[str, float] | None = None,
    huber_delta: float = DELTA,
    bootstrap: int = 1000,
    holdout: float | str | None = None,
    seed: int = 0,
    starts: int = STARTS,
) -> Fit:
    """:func:`cptlab.laws.fit`, from its record in ``store``; where there is none it is fitted and recorded.

    The record is found by the law, the values of the columns used, and every option. ``Fit.record`` names it, for the provenance of
    figures.
    """
    law = form(law)
    freeze = {name: float(value) for name, value in (freeze or {}).items()}
    huber_delta, seed = float(huber_delta), int(seed)
    options = {"freeze": freeze, "huber_delta": huber_delta, "bootstrap": bootstrap, "seed": seed, "starts": starts}
    identity = {
        "version": VERSION,
        "law": law.name,
        "equation": law.equation,
        "data": _hash(load(data, law, columns, holdout, seed)),
    } | options

    def compute() -> dict:
        return to_record(
            fit(law, data, columns, freeze=freeze, holdout=holdout, **{name: options[name] for name in options if name != "freeze"})
        )

    return from_record(law, measured("laws", law.name, identity, store, compute))


def to_record(found: Fit) -> dict:
    """A fit as plain JSON values, with its replicates."""
    draws = {name: [float(f"{value:.{DIGITS}g}") for value in found.replicates[name]] for name in found.replicates}
    return found.to_json() | {"replicates": draws}


def from_record(law: Form, record: Mapping) -> Fit:
    """The fit in a record."""
    rows = record["parameters"]
    estimates = {
        name: Estimate(row["value"], *(math.nan if row[end] is None else row[end] for end in ("low", "high")), record["points"])
        for name, row in ((name, rows[name]) for name in law.names)
    }
    same = (
        "points",
        "objective",
        "status",
        "agreement",
        "starts",
        "condition",
        "rms_log_error",
        "held_out",
        "huber_delta",
        "seed",
        "seconds",
    )
    return Fit(
        form=law,
        parameters=estimates,
        frozen=tuple(name for name in law.names if rows[name].get("frozen")),
        unidentified=tuple(record["unidentified"]),
        replicates=pd.DataFrame(record["replicates"], columns=list(law.names), dtype=float),
        warnings=tuple(record["warnings"]),
        minima=tuple(record["minima"]),
        record=record.get("record"),
        **{name: record[name] for name in same},
    )


def _hash(table: Table) -> str:
    digest = hashlib.sha256()
    for values in (*(table.inputs[role] for role in sorted(table.inputs)), table.loss, table.groups, table.held):
        digest.update(np.ascontiguousarray(values, dtype="<f8").tobytes())
    return digest.hexdigest()
