"""The solutions to the exercises plan without training, run, and their checks hold, at the smallest profile."""

import json
import os
import re
from pathlib import Path

import nbformat
import pytest

from cptlab import notebooks, paths
from cptlab.errors import ConfigError

SOLUTIONS = sorted((paths.root() / "notebooks" / "solutions").glob("*.ipynb"))
solutions = pytest.mark.parametrize("path", SOLUTIONS, ids=lambda path: path.stem)


@solutions
def test_planning_a_solution_trains_nothing(path):
    plan = notebooks.plan(notebooks.Notebook(path), {"profile": "smoke"})
    assert set(plan.runs["status"]) == {"missing"}
    assert not list(Path(os.environ["CPTLAB_RUNS"]).rglob("*.*"))


@solutions
def test_a_grid_cell_that_trains_is_refused(path, tmp_path):
    book = json.loads(path.read_text(encoding="utf-8"))
    [cell] = [cell for cell in book["cells"] if "grid" in cell["metadata"].get("tags", [])]
    cell["source"] += ["\n", "grid.train()"]
    lines = "".join(cell["source"]).splitlines()
    number = [cell for cell in book["cells"] if cell["cell_type"] == "code"].index(cell) + 1
    (tmp_path / path.name).write_text(json.dumps(book))
    with pytest.raises(ConfigError, match=rf"code cell {number}, line {len(lines)}: .*planning never trains"):
        notebooks.plan(notebooks.Notebook(tmp_path / path.name), {"profile": "smoke"})
    assert not list(Path(os.environ["CPTLAB_RUNS"]).rglob("*.*"))


@solutions
def test_solutions_run(path, tmp_path):
    assert (paths.notebooks_dir() / path.name).is_file(), "a solution belongs to a notebook of the same name"
    committed = nbformat.read(path, 4)
    assert not any(cell.get("outputs") or cell.get("execution_count") for cell in committed.cells if cell.cell_type == "code")
    assert not os.environ["CPTLAB_RUNS"].startswith(str(paths.root())), "a test trains in a store of its own"
    done = notebooks.execute(notebooks.Job(path, tmp_path / path.name, {"profile": "smoke"}, {"CPTLAB_PROGRESS": "0"}))
    assert done.error is None, done.error
    cells = nbformat.read(tmp_path / path.name, 4).cells
    printed = "".join(output.get("text", "") for cell in cells for output in cell.get("outputs", []))  # the source holds the words, too
    assert re.search(r"^gain from the English start: 0\.\d+ nats$", printed, re.M)
