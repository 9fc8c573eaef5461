import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from cptlab import laws
from cptlab.runs.store import Store

ROOT = Path(__file__).parents[1]


@pytest.fixture
def table() -> pd.DataFrame:
    generator = np.random.default_rng(3)
    n, d = np.exp(generator.uniform(14, 20, 40)), np.exp(generator.uniform(18, 24, 40))
    loss = laws.form("chinchilla").loss({"E": 1.7, "A": 300, "B": 900, "alpha": 0.32, "beta": 0.3}, n=n, d=d)
    return pd.DataFrame({"params": n, "tokens": d, "loss": loss * np.exp(generator.normal(0, 0.003, 40))})


def test_a_recorded_fit_is_served_and_equals_the_first(tmp_path, table, monkeypatch):
    first = laws.recorded(Store(tmp_path), "chinchilla", table, bootstrap=20, starts=8)
    monkeypatch.setattr("cptlab.laws.record.fit", lambda *_, **__: pytest.fail("fitted again"))
    again = laws.recorded(Store(tmp_path), "chinchilla", table.iloc[:], bootstrap=20, starts=8)
    assert again.to_json() == first.to_json() and again.replicates.equals(first.replicates)
    assert str(again) == str(first) and (tmp_path / f"{first.record}.json").is_file()


def test_a_record_keeps_the_parameters_at_full_precision(tmp_path, table):
    recorded = laws.recorded(Store(tmp_path), "chinchilla", table, bootstrap=20, starts=8)
    direct = laws.fit("chinchilla", table, bootstrap=20, starts=8)
    assert recorded.values == direct.values and recorded.objective == direct.objective
    assert np.allclose(recorded.replicates, direct.replicates, rtol=1e-6)
    share = recorded.derive(lambda values: float(laws.optimal.compute_optimal(values).a))
    assert share.low < share.value < share.high


@pytest.mark.parametrize(
    "change", [{"seed": 1}, {"starts": 9}, {"huber_delta": 2e-3}, {"freeze": {"E": 1.7}}, {"holdout": 0.2}, {"bootstrap": 21}]
)
def test_every_option_and_every_loss_is_part_of_the_identity(tmp_path, table, change):
    options = {"bootstrap": 0, "starts": 8}
    laws.recorded(Store(tmp_path), "chinchilla", table, **options)
    laws.recorded(Store(tmp_path), "chinchilla", table, **options | change)
    other = table.assign(loss=table["loss"].where(table.index != 7, table["loss"] * 1.0001))
    laws.recorded(Store(tmp_path), "chinchilla", other, **options)
    assert len(list((tmp_path / "laws").glob("*.json"))) == 3


def test_columns_that_are_not_used_do_not_matter(tmp_path, table):
    laws.recorded(Store(tmp_path), "chinchilla", table, bootstrap=0, starts=8)
    laws.recorded(Store(tmp_path), "chinchilla", table.assign(note="x"), bootstrap=0, starts=8)
    assert len(list((tmp_path / "laws").glob("*.json"))) == 1


@pytest.mark.parametrize("arm", ["scratch", "continual"])
def test_the_committed_fit_of_our_own_runs_can_be_repeated(arm):
    path = ROOT / "figures" / f"11_runs_{arm}.csv"
    form = {"scratch": "chinchilla", "continual": "continual"}[arm]
    records = [json.loads(found.read_text()) for found in (ROOT / "runs" / "laws").glob(f"{form}-*.json")]
    record = next(found for found in records if found["points"] == len(pd.read_csv(path)))
    frozen = {name: row["value"] for name, row in record["parameters"].items() if row.get("frozen")}
    again = laws.fit(form, path, freeze=frozen, bootstrap=0)
    assert again.objective == pytest.approx(record["objective"], rel=1e-5)
    assert record["provenance"]["commit"] and record["bootstrap"] == 1000
