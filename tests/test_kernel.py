"""Errors of ours in a real kernel: short in the notebook, and still errors for whoever executes it."""

import time
from pathlib import Path

import nbformat
import pytest
from jupyter_client.manager import start_new_kernel
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

from cptlab.errors import ConfigError
from cptlab.kernel import short_traceback
from cptlab.notebooks import Job, execute
from cptlab.runs.notes import saved_step

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


TRAIN = """
import sys
from pathlib import Path
sys.path.insert(0, TESTS)
import tiny
from cptlab.runs.store import Store
from cptlab.sweep.grid import Grid
grid = Grid(Store(Path(RUNS)), tiny.execution(state_every=10**6, state_seconds=1e6), "kernel")
grid.add(tiny.spec(tiny.make_recipe(Path(HOME)), 5000, precision="bf16"), steps=(5000,), arm="base")
grid.train()
"""


def test_an_interrupted_sweep_in_a_kernel(recipe, tiny_home, store):
    """As the button of JupyterLab does it: SIGINT to the kernel while a worker trains."""
    names = f"TESTS, HOME, RUNS = {str(Path(__file__).parent)!r}, {str(tiny_home)!r}, {str(store.root)!r}"
    manager, client = start_new_kernel(kernel_name="python3")
    try:
        client.execute(names + TRAIN)
        until = time.monotonic() + 90
        while not (seen := [note for run in store.root.glob("*/") if (note := store.progress(run.name)) and note["step"] > 5]):
            assert time.monotonic() < until
            time.sleep(0.2)
        manager.interrupt_kernel()
        reply = client.get_shell_msg(timeout=60)["content"]
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)
    assert reply["status"] == "error" and reply["ename"] == "Interrupted" and seen
    lines = "\n".join(reply["traceback"]).splitlines()
    [run] = [path.parent.name for path in store.root.glob("*/state")]
    step = saved_step(store, run)
    assert step > 5 and lines[0].endswith(": grid.train()") and lines[1].startswith("Interrupted: 0 of 1 runs done. Run the cell again")
    assert lines[2:] == [f"  base: stopped at step {step} of 5000, saved there, goes on from there"]
