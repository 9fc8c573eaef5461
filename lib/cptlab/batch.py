"""Batches: a notebook executed once for each combination of dials, a folder each, and tables over all of them."""

import itertools
import json
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cptlab import outputs, paths
from cptlab.errors import ConfigError
from cptlab.files import atomic_write
from cptlab.notebooks import Job, Notebook, parse_parameters

if TYPE_CHECKING:
    import pandas as pd


def combinations(given: dict[str, Any], each: Sequence[str]) -> list[dict[str, Any]]:
    """Parameters of every execution: ``given`` with each combination of the values in ``each`` (``near=de,es``, ``seeds=[0],[1]``).

    Raises:
        ConfigError: not of the form key=value,value, one value only, or a key that ``given`` or another ``each`` has, too.
    """
    values: dict[str, list] = {}
    for item in each:
        key, _, text = item.partition("=")
        try:
            found = parse_parameters([f"{key}=[{text}]"])[key]
        except ConfigError:
            found = [None, ""]
        if "" in found or (None in found and "null" not in text and "~" not in text):
            raise ConfigError(f"--each {item}: give values in YAML with commas between them, for example near=de,es or seeds=[0],[1]")
        if not found:
            raise ConfigError(f"--each {item}: give at least one value, for example --each near=de,es")
        if key in values or key in given:
            raise ConfigError(f"--each {item}: {key} is given twice; put all of its values into one --each")
        values[key] = [parse_parameters([f"{key}={v}"])[key] if isinstance(v, str) else v for v in found]
    return [given | dict(zip(values, row, strict=True)) for row in itertools.product(*values.values())]


def turned(parameters: dict[str, Any]) -> dict[str, Any]:
    """The dials among a notebook's parameters that are not left to the profile."""
    return {name: value for name, value in parameters.items() if name != "profile" and value is not None}


def job(book: Notebook, parameters: dict[str, Any], env: dict[str, str], several: bool = False) -> Job:
    """The execution of a notebook with these parameters: its copy, tables and changed figures go to one folder a combination; of
    ``several`` combinations each has a folder of its own in ``CPTLAB_FIGURES``, too."""
    folder = outputs.executed_dir(parameters["profile"], turned(parameters)).resolve()
    if book.path.parent.resolve() != paths.notebooks_dir().resolve():  # a solution, or a copy of one's own, beside its namesake
        folder /= book.path.parent.name
    if several and env.get("CPTLAB_FIGURES"):
        env = env | {"CPTLAB_FIGURES": str(Path(env["CPTLAB_FIGURES"]) / (outputs.slug(turned(parameters)) or "unchanged"))}
    return Job(book.path, folder / book.path.name, parameters, env | {"CPTLAB_EXECUTED": str(folder)})


def clear(one: Job) -> None:
    """Take away the tables of an earlier execution, which a failed one would seem to have made."""
    shutil.rmtree(one.output.parent / one.name, ignore_errors=True)


def title(output: Path) -> str:
    """Notebook and combination, by the folder that its executed copy lies in."""
    return output.stem + (f" {output.parent.name}" if "=" in output.parent.name else "")


def overview(jobs: Iterable[Job]) -> "list[pd.DataFrame]":
    """Tables over all executions, also written beside their folders: ``<notebook>_verdicts.csv`` with a row a claim and quantity, and
    ``<notebook>_losses.csv`` with the mean loss at the last step, a row an arm and evaluation set. An execution that failed has no rows.
    """
    import pandas as pd

    rows: dict[tuple[str, str], list] = {}
    folders: dict[str, Path] = {}
    for one in jobs:
        dials = {name: value if isinstance(value, str) else json.dumps(value) for name, value in turned(one.parameters).items()}
        folders[one.name] = one.output.parent.parent if dials else one.output.parent
        rows.setdefault((one.name, "verdicts"), []).extend(dials | row for row in _verdicts(one))
        rows.setdefault((one.name, "losses"), []).extend(dials | row for row in _losses(one))
    tables = []
    for (name, kind), found in rows.items():
        if found:
            table = pd.DataFrame(found)
            atomic_write(folders[name] / f"{name}_{kind}.csv", table.to_csv(index=False, float_format="%.6g", lineterminator="\n"))
            tables.append(table)
    return tables


def _verdicts(one: Job) -> list[dict]:
    path = one.output.parent / one.name / "claims.json"
    if not path.is_file():
        return []
    return [
        {"claim": claim, "verdict": entry["verdict"], "quantity": quantity} | {name: found[name] for name in ("value", "low", "high", "n")}
        for claim, entry in json.loads(path.read_text(encoding="utf-8")).items()
        for quantity, found in entry["quantities"].items()
    ]


def _losses(one: Job) -> list[dict]:
    import pandas as pd

    path = one.output.parent / one.name / "measurements.parquet"
    if not path.is_file():
        return []
    table = pd.read_parquet(path)
    last = table[table["step"] == table.groupby("id")["step"].transform("max")]
    measures = {"id", "seed", "step", "tokens", "loss_nats", "accuracy", "predicted_tokens", "compute", "flops"}
    by = [name for name in last if name not in measures]  # labels: what is averaged are seeds
    means = last.groupby(by, sort=False, dropna=False).agg(loss_nats=("loss_nats", "mean"), runs=("id", "count"))
    return means.reset_index().to_dict("records")
