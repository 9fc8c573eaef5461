"""The run store: what is written is read, what is torn is named, what is measured is only added to."""

import json
import math
import multiprocessing
import os
import subprocess
import sys
import time
import warnings
from pathlib import Path

import pytest

import cptlab
from cptlab.errors import StoreError
from cptlab.runs.store import Store, StoreWarning

ID = "0123456789abcdef"


def make_record(**changes):
    return {
        "labels": {"arm": "continual"},
        "spec": {"tokens": 8192},
        "identity": {"recipe_version": 2, "corpus_fingerprint": "f" * 64, "upstreams": {}},
        "status": "done",
        "error": None,
        "summary": {"steps": 2, "tokens": 8192},
        "checkpoints": {},
        "provenance": {},
    } | changes


def curve_rows(count):
    return [{"step": i, "tokens": i * 4096, "lr": 3e-3 / (i + 1), "loss_nats": 7.6 - i / 1000, "grad_norm": 1.0} for i in range(count)]


def measured(step, name, loss=3.0, accuracy=0.25):
    return {"step": step, "tokens": step * 4096, "set": name, "loss_nats": loss, "accuracy": accuracy, "predicted_tokens": 1000}


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path)


def test_default_layers_follow_the_environment(lab, monkeypatch):
    assert Store().layers == (lab / "runs", lab / "runs" / "local")
    monkeypatch.setenv("CPTLAB_LOCAL", str(lab / "mine"))
    assert Store().layers == (lab / "runs", lab / "mine" / "local")
    assert Store().ids() == []


def test_record_round_trip(store):
    store.write_record(ID, make_record())
    assert store.record(ID) == {"format": 1, "id": ID} | make_record()
    assert store.ids() == [ID]
    assert [path.name for path in store.path(ID).iterdir()] == ["run.json"]  # no temporary file left


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"format": 2}, "format"),
        ({"id": "fedcba9876543210"}, "id"),
        ({"labels": None}, "labels"),
        ({"identity": {"recipe_version": 2, "upstreams": {}}}, "corpus_fingerprint"),
        ({"status": "running"}, "status"),
        ({"status": "failed"}, "error"),
        ({"error": {"type": "X", "message": "m", "step": 1}}, "error"),
        ({"status": "failed", "error": {"type": "X"}}, "message"),
        ({"summary": {"flops": math.nan}}, "JSON"),
        ({"summary": {"flops": object()}}, "JSON"),
    ],
)
def test_a_wrong_record_is_refused_and_nothing_is_written(store, changes, named):
    with pytest.raises(StoreError, match=named) as caught:
        store.write_record(ID, make_record(**changes))
    assert "run.json" in str(caught.value)
    assert not (store.path(ID) / "run.json").exists()


def test_a_missing_field_is_named(store):
    record = make_record()
    del record["provenance"]
    with pytest.raises(StoreError, match="'provenance' is missing"):
        store.write_record(ID, record)


@pytest.mark.parametrize(
    "damage", [lambda text: text[: len(text) // 2], lambda text: "", lambda text: "[1, 2]", lambda text: text.replace(ID, "0" * 16)]
)
def test_a_damaged_record_names_its_file(store, damage):
    store.write_record(ID, make_record())
    path = store.path(ID) / "run.json"
    path.write_text(damage(path.read_text()))
    with pytest.raises(StoreError, match=r"run\.json") as caught:
        store.record(ID)
    assert str(path) in str(caught.value)
    with pytest.raises(StoreError):
        store.status(ID)


def test_an_absent_record_and_a_bad_id_are_store_errors(store):
    with pytest.raises(StoreError, match="does not exist"):
        store.record(ID)
    for bad in ("../escape", "", ".hidden", "a/b"):
        with pytest.raises(StoreError, match="not a run id"):
            store.path(bad)


def test_status_of_every_kind(store):
    assert store.status(ID) == "missing"
    store.state_dir(ID).mkdir(parents=True)
    assert store.status(ID) == "missing"  # an empty folder resumes nothing
    (store.state_dir(ID) / "engine.pt").write_bytes(b"x")
    assert store.status(ID) == "partial"
    with store.lock(ID):
        assert store.status(ID) == "running"
    assert store.status(ID) == "partial"
    store.write_record(ID, make_record(status="failed", error={"type": "TrainingError", "message": "loss is NaN", "step": 3}))
    assert store.status(ID) == "failed"
    with store.lock(ID):
        assert store.status(ID) == "running"  # tried again
    store.write_record(ID, make_record())
    assert store.status(ID) == "done"
    with store.lock(ID):
        assert store.status(ID) == "done"  # being measured
    assert store.all_ids() == [ID]


def test_a_stale_lock_is_not_running(store):
    store.path(ID).mkdir()
    (store.path(ID) / "lock").write_text(json.dumps({"host": "elsewhere", "pid": 1, "started": 0, "token": "x"}))
    assert store.status(ID) == "running"  # another host, a fresh heartbeat
    long_ago = time.time() - 3600
    os.utime(store.path(ID) / "lock", (long_ago, long_ago))
    assert store.status(ID) == "missing"


def test_curve_round_trip(store):
    assert store.curve(ID).empty
    rows = curve_rows(3)
    rows[2]["loss_nats"] = math.nan  # the last row of a run that blew up
    rows[1]["grad_norm"] = None
    store.write_curve(ID, rows)
    frame = store.curve(ID)
    assert list(frame.columns) == ["step", "tokens", "lr", "loss_nats", "grad_norm"]
    assert frame["tokens"].tolist() == [0, 4096, 8192]
    assert frame["lr"].tolist() == pytest.approx([3e-3, 1.5e-3, 1e-3], rel=1e-8)
    assert math.isnan(frame["loss_nats"][2])
    assert math.isnan(frame["grad_norm"][1])
    assert store.curve(ID).dtypes.astype(str).tolist() == ["int64", "int64", "float64", "float64", "float64"]
    first = (store.path(ID) / "curve.csv").read_bytes()
    store.write_curve(ID, rows)
    assert (store.path(ID) / "curve.csv").read_bytes() == first


def test_a_float32_loss_survives_the_table(store):
    import numpy as np

    losses = np.random.default_rng(0).uniform(1, 8, 200).astype(np.float32)
    store.write_curve(ID, [curve_rows(1)[0] | {"step": i, "loss_nats": loss} for i, loss in enumerate(losses)])
    assert (store.curve(ID)["loss_nats"].to_numpy(np.float32) == losses).all()


def test_a_wrong_row_is_refused(store):
    with pytest.raises(StoreError, match="grad_norm"):
        store.write_curve(ID, [{"step": 1, "tokens": 1, "lr": 0.1, "loss_nats": 1.0}])
    with pytest.raises(StoreError, match="whole number"):
        store.write_curve(ID, [curve_rows(1)[0] | {"step": 1.5}])
    with pytest.raises(StoreError, match="perplexity"):
        store.add_measurements(ID, [measured(1, "en") | {"perplexity": 20.0}])


@pytest.mark.parametrize(
    "text", ["step,tokens\n1,2\n", "step,tokens,lr,loss_nats,grad_norm\n1,2,0.1\n", "step,tokens,lr,loss_nats,grad_norm\n1,x,1,1,1\n", ""]
)
def test_a_damaged_table_names_its_file(store, text):
    store.write_curve(ID, curve_rows(1))
    (store.path(ID) / "curve.csv").write_text(text)
    with pytest.raises(StoreError, match=r"curve\.csv"):
        store.curve(ID)


def test_measurements_are_added_and_sorted(store):
    assert store.measurements(ID).empty
    store.add_measurements(ID, [measured(20, "zh", 3.5), measured(10, "en", 2.5)])
    store.add_measurements(ID, [measured(10, "NA", 2.75, accuracy=None), measured(20, "en", 2.25)])
    frame = store.measurements(ID)
    assert list(zip(frame["step"], frame["set"], frame["loss_nats"], strict=True)) == [
        (10, "NA", 2.75),
        (10, "en", 2.5),
        (20, "en", 2.25),
        (20, "zh", 3.5),
    ]
    assert math.isnan(frame["accuracy"][0])
    assert frame["predicted_tokens"].tolist() == [1000] * 4


def test_a_measured_pair_is_kept_and_a_difference_is_told(store):
    store.add_measurements(ID, [measured(10, "en", 2.5)])
    path = store.path(ID) / "measurements.csv"
    before, stamp = path.read_bytes(), path.stat().st_mtime_ns
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        store.add_measurements(ID, [measured(10, "en", 2.5 * (1 + 1e-7))])
    assert path.read_bytes() == before
    assert path.stat().st_mtime_ns == stamp  # not even rewritten
    with pytest.warns(StoreWarning, match=r"step 10, en: recorded 2\.5, now 2\.6"):
        store.add_measurements(ID, [measured(10, "en", 2.6), measured(11, "en", 2.4)])
    assert store.measurements(ID)["loss_nats"].tolist() == [2.5, 2.4]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        store.add_measurements(ID, [measured(10, "en", 2.6)], replace=True)
    assert store.measurements(ID)["loss_nats"].tolist() == [2.6]  # nothing of the old run stays behind


def _add_many(root, name):
    for step in range(25):
        Store(root).add_measurements(ID, [measured(step, name)])
        Store(root).add_samples(ID, [{"step": step, "prompt": name, "text": "t", "seed": 0, "temperature": 0.8, "length": 40}])


def test_processes_that_add_at_once_lose_nothing(store):
    context = multiprocessing.get_context("spawn")
    with context.Pool(3) as pool:
        pool.starmap(_add_many, [(store.root, name) for name in ("en", "fr", "zh")], chunksize=1)
    assert len(store.measurements(ID)) == 75
    assert len(store.samples(ID)) == 75


def test_samples(store):
    assert store.samples(ID) == []
    first = {"step": 20, "prompt": "In the beginning", "text": "…", "seed": 0, "temperature": 0.8, "length": 40}
    store.add_samples(ID, [first, first | {"step": 10}])
    store.add_samples(ID, [first | {"text": "new"}])
    assert [(sample["step"], sample["text"]) for sample in store.samples(ID)] == [(10, "…"), (20, "new")]
    with pytest.raises(StoreError, match="expected"):
        store.add_samples(ID, [{"step": 1}])


def test_progress_and_state(store):
    assert store.progress(ID) is None
    store.write_progress(ID, {"step": 5, "steps": 10})
    assert store.progress(ID) == {"step": 5, "steps": 10}
    store.state_dir(ID).mkdir()
    (store.state_dir(ID) / "x").write_text("x")
    store.clear_state(ID)
    assert store.progress(ID) is None
    assert store.status(ID) == "missing"
    store.clear_state(ID)


def test_serving_imports_no_training_library(store):
    store.write_record(ID, make_record())
    store.write_curve(ID, curve_rows(3))
    code = (
        "import sys; from pathlib import Path; from cptlab.runs import provenance; from cptlab.runs.store import Store;"
        f"s = Store(Path({str(store.root)!r})); s.status({ID!r}); assert 'pandas' not in sys.modules;"
        f"r = s.record({ID!r}); s.curve({ID!r}); s.measurements({ID!r}); provenance.warn_drift([r]); provenance.collect();"
        "print(sorted({'torch', 'transformers', 'deepspeed', 'datasets'} & set(sys.modules)))"
    )
    source = str(Path(cptlab.__file__).parents[1])
    done = subprocess.run(
        [sys.executable, "-c", code], env={"PYTHONPATH": source, "PATH": "/usr/bin:/bin"}, capture_output=True, text=True, check=False
    )
    assert done.stdout.strip() == "[]", done.stderr
