"""Profiles and the notebook's view of them."""

from dataclasses import replace

import pytest
import tiny
import yaml

from cptlab import study as study_module
from cptlab.corpora.parts import SplitSpec
from cptlab.errors import ConfigError
from cptlab.runs.execution import Execution
from cptlab.runs.spec import DataOrder, Phase, Schedule, Upstream
from cptlab.study import Settings, Study, load_profile, open_study, profile_names

CONTENT = {
    "description": "for tests",
    "execution": {"workers": 3, "zero_stage": 2, "compile": False},
    "frame": {
        "corpus": "verses-en-fr-zh-smoke",
        "context": 128,
        "batch_tokens": 1024,
        "precision": "fp32",
        "schedule": {"warmup_tokens": 2048},
    },
    "notebooks": {"02_x": {"tokens": 4096, "frame": {"context": 64}}, "03_y": {}},
}


def written(tmp_path, **changes) -> str:
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump({key: value for key, value in (CONTENT | changes).items() if value is not None}))
    return str(path)


@pytest.mark.parametrize("name", profile_names())
def test_profiles_that_come_with_the_package(name):
    profile = load_profile(name)
    assert profile["description"]
    for notebook in (*profile["notebooks"], "new"):
        study = Study(notebook, name, profile)
        assert study.execution.workers >= 1
        assert study.frame["batch_tokens"] % study.frame["context"] == 0
        assert study.corpus.vocab >= 257
        if notebook != "new":
            for size in (*study.settings.get("sizes", ()), *filter(None, [study.settings.get("size"), study.settings.get("one_size")])):
                assert study.model(size).vocab == study.corpus.vocab


def test_profiles_have_the_same_notebooks():
    assert {"laptop", "smoke"} <= set(profile_names())
    sections = {name: set(load_profile(name)["notebooks"]) for name in profile_names()}
    assert sections["smoke"] == sections["laptop"]


def test_laptop_is_two_single_thread_workers():
    execution = Study("x", "laptop", load_profile("laptop")).execution
    assert (execution.workers, execution.threads, execution.ranks, execution.compile) == (2, 1, 1, True)
    assert not Study("x", "smoke", load_profile("smoke")).execution.compile


def test_unknown_profile():
    with pytest.raises(ConfigError, match=r"profile 'lapttop' is unknown: use one of .*laptop.*, or the path of a YAML file"):
        open_study("02", "lapttop")


def test_own_profile_by_path(tmp_path):
    study = open_study("02_x", written(tmp_path))
    assert study.execution == Execution(workers=3, zero_stage=2)
    assert study.settings["tokens"] == 4096
    assert study.frame["context"] == 64 and study.frame["batch_tokens"] == 1024
    assert study.corpus.name == "verses-en-fr-zh-smoke"
    with pytest.raises(ConfigError, match="nowhere.yml does not exist"):
        load_profile(str(tmp_path / "nowhere.yml"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"exectuion": {}}, r"has the sections .*'exectuion'.*expected .*'execution'"),
        ({"frame": None}, r"has the sections"),
        ({"frame": {"corpus": "x"}}, r"frame has \['corpus'\], expected .*'batch_tokens'"),
    ],
)
def test_profiles_that_are_wrong(tmp_path, changes, message):
    with pytest.raises(ConfigError, match=message):
        load_profile(written(tmp_path, **changes))


@pytest.mark.parametrize("text", ["a: [1", "- 1\n- 2\n", "", "1: 2\na: 3\n"])
def test_profiles_that_are_no_mapping(tmp_path, text):
    (tmp_path / "mine.yaml").write_text(text)
    with pytest.raises(ConfigError, match="mine.yaml (is not valid YAML|has the sections)"):
        load_profile(str(tmp_path / "mine.yaml"))


def test_missing_section_and_setting(tmp_path):
    study = open_study("09_z", written(tmp_path))
    with pytest.raises(ConfigError, match="has no section for notebook 09_z: it has 02_x, 03_y"):
        study.settings  # noqa: B018
    with pytest.raises(ConfigError, match=r"notebook 02_x has no setting 'token': it has frame, tokens"):
        open_study("02_x", written(tmp_path)).settings["token"]
    assert Settings({"a": 1}, "here")["a"] == 1


def test_unknown_execution_setting(tmp_path):
    study = open_study("02_x", written(tmp_path, execution={"worker": 2, "zero": 1}))
    with pytest.raises(ConfigError, match=r"execution names \['worker', 'zero'\], which do not exist: the settings are .*workers"):
        study.execution  # noqa: B018


@pytest.mark.parametrize(
    ("field", "value"), [("workers", 0), ("threads", 1.5), ("ranks", "2"), ("micro_batch", -1), ("state_every", None), ("zero_stage", 4)]
)
def test_execution_settings_that_are_wrong(field, value):
    with pytest.raises(ConfigError, match=f"execution.{field} is {value!r}"):
        Execution(**{field: value})


def test_workers_by_environment(monkeypatch):
    monkeypatch.setenv("CPTLAB_WORKERS", "7")
    assert Execution.from_mapping({"workers": 2}).workers == 7
    assert Execution.from_mapping({}).workers == 7
    for wrong in ("0", "two", "-1"):
        monkeypatch.setenv("CPTLAB_WORKERS", wrong)
        with pytest.raises(ConfigError, match="give a whole number of at least 1"):
            Execution.from_mapping({})
    monkeypatch.setenv("CPTLAB_WORKERS", "")
    assert Execution.from_mapping({"workers": 2}).workers == 2


def test_store_of_a_profile(tmp_path, monkeypatch):
    study = open_study("02_x", written(tmp_path, store="mine"))
    assert study.store.root == tmp_path / "runs"  # CPTLAB_RUNS wins
    monkeypatch.delenv("CPTLAB_RUNS")
    monkeypatch.setenv("CPTLAB_ROOT", str(tmp_path / "lab"))
    runs = tmp_path / "lab" / "runs"
    assert open_study("02_x", written(tmp_path, store="mine")).store.layers == (runs / "mine", runs / "local" / "mine")
    assert open_study("02_x", written(tmp_path)).store.layers == (runs, runs / "local")
    monkeypatch.setenv("CPTLAB_LOCAL", str(tmp_path / "student"))  # a class shares the clone, and writes elsewhere
    assert open_study("02_x", written(tmp_path)).store.layers == (runs, tmp_path / "student" / "local")


def test_run_is_in_the_profiles_frame(tmp_path, recipe, monkeypatch):
    monkeypatch.setattr(study_module, "corpus_recipe", lambda name: recipe)
    study = open_study("02_x", written(tmp_path))
    base = study.run("0.03M", "one", 1e4, 2e-3, seed=4)
    assert base.model == study.model("0.03M") and base.model.context == 64 and base.model.vocab == tiny.VOCAB
    assert (base.tokens, base.batch_tokens, base.precision, base.seed) == (10_000, 1024, "fp32", 4)
    assert dict(base.mixture) == {"one": 1.0} and base.schedule == Schedule("cosine", 2e-3, warmup_tokens=2048)
    arm = study.run("0.03M", {"one": 1, "two": 3}, 4096, 1e-3, init=base, schedule={"kind": "wsd"}, optimiser={"state": "carry"})
    assert arm.upstreams["init"] == Upstream(run=base, step=base.steps) and arm.optimiser.state == "carry"
    assert arm.schedule == Schedule("wsd", 1e-3, warmup_tokens=2048)
    early = study.run("0.03M", "two", 4096, 1e-3, init=Upstream(run=base, step=2), precision="bf16", trainable=("*norm*",))
    assert early.upstreams["init"].step == 2 and early.precision == "bf16" and early.trainable == ("*norm*",)
    phases = (Phase(4096, {"one": 1}), Phase(2048, {"two": 1}))
    annealed = study.run("0.03M", None, None, 1e-3, init=base, phases=phases, data_order=DataOrder(read_on=True))
    assert annealed.tokens == 6144 and annealed.phases == phases and annealed.data_order.read_on
    grid = study.grid(sets=("two:4",))
    grid.add(arm, arm="continual")
    assert grid.execution == study.execution and grid.requests[0].sets == ("two:4",) and grid.requests[0].labels["notebook"] == "02_x"


def test_a_shape_is_given_once():
    study = open_study("02_cpt_loss_curves", "smoke")
    model = study.model("0.03M")
    assert study.run(None, "en", 10_000, 1e-3, model=model) == study.run("0.03M", "en", 10_000, 1e-3)
    for size, given in (("0.09M", model), (None, None)):
        with pytest.raises(ConfigError, match="give one of them"):
            study.run(size, "en", 10_000, 1e-3, model=given)


def test_a_study_reads_on_where_its_upstream_stopped():
    study = open_study("02_cpt_loss_curves", "smoke")
    base = study.run("0.03M", "en", 10_000, 1e-3)
    assert study.run("0.03M", {"fr": 0.9, "en": 0.1}, 10_000, 1e-3, init=base).data_order.read_on
    assert not study.run("0.03M", "fr", 10_000, 1e-3, init=base).data_order.read_on  # nothing to read on


def test_a_notebook_may_change_single_fields_of_the_schedule(tmp_path):
    study = open_study("02_x", written(tmp_path, notebooks={"02_x": {"frame": {"schedule": {"kind": "wsd", "min_lr_ratio": 0.0}}}}))
    assert study.frame["schedule"] == {"warmup_tokens": 2048, "kind": "wsd", "min_lr_ratio": 0.0}
    run = study.run("0.03M", "en", 10_240, 1e-3)
    assert (run.schedule.kind, run.schedule.min_lr_ratio, run.schedule.warmup_tokens) == ("wsd", 0.0, 2048)


def test_branches_are_warm_up_stable_decay_whatever_the_frame(tmp_path):
    study = open_study("02_x", written(tmp_path, frame=CONTENT["frame"] | {"schedule": {"kind": "cosine", "warmup_tokens": 2048}}))
    for branch in study.branches("0.03M", "en", [10_240, 20_480], 1e-3).values():
        assert (branch.schedule.kind, branch.upstreams["init"].run.schedule.kind) == ("wsd", "constant")
    with pytest.raises(ConfigError, match="schedule.kind is 'cosine', but branches leave a stable trunk"):
        study.branches("0.03M", "en", [10_240], 1e-3, schedule={"kind": "cosine"})


def test_branches_from_a_base_on_another_corpus_read_their_own_text_from_its_beginning(recipe):
    study = open_study("02_cpt_loss_curves", "smoke")
    base = study.run("0.03M", "en", 20_480, 1e-3)
    how = {"seed": 0, "init": base, "model": base.model, "corpus": replace(study.corpus, validation=SplitSpec(salt="other"))}
    [branch] = study.branches(None, "fr", [20_480], 1e-3, **how).values()
    assert not branch.upstreams["init"].run.data_order.read_on and branch.data_order.read_on


TUNED = {
    "0.03M": {"lr": 0.008, "warmup_tokens": {"base": 4096, "scratch": {"near": 2048, "far": 1024}, "continual": 512}},
    "0.09M": {"lr": {"base": 0.004, "scratch": {"near": 0.002}}, "warmup_tokens": 0, "batch_tokens": 2048},
}


def test_tuned_rates_and_warm_ups_by_size_arm_and_role(tmp_path):
    study = open_study("02_x", written(tmp_path, tuned=TUNED))
    assert study.tuned("0.03M", "scratch", "far") == {"lr": 0.008, "schedule": {"warmup_tokens": 1024}}
    assert study.tuned("0.03M", "base") == {"lr": 0.008, "schedule": {"warmup_tokens": 4096}}
    assert study.tuned("0.09M", "scratch") == {"lr": 0.002, "schedule": {"warmup_tokens": 0}, "batch_tokens": 2048}
    for size, arm, role, said in (
        ("0.17M", "base", "near", "tuned has rows for 0.03M, 0.09M, none for '0.17M': add one"),
        ("0.09M", "scratch", "far", "tuned.0.09M.lr.scratch has near, no 'far': add it"),
        ("0.09M", "continual", "near", "tuned.0.09M.lr has base, scratch, no 'continual': add it"),
    ):
        with pytest.raises(ConfigError, match=said):
            study.tuned(size, arm, role)
    with pytest.raises(ConfigError, match=r"tuned.0.03M has \['rate'\], expected"):
        open_study("02_x", written(tmp_path, tuned={"0.03M": {"rate": 1}}))
