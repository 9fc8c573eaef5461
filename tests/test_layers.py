"""Two layers: the committed records are only read, and of two trajectories never one table is made."""

import hashlib
import json
import shutil
import warnings

import pandas as pd
import pytest
import tiny
from safetensors.torch import load_file, save_file

from cptlab.errors import StoreError, TrainingError
from cptlab.runs import promote as promotion
from cptlab.runs.lacking import lacking
from cptlab.runs.promote import promote, upstreams_first
from cptlab.runs.request import Prompt, Request
from cptlab.runs.spec import Optimiser
from cptlab.runs.store import Store, StoreWarning
from cptlab.runs.view import base_name
from cptlab.sweep.grid import Grid

pytestmark = pytest.mark.usefixtures("torch_once")


def tree(folder) -> dict:
    """Content of every file below a folder."""
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.fixture
def base(recipe):
    return tiny.spec(recipe, 6, precision="bf16")


@pytest.fixture
def layered(recipe, base, tmp_path, monkeypatch, torch_once):
    """A store whose committed layer holds a base with its weights and an arm without, as a clone does."""
    from cptlab.runs import provenance

    known = provenance.collect() | {"commit": "c" * 40, "lock_sha256": "l" * 64}
    monkeypatch.setattr("cptlab.training.trainer.collect", lambda: dict(known))
    store = Store(tmp_path / "local", tmp_path / "committed")
    for run in (base, tiny.target(base, 4)):
        tiny.trained(store, run, sets=("one:4",), steps=(0, run.steps))
        promote(store, run.id, weights=run is base)
    shutil.rmtree(store.root)
    return store


def other_bits(store, run, name="curve.csv"):
    """As if the committed run had been made on another processor: the last digits of its curve are others."""
    path = store.committed / run.id / name
    table = pd.read_csv(path)
    table["loss_nats"] *= 1 + 1e-7
    table.to_csv(path, index=False, float_format="%.9g", lineterminator="\n")


def test_what_is_committed_is_served_and_nothing_is_written(layered, base):
    before = tree(layered.committed)
    grid = Grid(layered, tiny.EXECUTION, sets=("one:4",))
    for run in (base, tiny.target(base, 4)):
        grid.add(run, steps=(0, run.steps), arm="x")
    assert set(grid.plan()["status"]) == {"cached"}
    assert len(grid.train().measurements) == 4
    assert tree(layered.committed) == before and not layered.root.exists()


def test_new_runs_and_measurements_go_to_the_local_layer(layered, base):
    before = tree(layered.committed)
    arm = tiny.target(base, 3, seed=5)
    assert tiny.trained(layered, arm)["status"] == "done"
    tiny.trained(layered, base, sets=("one:4", "two:4"), steps=(0, 6))  # step 0 has no weights: it is trained again, to the same bits
    assert tree(layered.committed) == before
    [view] = layered.views(base.id)
    assert view.layer == "committed" and len(view.folders) == 2
    table = layered.measurements(base.id)
    assert set(zip(table["step"], table["set"], strict=True)) == {(s, n) for s in (0, 6) for n in ("one:4", "two:4")}
    assert len((layered.root / base.id / "measurements.csv").read_text().splitlines()) == 1 + 2  # only what is new
    assert not (layered.root / base.id / "run.json").exists()
    assert set(layered.ids()) == {base.id, tiny.target(base, 4).id, arm.id}


def test_arms_start_from_the_committed_weights_whatever_lies_above(layered, base):
    """A replay of a committed base, asked for an earlier checkpoint, leaves local weights of its last step: they are not preferred."""
    tiny.trained(layered, base, sets=("two:4",), steps=(0, 6), keep=(3,))
    local = layered.checkpoint_dir(base.id, 6) / "model.safetensors"
    assert local.is_file()
    tensors = load_file(local)
    save_file({name: value * 0 for name, value in tensors.items()}, local)
    found = layered.checkpoint(base.id, 6)
    assert found.path == layered.committed / "base-weights" / base_name(base.id, 6)
    arm = tiny.target(base, 2, seed=8)
    assert tiny.trained(layered, arm)["status"] == "done"
    manifest = json.loads((layered.committed / "base-weights" / "manifest.json").read_text())["files"]
    assert layered.record(arm.id)["provenance"]["upstream_weights"]["init"]["sha256"] == manifest[base_name(base.id, 6)]["sha256"]


def test_a_replay_with_other_bits_is_a_view_of_its_own(layered, base):
    other_bits(layered, base)
    before = tree(layered.committed)
    committed = layered.views(base.id)[0].measurement_rows()
    request = Request(base, {}, ("one:4", "two:4"), (0, 2, 6))
    with pytest.warns(UserWarning, match="gives other numbers from step 1 on"):
        tiny.trained(layered, base, sets=request.sets, steps=request.steps)
    assert tree(layered.committed) == before
    below, here = layered.views(base.id)
    assert (below.layer, here.layer) == ("committed", "local")
    assert below.measurement_rows() == committed  # no row of another trajectory in it
    assert len(here.measurement_rows()) == 6 and here.record["status"] == "done"
    # Each request is answered by one of them, whole.
    for asked, view in ((Request(base, {}, ("one:4",), (0, 6)), below), (request, here)):
        assert not lacking(layered, asked) and lacking(layered, asked).view == view
    grid = Grid(layered, tiny.EXECUTION, sets=("one:4", "two:4"))
    grid.add(base, steps=(0, 2, 6))
    with pytest.warns(StoreWarning, match="1 of the runs shown were trained again here"):
        results = grid.train()
    assert len(results.measurements) == 6
    # What it lacks now is added to it, without a word.
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        tiny.trained(layered, base, sets=request.sets, steps=(0, 1, 2, 6))
    assert len(layered.views(base.id)[1].measurement_rows()) == 8 and len(layered.views(base.id)) == 2


def test_a_replay_that_is_killed_leaves_no_weights_to_start_from(layered, base, monkeypatch):
    from cptlab.training.engine import Engine

    def save(engine, folder):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "model.safetensors").write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(Engine, "save_weights", save)
    with pytest.raises(KeyboardInterrupt):
        tiny.trained(layered, base, keep=(3,))
    assert layered.checkpoint(base.id, 3) is None and layered.checkpoint_steps(base.id) == [6]


def test_a_local_run_whose_replay_differs_is_trained_whole_and_the_old_set_aside(recipe, store):
    run = tiny.spec(recipe, 4)
    tiny.trained(store, run, sets=("one:4",))
    path = store.path(run.id) / "run.json"
    record = json.loads(path.read_text())
    record["checkpoints"]["4"]["sha256"] = "0" * 64  # as if recorded before the libraries changed
    path.write_text(json.dumps(record))
    store.checkpoint(run.id, 4).path.unlink()
    with pytest.warns(UserWarning, match="gives other numbers from step 4 on"):
        new = tiny.trained(store, run, sets=("one:4", "two:4"))
    assert new["checkpoints"]["4"]["sha256"] == store.checkpoint(run.id, 4).sha256 != "0" * 64
    assert json.loads((store.root / "replaced" / run.id / "run.json").read_text()) == record
    assert store.ids() == [run.id]


def partial_attempt(store, run, monkeypatch, keep):
    """A local training of ``run`` that is killed after it has kept a checkpoint."""
    from cptlab.training.trainer import Training

    note = Training._note

    def killed(training, phase=""):
        note(training, phase)
        if training.step > keep:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Training, "_note", killed)
        with pytest.raises(KeyboardInterrupt):
            tiny.trained(store, run, keep=(keep,))


def test_what_an_unfinished_attempt_left_is_not_the_committed_run(layered, base, monkeypatch):
    """Somebody trains a run, is interrupted, and then pulls the record of it that was made on another machine."""
    alone = Store(layered.root)
    partial_attempt(alone, base, monkeypatch, keep=3)
    assert alone.checkpoint_steps(base.id) == [3]
    [view] = layered.views(base.id)
    assert layered.checkpoint(base.id, 3) is None and view.folders == (layered.committed / base.id,)
    # What is then added is compared first; what was there is set aside.
    tiny.trained(layered, base, sets=("one:4",), steps=(0, 2, 6), keep=(2,))
    assert layered.checkpoint_steps(base.id) == [2, 6] and (layered.root / "replaced" / base.id / "checkpoints").is_dir()


def test_a_replay_to_an_early_step_is_compared_too(layered, base):
    """Rows of a long run's curve are apart: the checkpoint asked for lies before the first."""
    path = layered.committed / base.id / "curve.csv"
    other_bits(layered, base)
    path.write_text("\n".join([(lines := path.read_text().splitlines())[0], *lines[3:]]) + "\n")
    with pytest.warns(UserWarning, match="gives other numbers from step 3 on"):
        tiny.trained(layered, base, keep=(3,))
    assert [view.layer for view in layered.views(base.id)] == ["committed", "local"]
    assert layered.views(base.id)[0].checkpoint(3) is None and layered.views(base.id)[1].checkpoint(3)


def test_a_measurement_that_differs_tells_another_trajectory(layered, base):
    path = layered.committed / base.id / "measurements.csv"
    table = pd.read_csv(path)
    table["loss_nats"] *= 1.001
    table.to_csv(path, index=False, float_format="%.9g", lineterminator="\n")
    before = tree(layered.committed)
    with pytest.warns(UserWarning, match="gives other numbers from step 0 on"):
        tiny.trained(layered, base, sets=("one:4", "two:4"), steps=(0, 6))
    assert len(layered.views(base.id)) == 2 and tree(layered.committed) == before


def test_weights_and_optimiser_state_are_of_one_trajectory(layered, base):
    other_bits(layered, base)
    arm = tiny.target(base, 2, optimiser=Optimiser(state="continue"))
    with pytest.warns(UserWarning, match="gives other numbers"):
        tiny.trained(layered, base, keep_state=(6,))
    assert tiny.trained(layered, arm)["status"] == "done"
    here = layered.views(base.id)[1]
    assert layered.record(arm.id)["provenance"]["upstream_weights"]["init"]["sha256"] == here.checkpoint(6).sha256


def test_tables_of_a_run_whose_second_training_is_not_done(layered, base, monkeypatch):
    other_bits(layered, base)
    layered.start_other(base.id)
    grid = Grid(layered, tiny.EXECUTION, sets=("one:4", "two:4"))
    grid.add(base, steps=(0, 6))
    results = grid.results()
    assert results.failures["status"].tolist() == ["missing"] and results.ids == []


def test_a_replay_never_writes_over_a_kept_checkpoint(recipe, store):
    run = tiny.spec(recipe, 6)
    tiny.trained(store, run, keep=(2,))
    kept = store.checkpoint(run.id, 2).path
    before = kept.stat().st_mtime_ns
    tiny.trained(store, run, keep=(2, 4))
    assert kept.stat().st_mtime_ns == before and store.checkpoint_steps(run.id) == [2, 4, 6]
    assert not (store.path(run.id) / "replay").exists()


# --- hashes ------------------------------------------------------------------------------------------------------------------


def test_weights_that_are_not_the_recorded_ones_start_nothing(recipe, store):
    base = tiny.spec(recipe, 3)
    tiny.trained(store, base, keep_state=(3,))
    path = store.checkpoint(base.id, 3).path
    tensors = load_file(path)
    save_file({name: value + 1 for name, value in tensors.items()}, path)
    arm = tiny.target(base, 2)
    assert "sha256" in tiny.trained(store, arm)["error"]["message"]
    with pytest.raises(StoreError, match="sha256"):  # nor is it measured
        tiny.trained(store, base, sets=("one:4",))
    save_file(tensors, path)
    state = store.optimiser_state(base.id, 3).path
    state.write_bytes(state.read_bytes()[:-1] + b"x")
    arm = tiny.target(base, 2, optimiser=Optimiser(state="carry"))
    assert "sha256" in tiny.trained(store, arm)["error"]["message"]


def test_shards_are_compared_before_training(recipe, store, monkeypatch):
    from cptlab.corpora import open_corpus
    from cptlab.corpora.shards import Corpus

    base = tiny.spec(recipe, 3)
    tiny.trained(store, base)
    real = open_corpus(recipe).shard_hashes
    monkeypatch.setattr(Corpus, "verify", lambda self, sources=None: None)
    monkeypatch.setattr(Corpus, "shard_hashes", property(lambda self: real | {"train/two.bin": "0" * 64}))
    # The arm would read other tokens than its base did; and a measurement would be of other text than the record's.
    message = tiny.trained(store, tiny.target(base, 2))["error"]["message"]
    assert "other tokens (train/two.bin) than the record of its init" in message
    with pytest.raises(TrainingError, match="than its own record"):
        tiny.trained(store, base, sets=("one:4",))


def test_a_shard_that_was_changed_trains_nothing(recipe, store, tmp_path, monkeypatch):
    from cptlab.corpora import open_corpus

    monkeypatch.setenv("CPTLAB_CACHE", str(tmp_path / "cache"))
    path = open_corpus(recipe).path / "train" / "one.bin"
    content = bytearray(path.read_bytes())
    content[100] ^= 1
    path.write_bytes(content)
    record = tiny.trained(store, tiny.spec(recipe, 2))
    assert record["error"]["type"] == "CorpusError" and "one.bin is not the file that was built" in record["error"]["message"]
    assert tiny.trained(store, tiny.spec(recipe, 2, mixture={"two": 1}))["status"] == "done"  # the other source is whole


# --- samples -----------------------------------------------------------------------------------------------------------------


def test_samples_of_another_length_or_temperature_are_made(recipe, store):
    run = tiny.spec(recipe, 2)
    tiny.trained(store, run, prompts=(Prompt("ab", 4, 0.7),))
    for other in (Prompt("ab", 9, 0.7), Prompt("ab", 4, 0.0)):
        assert lacking(store, Request(run, {}, (), (2,), prompts=(other,))).samples
        tiny.trained(store, run, prompts=(other,))
        assert not lacking(store, Request(run, {}, (), (2,), prompts=(other,)))
    assert len(store.samples(run.id)) == 3


# --- moving down -------------------------------------------------------------------------------------------------------------


def test_promote_moves_a_run_and_then_its_additions(layered, base):
    arm = tiny.target(base, 4, seed=3)
    tiny.trained(layered, arm, sets=("one:4",))
    assert promote(layered, arm.id) == [f"{arm.id}: record, 1 measurements"]
    assert sorted(p.name for p in (layered.committed / arm.id).iterdir()) == ["curve.csv", "measurements.csv", "run.json"]
    record = (layered.committed / arm.id / "run.json").read_bytes()
    tiny.trained(layered, arm, sets=("one:4", "two:4"))
    assert promote(layered, arm.id) == [f"{arm.id}: 1 measurements"]
    assert (layered.committed / arm.id / "run.json").read_bytes() == record
    assert len(pd.read_csv(layered.committed / arm.id / "measurements.csv")) == 2
    with pytest.raises(StoreError, match="committed layer"):
        promote(Store(layered.root), arm.id)


def test_promote_takes_upstreams_first(layered, base):
    other = tiny.spec(base.corpus, 6, precision="bf16", seed=5)
    arm = tiny.target(other, 4)
    for run in (other, arm):
        tiny.trained(layered, run)
    assert upstreams_first(layered, [arm.id, "laws/x", other.id, arm.id]) == [other.id, arm.id, "laws/x"]
    assert upstreams_first(layered, ["0123456789abcdef", arm.id]) == ["0123456789abcdef", arm.id]


def _break_identity(record):
    record["spec"]["seed"] = 77


def _break_provenance(record):
    record["provenance"]["commit"] = None


def _break_status(record):
    record |= {"status": "failed", "error": {"type": "NonFiniteLoss", "message": "m", "step": 1}}


@pytest.mark.parametrize(
    ("damage", "named"),
    [(_break_identity, "its spec is that of run"), (_break_provenance, "lacks commit"), (_break_status, "NonFiniteLoss")],
)
def test_promote_refuses_what_does_not_hold(layered, base, damage, named):
    arm = tiny.target(base, 4, seed=3)
    tiny.trained(layered, arm)
    path = layered.root / arm.id / "run.json"
    record = json.loads(path.read_text())
    damage(record)
    path.write_text(json.dumps(record))
    before = tree(layered.committed)
    with pytest.raises(StoreError, match=named):
        promote(layered, arm.id)
    assert tree(layered.committed) == before


def test_promote_changes_nothing_that_is_committed(layered, base):
    other_bits(layered, base)
    with pytest.warns(UserWarning, match="gives other numbers"):
        tiny.trained(layered, base, sets=("one:4", "two:4"), steps=(0, 6))
    before = tree(layered.committed)
    with pytest.raises(StoreError, match="a committed run is not changed"):
        promote(layered, base.id)
    with pytest.raises(StoreError, match="no finished run"):
        promote(layered, "0123456789abcdef")
    assert tree(layered.committed) == before


def test_promote_knows_the_weights_that_a_run_started_from(layered, base, recipe):
    other_bits(layered, base)
    with pytest.warns(UserWarning, match="gives other numbers"):
        tiny.trained(layered, base, keep_state=(6,))
    arm = tiny.target(base, 2, optimiser=Optimiser(state="continue"))
    tiny.trained(layered, arm)
    path = layered.root / arm.id / "run.json"
    record = json.loads(path.read_text())
    record["provenance"]["upstream_weights"]["init"]["sha256"] = "0" * 64
    path.write_text(json.dumps(record))
    with pytest.raises(StoreError, match="that are not the committed ones"):
        promote(layered, arm.id)
    new = tiny.spec(recipe, 3, seed=9)
    tiny.trained(layered, new)
    arm = tiny.target(new, 2)
    tiny.trained(layered, arm)
    with pytest.raises(StoreError, match="is not committed: promote that first"):
        promote(layered, arm.id)


def test_promote_weights(layered, base, monkeypatch):
    arm = tiny.target(base, 4, seed=3)
    tiny.trained(layered, arm)
    monkeypatch.setattr(promotion, "BASE_WEIGHTS_LIMIT_BYTES", 10)
    before = tree(layered.committed)
    with pytest.raises(StoreError, match="MiB"):
        promote(layered, arm.id, weights=True)
    assert tree(layered.committed) == before
    monkeypatch.undo()
    sha256 = layered.checkpoint(arm.id, 4).sha256
    promote(layered, arm.id, weights=True)
    entry = json.loads((layered.committed / "base-weights" / "manifest.json").read_text())["files"][base_name(arm.id, 4)]
    assert entry["sha256"] == sha256 and entry["run"] == arm.id
    shutil.rmtree(layered.root)
    assert layered.checkpoint(arm.id, 4).verified().is_file()
