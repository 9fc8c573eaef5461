"""Profiles that say only what differs."""

from pathlib import Path

import pytest
import yaml

from cptlab import paths
from cptlab.errors import ConfigError
from cptlab.profiles import load_profile, profile_names
from cptlab.study import open_study

CURVES = "02_cpt_loss_curves"


@pytest.fixture
def write(tmp_path):
    """``write(name, **content)`` makes a profile and gives its path."""

    def make(name: str = "mine.yaml", text: str | None = None, **content) -> str:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(yaml.safe_dump(content) if text is None else text)
        return str(path)

    return make


@pytest.mark.parametrize("name", profile_names())
def test_a_profile_that_changes_nothing_is_the_one_it_extends(write, name):
    assert load_profile(write(extends=name)) == load_profile(name)


def test_only_what_differs(write, monkeypatch):
    sizes = {"0.03M": None, "0.09M": {"seeds": [7]}, "2.8M": {"seeds": [0]}}
    tuned = {"0.09M": {"lr": {"scratch": {"far": 0.5}}}}
    own = {"frame": {"context": 128}, "execution": {"workers": 1}, "tuned": tuned}
    mine = write(extends="laptop", notebooks={CURVES: {"near": "de", "sizes": sizes}}, **own)
    base, found = load_profile("laptop"), load_profile(mine)
    assert found["description"] == base["description"] and "extends" not in found
    assert found["frame"] == base["frame"] | {"context": 128} and found["execution"] == base["execution"] | {"workers": 1}
    before, after = base["notebooks"][CURVES], found["notebooks"][CURVES]
    assert after["near"] == "de" and after["far"] == before["far"] and after["trace"] == before["trace"]
    assert list(after["sizes"]) == [*list(before["sizes"])[1:], "2.8M"]
    assert after["sizes"]["0.09M"] == before["sizes"]["0.09M"] | {"seeds": [7]}  # a list is replaced, a mapping merged
    rates, merged = (one["tuned"]["0.09M"]["lr"] for one in (base, found))
    assert merged == rates | {"scratch": rates["scratch"] | {"far": 0.5}}
    assert {name: section for name, section in found["notebooks"].items() if name != CURVES} == {
        name: section for name, section in base["notebooks"].items() if name != CURVES
    }
    monkeypatch.delenv("CPTLAB_RUNS")
    assert open_study(CURVES, mine).store.layers == open_study(CURVES, "laptop").store.layers
    assert open_study(CURVES, write("s.yaml", extends="smoke")).store.layers == open_study(CURVES, "smoke").store.layers
    assert open_study("x", write("own.yaml", extends="smoke", store="own")).store.layers[0].name == "own"
    assert load_profile(write("none.yaml", extends="smoke", store=None)).get("store") is None  # back to the laptop's


def test_a_run_that_does_not_differ_is_the_same_run(write):
    mine = write(extends="smoke", notebooks={CURVES: {"base_tokens": 20480}})
    runs = [open_study(CURVES, profile).run("0.03M", "fr", 8192, 1e-3) for profile in ("smoke", mine)]
    assert runs[0].id == runs[1].id


def test_a_chain_of_files_each_path_from_the_file_that_names_it(write, monkeypatch, tmp_path):
    write("course/base.yaml", extends="smoke", description="a course", execution={"threads": 2, "workers": 2})
    write("course/week.yml", extends="base.yaml", execution={"workers": 3})
    mine = write("home/mine.yaml", extends="../course/week.yml", execution={"micro_batch": 4})
    found = load_profile(mine)
    assert (found["execution"]["threads"], found["execution"]["workers"], found["execution"]["micro_batch"]) == (2, 3, 4)
    assert found["description"] == "a course" and found["store"] == "smoke"
    monkeypatch.chdir(tmp_path / "home")
    assert load_profile("mine.yaml") == found
    assert load_profile(write("home/whole.yaml", extends=str(tmp_path / "course/week.yml"))) == load_profile(
        str(tmp_path / "course/week.yml")
    )


def test_a_study_of_ones_own_has_a_section(write, lab, monkeypatch, tmp_path):
    mine = write(extends="laptop", notebooks={"99_mine": {"size": "0.03M"}})
    with pytest.raises(ConfigError, match=r"for a study of your own put 99_mine.ipynb in .*notebooks, or beside the profile"):
        load_profile(mine)
    for place in (paths.notebooks_dir(), Path(mine).parent):
        (place / "99_mine.ipynb").write_text("{}")
        assert open_study("99_mine", mine).settings["size"] == "0.03M"
        (place / "99_mine.ipynb").unlink()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"exectuion": {}}, ["mine.yaml has the sections ['exectuion']", "expected", "unknown: exectuion"]),
        ({"notebooks": {"02_cpt_loss_curve": {}}}, ["mine.yaml: notebooks.02_cpt_loss_curve", "laptop", "01_corpora, 02_cpt_loss_curves"]),
        ({"frame": {"contxt": 3}}, ["mine.yaml: frame has ['contxt']", "'context'", "take out contxt"]),
        ({"frame": {"context": None}}, ["mine.yaml: frame has", "add context"]),
        ({"notebooks": {CURVES: {"frame": {"contxt": 3}}}}, [f"mine.yaml: notebooks.{CURVES}.frame", "'schedule'", "take out contxt"]),
        ({"notebooks": {CURVES: {"sizes": {"0.3M": None}}}}, [f"mine.yaml: notebooks.{CURVES}.sizes.0.3M is null", "has 0.03M, 0.09M"]),
        ({"notebooks": {CURVES: {"new": {"x": None}}}}, [f"notebooks.{CURVES}.new.x is null", "laptop has no such key", "has nothing"]),
        ({"frame": {"schedule": {"decay": 0.3}}}, ["mine.yaml: frame.schedule has ['decay']", "'decay_fraction'", "take out decay"]),
        ({"frame": {"schedule": 3}}, ["mine.yaml: frame.schedule is 3: give a mapping"]),
        ({"tuned": {"0.03M": {"lr": -3}}}, ["mine.yaml: tuned.0.03M.lr is -3: give a number above 0, or one for each of base, scratch"]),
        ({"tuned": {"0.03M": {"warmup_tokens": 2e5}}}, ["tuned.0.03M.warmup_tokens is 200000.0: give a whole number above 0 (or 0: no"]),
        ({"tuned": {"0.03M": {"batch_tokens": "lots"}}}, ["tuned.0.03M.batch_tokens is 'lots': give a whole number above 0"]),
        ({"tuned": {"0.03M": {"lr": {"bse": 0.1}}}}, ["tuned.0.03M.lr has ['bse']", "'base', 'continual', 'scratch'", "take out bse"]),
        ({"tuned": {"0.03M": {"lr": {"scratch": {"nearer": 0.1}}}}}, ["tuned.0.03M.lr.scratch has ['nearer']", "expected ['far', 'near']"]),
        ({"store": None}, ["mine.yaml: store is null", "laptop has no such key"]),
        ({"notebooks": {CURVES: 3}}, [f"mine.yaml: notebooks.{CURVES} is 3: give a mapping"]),
        ({"execution": None}, ["mine.yaml: execution is None: give a mapping"]),
        ({"frame": [1]}, ["mine.yaml: frame is [1]: give a mapping"]),
        ({"extends": "lapttop"}, ["mine.yaml: extends: profile 'lapttop' is unknown: use one of gpu, laptop"]),
        (
            {"extends": "laptop.yaml"},
            ["mine.yaml: extends: profile file", "laptop.yaml does not exist: laptop by name comes with the package"],
        ),
        ({"extends": ["laptop"]}, ["mine.yaml: extends is ['laptop']", "the name of one profile"]),
        ({"extends": "mine.yaml"}, ["mine.yaml extends itself, in a circle", "mine.yaml -> "]),
        ({"extends": None, "frame": {}}, ["missing: execution, notebooks", "extends: laptop"]),
    ],
)
def test_mistakes_name_file_and_key(write, content, words):
    with pytest.raises(ConfigError) as caught:
        load_profile(write(**({"extends": "laptop"} | content)))
    assert all(word in str(caught.value) for word in words), str(caught.value)


def test_mistakes_of_a_file_that_is_extended_name_that_file(write, tmp_path):
    write("one.yaml", extends="two.yaml")
    write("two.yaml", extends="./one.yaml")
    with pytest.raises(ConfigError, match=r"one.yaml extends itself, in a circle: .*one.yaml -> .*two.yaml -> .*one.yaml"):
        load_profile(str(tmp_path / "one.yaml"))
    write("two.yaml", extends="laptop", frame={"size": 1})
    with pytest.raises(ConfigError, match=r"profile .*two.yaml: frame has \['size'\]"):
        load_profile(str(tmp_path / "one.yaml"))
    write("two.yaml", text="a: [1")
    with pytest.raises(ConfigError, match=r"profile .*two.yaml is not valid YAML"):
        load_profile(str(tmp_path / "one.yaml"))
    (tmp_path / "two.yaml").write_bytes(b"description: \xff")
    with pytest.raises(ConfigError, match=r"one.yaml: extends: profile file .*two.yaml cannot be read .*save it as UTF-8"):
        load_profile(str(tmp_path / "one.yaml"))


def test_a_whole_profile_of_ones_own_keeps_working(write):
    content = load_profile("smoke") | {"notebooks": {"any_name": {"anything": None}, "empty": None}}
    assert load_profile(write(**content)) == content
