"""Batches: one execution a combination of dials, a folder each, tables over all."""

import json

import pandas as pd
import pytest

from cptlab import batch, outputs
from cptlab.errors import ConfigError
from cptlab.notebooks import Notebook


def test_combinations():
    assert batch.combinations({"tokens": 5}, []) == [{"tokens": 5}]
    found = batch.combinations({"tokens": 5}, ["near=de,es", "seeds=[0],[1, 2]"])
    assert found == [{"tokens": 5, "near": near, "seeds": seeds} for near in ("de", "es") for seeds in ([0], [1, 2])]
    assert batch.combinations({}, ["lr=3e-3,0.01"]) == [{"lr": 0.003}, {"lr": 0.01}]
    for each, given in ((["near="], {}), (["near=de", "near=es"], {}), (["near=de"], {"near": "fr"}), (["near"], {})):
        with pytest.raises(ConfigError):
            batch.combinations(given, each)


def test_folders_tell_the_dials():
    assert outputs.slug({"near": "de", "seeds": [0, 1]}) == "near=de_seeds=0-1"
    assert outputs.slug({"lr": {"base": 0.002}}).startswith("lr=base-0.002-")
    assert outputs.slug({"near": "de", "seed": 1}) == outputs.slug({"seed": 1, "near": "de"})
    values = ["a b", "a-b", ["a", "b"], "中", "日", "/a/b.txt", "a/b.txt", -1, 1, {}, [], {"a": 1}]
    assert len({outputs.slug({"x": value}) for value in values}) == len(values)
    long = {"languages": [f"l{number}" for number in range(60)]}
    assert len(outputs.slug(long)) == 80 and outputs.slug(long) != outputs.slug({"languages": [*long["languages"], "x"]})


def test_tables_over_all_executions(tmp_path, monkeypatch):
    monkeypatch.setenv("CPTLAB_LOCAL", str(tmp_path))
    monkeypatch.setenv("CPTLAB_ROOT", str(tmp_path / "clone"))
    book = Notebook(tmp_path / "clone" / "notebooks" / "02_curves.ipynb")
    solution = Notebook(tmp_path / "clone" / "notebooks" / "solutions" / "02_curves.ipynb")  # beside its namesake, not over it
    assert batch.job(solution, {"profile": "smoke"}, {}).output == tmp_path / "notebooks" / "smoke" / "solutions" / "02_curves.ipynb"
    jobs = [batch.job(book, {"profile": "smoke", "near": near, "far": None}, {}) for near in ("de", "es", "ru")]
    assert jobs[0].output == tmp_path / "notebooks" / "smoke" / "near=de" / "02_curves.ipynb"
    assert jobs[0].env == {"CPTLAB_EXECUTED": str(jobs[0].output.parent)}
    assert batch.title(jobs[0].output) == "02_curves near=de"
    for job, value in zip(jobs[:2], (0.3, 0.2), strict=True):  # the third has failed
        quantity = {"value": value, "low": 0.1, "high": 0.5, "n": 3, "dof": 2, "verdict": "reproduced"}
        entry = {"verdict": "reproduced", "quantities": {"saving": quantity}, "profile": "smoke", "notebook": "02_curves", "runs": []}
        (job.output.parent / "02_curves").mkdir(parents=True)
        (job.output.parent / "02_curves" / "claims.json").write_text(json.dumps({"C1.4": entry}))
        rows = [("a", "s", "1M", 0, "fr", 9.0, 5), ("a", "s", "1M", 5, "fr", 2.0, 5), ("b", "s", "1M", 5, "fr", 4.0, 5)]
        rows.append(("c", "s", "1M", 7, "fr", 1.0, 7))  # of another budget, which is not averaged in
        table = pd.DataFrame(rows, columns=["id", "arm", "size", "step", "set", "loss_nats", "budget"])
        table.to_parquet(job.output.parent / "02_curves" / "measurements.parquet")
    verdicts, losses = batch.overview(jobs)
    assert verdicts.to_dict("records") == [
        {"near": near, "claim": "C1.4", "verdict": "reproduced", "quantity": "saving", "value": v, "low": 0.1, "high": 0.5, "n": 3}
        for near, v in (("de", 0.3), ("es", 0.2))
    ]
    assert losses.to_dict("records") == [
        {"near": near, "arm": "s", "size": "1M", "set": "fr", "budget": budget, "loss_nats": loss, "runs": runs}
        for near in ("de", "es")
        for budget, loss, runs in ((5, 3.0, 2), (7, 1.0, 1))
    ]
    written = (tmp_path / "notebooks" / "smoke").glob("*.csv")
    batch.clear(jobs[0])
    assert batch.overview(jobs[:1]) == []  # before it is executed again
    in_figures = batch.job(book, {"profile": "smoke", "near": "de"}, {"CPTLAB_FIGURES": "/f"}, several=True)
    assert in_figures.env["CPTLAB_FIGURES"] == "/f/near=de"
    assert sorted(path.name for path in written) == [
        "02_curves_losses.csv",
        "02_curves_verdicts.csv",
    ]
