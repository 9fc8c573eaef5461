"""Notebooks are committed as Jupyter writes them and without traces of a run: ``make strip``, and ``make filter`` for git."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_output

REPOSITORY = Path(__file__).resolve().parents[1]
COMMITTED = sorted(
    path.relative_to(REPOSITORY) for where in ("", "solutions/") for path in (REPOSITORY / "notebooks").glob(f"{where}*.ipynb")
)
FIRST = "notebooks/00_first_run.ipynb"

pytestmark = pytest.mark.skipif(not (shutil.which("make") and shutil.which("git")), reason="needs make and git")


def call(folder: Path, *command: str) -> str:
    """What a command prints, apart from the user's own configuration of git."""
    git = {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_NOSYSTEM": "1", "GIT_CEILING_DIRECTORIES": str(folder.parent)}
    identity = {f"GIT_{who}_{what}": "test@localhost" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
    done = subprocess.run(command, cwd=folder, env=os.environ | git | identity, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def make(folder: Path, target: str) -> str:
    """Make a target in the environment that runs the tests."""
    return call(folder, "make", "-s", "-o", ".venv/.ok", target)


@pytest.fixture(scope="module")
def clone(tmp_path_factory) -> Path:
    """A repository of git with the committed notebooks; nothing in it is installed."""
    folder = tmp_path_factory.mktemp("clones") / "a clone"
    for name in ("Makefile", ".gitattributes", ".gitignore", *COMMITTED):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(REPOSITORY / name, folder / name)
    (folder / ".venv").symlink_to(sys.prefix)
    call(folder, "git", "init", "-q")
    call(folder, "git", "add", "Makefile", ".gitattributes", ".gitignore", "notebooks")
    call(folder, "git", "commit", "-qm", "as it is")
    return folder


@pytest.fixture(scope="module")
def stripped(clone) -> str:
    """What ``make strip`` says of the committed notebooks."""
    return make(clone, "strip")


@pytest.mark.parametrize("path", COMMITTED, ids=str)
def test_committed_as_stripped(clone, stripped, path):
    assert (clone / path).read_bytes() == (REPOSITORY / path).read_bytes(), f"{path} is not as git is to have it: run make strip"
    book = nbformat.read(clone / path, nbformat.NO_CONVERT)
    nbformat.validate(book)
    assert nbformat.writes(book) + "\n" == (clone / path).read_text(encoding="utf-8")
    kernel = {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"}
    assert book.metadata.kernelspec == kernel, f"{path}: choose the kernel {kernel['display_name']} in JupyterLab, that of make lab"
    assert not any(cell.outputs or cell.execution_count for cell in book.cells if cell.cell_type == "code"), f"{path} keeps outputs"


def save_in_jupyterlab(folder: Path, path: str) -> None:
    """Save a notebook through Jupyter's own server, after what JupyterLab does to it when it is run and looked at."""
    from jupyter_server.services.contents.filemanager import FileContentsManager

    contents = FileContentsManager(root_dir=str(folder), allow_hidden=True)
    book = contents.get(path, content=True, type="notebook")["content"]
    book["metadata"]["language_info"]["version"] = "3.11.99"
    book["metadata"]["widgets"] = {"application/vnd.jupyter.widget-state+json": {"state": {}, "version_major": 2, "version_minor": 0}}
    for number, cell in enumerate((cell for cell in book["cells"] if cell["cell_type"] == "code"), start=1):
        times = {"iopub.status.busy": "2026-01-01T00:00:00.000Z", "shell.execute_reply": "2026-01-01T00:00:01.000Z"}
        seen = {"collapsed": True, "jupyter": {"outputs_hidden": True}, "scrolled": True, "editable": True, "slideshow": {"slide_type": ""}}
        cell["metadata"] |= {"execution": times, "trusted": True} | seen
        cell["execution_count"] = number
        cell["outputs"] = [new_output("execute_result", {"text/plain": "é"}, execution_count=number), new_output("stream", text="1\n2\n")]
    contents.save({"type": "notebook", "format": "json", "content": book}, path)


def test_filter_hides_a_run_in_jupyterlab(clone, stripped, tmp_path, monkeypatch):
    monkeypatch.setenv("JUPYTER_DATA_DIR", str(tmp_path))  # where the server signs what it saves
    folder = tmp_path / "cloned"
    call(tmp_path, "git", "clone", "-q", str(clone), str(folder))
    (folder / ".venv").symlink_to(sys.prefix)
    committed = (folder / FIRST).read_bytes()
    save_in_jupyterlab(folder, FIRST)
    saved = (folder / FIRST).read_bytes()
    assert len(call(folder, "git", "diff").splitlines()) > 100  # without the filter git works, and sees all of it

    make(folder, "filter")
    assert call(folder, "git", "diff") == ""
    call(folder, "git", "commit", "-aqm", "nothing", "--allow-empty")
    assert call(folder, "git", "show", "--format=", "--name-only") == call(folder, "git", "status", "--porcelain", "-uno") == ""
    assert (folder / FIRST).read_bytes() == saved  # what one has computed stays

    (folder / FIRST).write_bytes(saved.replace(b'profile = \\"laptop\\"', b'profile = \\"smoke\\"'))
    changed = [line for line in call(folder, "git", "diff", "-U0").splitlines() if line[0] in "+-" and line[:3] not in ("+++", "---")]
    assert [line[0] for line in changed] == ["-", "+"] and r"profile = \"smoke\"" in changed[1]  # a change of the source, and nothing else
    (folder / FIRST).write_bytes(saved)
    for path in COMMITTED[1:]:  # to strip one is enough
        (folder / path).unlink()
    assert make(folder, "strip") == f"stripped {FIRST}\n"
    assert (folder / FIRST).read_bytes() == committed


def test_strip_says_what_is_no_notebook(clone, tmp_path):
    shutil.copyfile(clone / "Makefile", tmp_path / "Makefile")
    (tmp_path / ".venv").symlink_to(sys.prefix)
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "notebooks" / "05_torn.ipynb").write_text('{"cells": [')
    with pytest.raises(AssertionError, match="notebooks/05_torn.ipynb is not a notebook"):
        make(tmp_path, "strip")
    assert [path.name for path in (tmp_path / "notebooks").iterdir()] == ["05_torn.ipynb"]
