"""The committed notebooks keep the house rules, and notebooks are found, planned and executed as the command line promises."""

import ast
import json
import sys
import time
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import pytest
import yaml

from cptlab import notebooks
from cptlab.errors import ConfigError
from cptlab.notebooks import Job, Notebook, Outcome

REPOSITORY = Path(__file__).resolve().parents[1]
COMMITTED = sorted((REPOSITORY / "notebooks").glob("*.ipynb"))
DEEP = "def f(x):\n    raise ValueError(x)\ndef g(x):\n    f(x)\ndef h(x):\n    g(x)\nh(value)"  # its traceback is cut
GRID = """
from types import SimpleNamespace
import pandas as pd
rows = [{"id": f"{seed:016x}", "status": status, "seed": seed, "tokens": 1000, "flops": 2.0e9, "minutes": 0.5} for seed in seeds]
grid = SimpleNamespace(plan=lambda: pd.DataFrame(rows))
"""


@pytest.fixture(params=COMMITTED, ids=lambda path: path.stem)
def committed(request) -> dict:
    return json.loads(request.param.read_text(encoding="utf-8")) | {"name": request.param.stem}


def code_of(notebook: dict) -> list[dict]:
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def tags_of(cell: dict) -> list[str]:
    return cell["metadata"].get("tags", [])


# --- the committed notebooks (how they are written: test_strip.py) -----------------------------------------------------------


def test_no_line_of_the_template_is_cut():
    cells = json.loads((REPOSITORY / "lib/cptlab/template/notebook.ipynb").read_text())["cells"]
    assert max(len(line.rstrip()) for cell in cells if cell["cell_type"] == "code" for line in cell["source"]) <= 96


def test_committed_tags(committed):
    tags = [tag for cell in code_of(committed) for tag in tags_of(cell)]
    assert tags.count("parameters") == 1
    assert {"grid", "figure"} <= set(tags)
    claims = yaml.safe_load((REPOSITORY / "claims.yaml").read_text()) or []
    if any(claim["notebook"] == committed["name"] for claim in claims):
        assert "claim" in tags, f"claims.yaml names {committed['name']}: tag the cell that decides the claim"
    order = [tag for tag in tags if tag in ("parameters", "grid", "figure")]
    assert order.index("parameters") < order.index("grid") < order.index("figure")


def test_committed_parameters(committed):
    book = Notebook(REPOSITORY / "notebooks" / f"{committed['name']}.ipynb")
    assert "profile" in book.parameters
    [cell] = [cell for cell in book.cells if "parameters" in cell.tags]
    defaults = {
        statement.targets[0].id: ast.literal_eval(statement.value)  # literals only, or Papermill could not write them
        for statement in ast.parse(cell.source).body
        if isinstance(statement, ast.Assign)
    }
    assert defaults["profile"] == "laptop"


def test_committed_reads_like_a_paper(committed):
    prose = sum(len("".join(cell["source"])) for cell in committed["cells"] if cell["cell_type"] == "markdown")
    assert prose >= 1500
    for number, cell in enumerate(code_of(committed), start=1):
        source = "".join(cell["source"])
        assert len(source.splitlines()) <= 40, f"code cell {number}: move what is general to the library"
        assert max(map(len, source.splitlines())) <= 96, f"code cell {number}: a line is cut at the page's edge"
        for node in ast.walk(ast.parse(source)):  # also: no magics, a plan could not execute them
            assert not isinstance(node, ast.ClassDef), f"code cell {number} defines class {node.name}"
            if isinstance(node, ast.FunctionDef):
                assert node.end_lineno - node.lineno < 15, f"code cell {number}: function {node.name} belongs in the library"


# --- finding and parameters --------------------------------------------------------------------------------------------------


@pytest.fixture
def books(lab, write_notebook) -> list[Path]:
    cells = [("parameters", 'profile = "laptop"\nseeds = [0, 1]\nstatus: str = "cached"'), ("grid", GRID), ("figure", "print(1)")]
    first = write_notebook(lab / "notebooks" / "00_first.ipynb", *cells)
    second = write_notebook(lab / "notebooks" / "02_second.ipynb", ("parameters", 'profile = "laptop"\nrate = 0.1'))
    return [first, second]


def names(found: list[Notebook]) -> list[str]:
    return [book.name for book in found]


def test_find(books, tmp_path):
    assert names(notebooks.find([])) == ["00_first", "02_second"]
    assert names(notebooks.find(["02"])) == ["02_second"]
    assert names(notebooks.find(["02_second", "02", str(books[1])])) == ["02_second"]
    elsewhere = tmp_path / "mine.ipynb"
    elsewhere.write_text(books[0].read_text())
    assert notebooks.find([str(elsewhere)])[0].path == elsewhere


@pytest.mark.parametrize("name", ["03", "second", "absent.ipynb", "0"])
def test_find_unknown_lists_the_valid_ones(books, name):
    with pytest.raises(ConfigError, match=f"'{name}' is not a notebook: use one of 00_first, 02_second"):
        notebooks.find([name])


def test_find_ambiguous(books, lab, write_notebook):
    write_notebook(lab / "notebooks" / "02_other.ipynb")
    with pytest.raises(ConfigError, match="more than one notebook.*02_other, 02_second"):
        notebooks.find(["02"])


def test_find_without_notebooks(lab):
    with pytest.raises(ConfigError, match="holds no notebooks.*CPTLAB_ROOT"):
        notebooks.find([])


def test_not_a_notebook(lab):
    (lab / "notebooks" / "05_torn.ipynb").write_text('{"cells": [')
    with pytest.raises(ConfigError, match="05_torn.ipynb is not a Jupyter notebook"):
        _ = notebooks.find(["05"])[0].cells


def test_parse_parameters():
    values = notebooks.parse_parameters(["lr=3e-3", "seeds=[0, 1]", "name=en", "flag=true", "none=null", "eq=a=b", "big=2_000"])
    assert values == {"lr": 0.003, "seeds": [0, 1], "name": "en", "flag": True, "none": None, "eq": "a=b", "big": 2000}
    assert isinstance(values["lr"], float)


@pytest.mark.parametrize("item", ["seeds", "=1", "a-b=1", "a=[1", "a=2020-01-01", "a=.nan", "profile=smoke"])
def test_parse_parameters_refuses(item):
    with pytest.raises(ConfigError, match=item.split("=")[0] or "key=value"):
        notebooks.parse_parameters([item])


def test_assign_parameters(books):
    found = notebooks.find([])
    assert found[0].parameters == ("profile", "seeds", "status")
    assert notebooks.assign_parameters(found, "smoke", {"rate": 0.2}) == {
        "00_first": {"profile": "smoke"},
        "02_second": {"profile": "smoke", "rate": 0.2},
    }
    with pytest.raises(ConfigError, match="no chosen notebook has the parameter sed. Valid.*00_first: seeds, status; 02_second: rate"):
        notebooks.assign_parameters(found, "smoke", {"sed": 1})


def test_assign_parameters_needs_profile(lab, write_notebook):
    book = Notebook(write_notebook(lab / "notebooks" / "07_bare.ipynb", ("", "profile = 1")))
    with pytest.raises(ConfigError, match='07_bare.ipynb: no cell tagged "parameters" assigns profile'):
        notebooks.assign_parameters([book], "smoke", {})


# --- plans -------------------------------------------------------------------------------------------------------------------


def test_plan_uses_the_injected_parameters(books, capsys):
    book = notebooks.find(["00"])[0]
    plan = notebooks.plan(book, {"profile": "smoke", "seeds": [4, 5, 6]})
    assert list(plan.runs["seed"]) == [4, 5, 6] and plan.cached
    assert not notebooks.plan(book, {"status": "partial"}).cached and not notebooks.plan(book, {"status": "evaluate"}).cached
    assert notebooks.plan(book, {"status": "failed"}).cached  # its record says so, and is served
    assert capsys.readouterr().out == ""  # the figure cell is not executed


def test_plan_runs_in_the_notebooks_folder(lab, write_notebook):
    source = "from pathlib import Path\nfrom types import SimpleNamespace\ndisplay(1)\ngrid = SimpleNamespace(plan=Path.cwd)"
    book = Notebook(write_notebook(lab / "notebooks" / "01_cwd.ipynb", ("grid", source)))
    before = Path.cwd()
    assert notebooks.plan(book, {}).runs == lab / "notebooks"
    assert Path.cwd() == before


def test_plan_without_grid_is_cached(books):
    plan = notebooks.plan(notebooks.find(["02"])[0], {})
    assert plan.cached and plan.runs.empty


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("a = 1\nb = a / 0", r"code cell 1, line 2: ZeroDivisionError"),
        ("%matplotlib inline", r"code cell 1: SyntaxError"),
        ("x = 1", "leave no variable named grid"),
    ],
)
def test_plan_says_where_it_failed(lab, write_notebook, source, message):
    book = Notebook(write_notebook(lab / "notebooks" / "09_bad.ipynb", ("grid", source)))
    with pytest.raises(ConfigError, match=message):
        notebooks.plan(book, {})


# --- execution ---------------------------------------------------------------------------------------------------------------


def test_execute_for_real(lab, write_notebook):
    """Two notebooks at once through Papermill: parameters and environment arrive, and a failure leaves the other alone."""
    report = "import os, sys\nopen(out, 'w').write(f'{value} {os.environ[\"PLACE\"]} {sys.executable} {os.getcwd()}')"
    good = write_notebook(lab / "notebooks" / "00_good.ipynb", ("parameters", 'value = 1\nout = ""'), ("", report))
    bad = write_notebook(lab / "notebooks" / "01_bad.ipynb", ("parameters", "value = 1"), ("", DEEP))
    folder, seen = lab / "executed" / "smoke", []
    jobs = [
        Job(good, folder / good.name, {"value": 7, "out": str(lab / "out.txt")}, {"PLACE": "here"}),
        Job(bad, folder / bad.name, {"value": 8}),
    ]
    outcomes = {outcome.name: outcome for outcome in notebooks.execute_all(jobs, [], workers=2, report=seen.append)}
    assert sorted(outcome.name for outcome in seen) == ["00_good", "01_bad"]
    assert outcomes["00_good"].error is None
    assert (lab / "out.txt").read_text() == f"7 here {sys.executable} {lab / 'notebooks'}"
    error = outcomes["01_bad"].error
    assert error.startswith("cell In [3]:") and error.endswith("ValueError: 8") and "\x1b" not in error
    assert len(error.splitlines()) == notebooks.TRACEBACK_LINES + 1
    for outcome in outcomes.values():
        executed = json.loads(outcome.output.read_text())
        assert any("injected-parameters" in tags_of(cell) for cell in executed["cells"])
    assert "injected" not in good.read_text()


def test_training_notebooks_run_one_at_a_time_with_progress(lab, monkeypatch):
    running, overlaps, progress = [], [], []

    def fake(job: Job) -> Outcome:
        running.append(job.name)
        overlaps.append(len(running))
        time.sleep(0.15)
        running.remove(job.name)
        return Outcome(job.name, 0.15, job.output)

    monkeypatch.setattr(notebooks, "execute", fake)
    monkeypatch.setattr(notebooks, "PROGRESS_SECONDS", 0.05)
    jobs = [Job(lab / f"{number:02}_x.ipynb", lab / "out.ipynb", {}) for number in range(3)]
    outcomes = notebooks.execute_all([], jobs, 2, lambda outcome: None, lambda job: progress.append(job.name), ThreadPoolExecutor)
    assert [outcome.name for outcome in outcomes] == ["00_x", "01_x", "02_x"]
    assert max(overlaps) == 1 and set(progress) == {"00_x", "01_x", "02_x"}


def test_killed_worker_is_a_failed_outcome(lab):
    class Broken(ThreadPoolExecutor):
        def submit(self, *args):
            future = Future()
            future.set_exception(BrokenProcessPool("gone"))
            return future

    job = Job(lab / "00_x.ipynb", lab / "out.ipynb", {})
    [one, two] = notebooks.execute_all([job], [job], 1, lambda outcome: None, pool=Broken)
    assert "killed" in one.error and "killed" in two.error
