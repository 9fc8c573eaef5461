"""The solutions to the exercises run, and their checks hold, at the smallest profile."""

import os
import re

import nbformat
import pytest

from cptlab import notebooks, paths

SOLUTIONS = sorted((paths.root() / "notebooks" / "solutions").glob("*.ipynb"))


@pytest.mark.parametrize("path", SOLUTIONS, ids=lambda path: path.stem)
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
