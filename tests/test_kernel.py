"""Errors of ours in a real kernel: short in the notebook, and still errors for whoever executes it."""

import nbformat
import pytest
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

from cptlab.errors import ConfigError
from cptlab.kernel import short_traceback
from cptlab.notebooks import Job, execute

WRONG = """from cptlab.study import open_study
study = open_study("00_first_run")
def ask():
    return study.settings["no such thing"]
ask()
"""


def failed(source: str):
    """The error output of a cell that fails."""
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source)])
    with pytest.raises(CellExecutionError):
        NotebookClient(notebook, kernel_name="python3").execute()
    [output] = [found for found in notebook.cells[0].outputs if found.output_type == "error"]
    return output


def test_our_error_shows_the_users_line_and_the_message():
    output = failed(WRONG)
    lines = "\n".join(output.traceback).splitlines()
    assert output.ename == "ConfigError" and "has no setting 'no such thing'" in output.evalue
    assert lines == ['Cell In[1], line 4: return study.settings["no such thing"]', f"ConfigError: {output.evalue}"]


def test_an_interrupt_shows_where_it_stopped():
    output = failed("from cptlab.errors import Interrupted\nraise Interrupted('base: stopped at step 3 of 9')")
    assert "\n".join(output.traceback).splitlines()[1:] == ["Interrupted: base: stopped at step 3 of 9"]


def test_any_other_error_keeps_its_traceback():
    assert len("\n".join(failed("def f():\n    return 1 / 0\nf()").traceback).splitlines()) > 6


def test_papermill_fails_with_it(tmp_path, write_notebook):
    path = write_notebook(tmp_path / "bad.ipynb", ("parameters", 'profile = "laptop"'), ("", WRONG))
    error = execute(Job(path, tmp_path / "out" / "bad.ipynb", {"profile": "laptop"})).error
    first, place, message = error.splitlines()
    assert first.startswith("cell In [") and place.endswith('line 4: return study.settings["no such thing"]')
    assert message.startswith("ConfigError: ") and "no such thing" in message


def test_outside_a_kernel_the_message_stands_alone():
    assert short_traceback(ConfigError("what to do")) == ["ConfigError: what to do"]
