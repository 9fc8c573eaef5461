"""The committed figures are written by an unchanged run of the committed notebook alone; outside a clone nothing is trained unasked."""

import json
import subprocess
import sys

import nbformat
import pytest

from cptlab import notebooks, outputs
from cptlab.errors import ConfigError
from cptlab.notebooks import Job
from cptlab.study import open_study

OPEN = """
import pandas as pd
from matplotlib.figure import Figure
from cptlab.study import open_study
study = open_study("00_first_run", profile, target=target)
"""
DRAW = """
fig = Figure()
fig.subplots().plot([1, 2], [3, 4])
study.figure(fig, "first_run", pd.DataFrame({"x": [1]}), "a caption", runs=[])
"""
CELLS = (("parameters", 'profile = "laptop"\ntarget = None'), ("", OPEN), ("figure", DRAW))


@pytest.fixture
def committed(lab, write_notebook, monkeypatch):
    monkeypatch.delenv("CPTLAB_LOCAL", raising=False)
    return write_notebook(lab / "notebooks" / "00_first_run.ipynb", *CELLS)


def execute(path, lab, **parameters):
    """Run it as plain Papermill does; returns what it printed."""
    done = notebooks.execute(Job(path, lab / "out.ipynb", parameters))
    assert done.error is None, done.error
    cells = nbformat.read(lab / "out.ipynb", 4).cells
    return "".join(output.get("text", "") for cell in cells for output in cell.get("outputs", []))


def test_an_unchanged_run_writes_the_committed_figures(committed, lab):
    assert execute(committed, lab) == ""
    note = json.loads((lab / "figures" / "00_first_run.json").read_text())
    assert (note["notebook"], note["profile"], note["runs"]) == ("00_first_run", "laptop", [])
    assert execute(committed, lab, profile="laptop") == ""  # Papermill's cell says what the notebook says


@pytest.mark.parametrize("parameters, where", [({"profile": "smoke"}, "smoke"), ({"target": "zh"}, "laptop/target=zh")])
def test_a_turned_dial_leaves_them_alone(committed, lab, parameters, where):
    printed = execute(committed, lab, **parameters)
    folder = lab / "runs" / "notebooks" / where / "figures"
    assert (folder / "00_first_run.png").is_file() and not (lab / "figures").exists()
    assert f"go to {folder}, not to {lab / 'figures'}: " in printed and printed.count("go to") == 1


@pytest.mark.parametrize("name", ["copy", "00_first_run"])
def test_a_changed_copy_leaves_them_alone(committed, lab, write_notebook, name):
    (lab / "mine").mkdir()
    copy = write_notebook(lab / "mine" / f"{name}.ipynb", *CELLS[:2], ("figure", DRAW.replace("[3, 4]", "[3, 5]")))
    assert "cell In [3] is not one of 00_first_run.ipynb as it is committed" in execute(copy, lab)
    assert not (lab / "figures").exists()


def test_the_committed_notebook_is_that_of_the_last_commit(committed, lab, write_notebook):
    def git(*words):
        subprocess.run(["git", "-C", str(lab), "-c", "user.name=a", "-c", "user.email=a", *words], check=True, capture_output=True)

    git("init", "-q")
    git("add", "notebooks")
    git("commit", "-qm", "one")
    write_notebook(committed, *CELLS[:2], ("figure", DRAW.replace("[3, 4]", "[3, 5]")))
    assert "cell In [3] is not one of 00_first_run.ipynb as it is committed" in execute(committed, lab)
    git("commit", "-qam", "two")
    assert execute(committed, lab) == "" and (lab / "figures" / "00_first_run.png").is_file()


def test_runs_that_are_not_committed_leave_them_alone(committed, lab):
    store = open_study("00_first_run").store
    assert "2 of its runs or records are not committed (a, b;" in outputs.changed("00_first_run", "laptop", {}, store, ["a", "b"])
    assert outputs.changed("00_first_run", "laptop", {}, store, []) == "no notebook was executed"


def test_a_claim_that_was_not_declared_is_refused(committed, lab):
    study = open_study("00_first_run")
    with pytest.raises(ConfigError, match=r'C9 was not declared before the runs.*study\.grid\(decides=\{"C9": \["gain"\]\}\)'):
        study.decide("C9", {"gain": None})
    with pytest.raises(ConfigError, match="no claim 'C9' in claims.yaml"):
        study.grid(decides={"C9": ["gain"]})


OUTSIDE = """
import warnings
warnings.simplefilter("always")
import os
from cptlab import paths
if "CPTLAB_ROOT" not in os.environ:
    paths.clone = lambda: None
from cptlab.study import open_study
study = open_study("00_first_run", "smoke")
grid = study.grid(sets=("en",))
grid.add(study.run("0.03M", "en", 20_000, 0.002))
grid.train()
"""


@pytest.mark.parametrize("named", [False, True], ids=["copied out of its clone", "CPTLAB_ROOT names an empty folder"])
def test_outside_a_clone_nothing_is_trained_unasked(tmp_path, named):
    import os

    env = {name: value for name, value in os.environ.items() if not name.startswith("CPTLAB_")}
    env |= {"CPTLAB_ROOT": str(tmp_path)} if named else {}
    done = subprocess.run([sys.executable, "-c", OUTSIDE], cwd=tmp_path, env=env, capture_output=True, text=True)
    where = "in CPTLAB_ROOT" if named else "upward of"
    assert f"UserWarning: no clone of cptlab was found {where}" in done.stderr and "set CPTLAB_ROOT to one" in done.stderr
    assert "ConfigError: no clone of cptlab was found" in done.stderr and "all 1 runs would be trained, about" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] in ([], [".cache"])  # how fast the machine is, for the minutes
