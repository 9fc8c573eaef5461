"""Errors of ours in a notebook: the line of the user's cell and the message, not the way through the library.

IPython asks an exception for its own traceback (``_render_traceback_``). What it is given goes into the notebook and into the error
reply, so that a cell that fails still fails for Papermill. Imports nothing that is not there already.
"""

import sys
import traceback


def short_traceback(error: BaseException) -> list[str]:
    """The user's cell with its line where there is one, then what the error says: one entry each."""
    said = f"{type(error).__name__}: {error}"
    return [line for line in (_place(error), said) if line]


def _place(error: BaseException) -> str:
    """``Cell In[3], line 2: grid.train()``, of the innermost line that a cell of this kernel holds; empty outside one."""
    ipython = sys.modules.get("IPython")
    shell = ipython and ipython.get_ipython()
    named = getattr(getattr(shell, "compile", None), "format_code_name", lambda name: None)
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if label := named(frame.filename):
            return f"{label[0]} {label[1]}, line {frame.lineno}: {frame.line}"
    return ""
