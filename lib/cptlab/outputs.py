"""Where what a notebook makes goes. The committed figures and verdicts are written only by an unchanged run of the committed notebook
from committed records; everything else goes beside the executed notebooks."""

import ast
import hashlib
import json
import os
import re
import subprocess
import sys
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cptlab import paths
from cptlab.errors import ConfigError
from cptlab.notebooks import Notebook

if TYPE_CHECKING:
    from cptlab.runs.store import Store
    from cptlab.sweep.grid import Grid

COMMITTED_PROFILE = "laptop"  # the one whose figures are committed
_told: set[tuple[str, str]] = set()


def executed_dir(profile: str, dials: Mapping[str, Any] | None = None) -> Path:
    """Where executed copies of notebooks, their tables and their figures go: ``CPTLAB_EXECUTED``, which ``cptlab figures`` sets, else
    ``notebooks/<profile>/<dials>`` below :func:`cptlab.paths.outputs_dir`."""
    if os.environ.get("CPTLAB_EXECUTED"):
        return Path(os.environ["CPTLAB_EXECUTED"])
    name = Path(profile).stem
    if Path(profile).suffix:  # a file of one's own may be called as another is
        name += f"-{hashlib.sha256(str(Path(profile).resolve()).encode()).hexdigest()[:8]}"
    folder = paths.outputs_dir() / "notebooks" / name
    return folder / slug(dials) if dials else folder


def slug(dials: Mapping[str, Any]) -> str:
    """Name of a folder for a combination of dials: ``near=de_seeds=0-1``; with a hash where that would not tell all values apart."""
    parts, told = [], True
    for name, value in sorted(dials.items()):
        items = value if isinstance(value, list | tuple) and value else [value]
        plain = all(isinstance(item, int | float | str) and re.fullmatch(r"[A-Za-z0-9.]+", str(item)) for item in items)
        text = "-".join(map(str, items)) if plain else json.dumps(value, ensure_ascii=False)
        parts.append(f"{name}={re.sub(r'[^A-Za-z0-9.]+', '-', text).strip('-')}")
        told &= plain
    text = "_".join(parts)
    if told and len(text) <= 80:
        return text
    content = json.dumps(dict(sorted(dials.items())), ensure_ascii=False, default=str)
    return f"{text[:63]}-{hashlib.sha256(content.encode()).hexdigest()[:16]}"


def interactive() -> bool:
    """Whether a person works in the kernel: one that Jupyter or an editor started."""
    return "ipykernel" in sys.modules and ("JPY_SESSION_NAME" in os.environ or "VSCODE_PID" in os.environ)


def headless() -> bool:
    """Whether a notebook is executed as a batch, as Papermill does."""
    return _shell() is not None and not interactive() and not os.environ.get("CPTLAB_PLANNING")


def folder(name: str, profile: str, dials: Mapping[str, Any], store: "Store", local: Sequence[str]) -> Path:
    """Where figures and verdicts of a notebook go; says so, and why, where it is not the committed folder.

    Args:
        local: ids of runs and names of records behind them that are not committed.
    """
    if os.environ.get("CPTLAB_FIGURES"):
        return paths.figures_dir()
    because = changed(name, profile, dials, store, local)
    if because is None:
        return paths.figures_dir()
    found = executed_dir(profile, dials) / "figures"
    if (name, because) not in _told:
        _told.add((name, because))
        print(f"Figures and verdicts of this run go to {found}, not to {paths.figures_dir()}: {because}.")
    return found


def changed(name: str, profile: str, dials: Mapping[str, Any], store: "Store", local: Sequence[str]) -> str | None:
    """Why this is not an unchanged run of the committed notebook at the committed profile, from committed records; None when it is."""
    if profile != COMMITTED_PROFILE:
        return f"the profile is {profile}"
    if dials:
        return "turned were " + ", ".join(f"{dial} = {value!r}" for dial, value in dials.items())
    if store.committed is None:
        return f"its runs are those of {store.root}"
    if local:
        few = f"{', '.join(local[:3])}{', …' if len(local) > 3 else ''}"
        return f"{len(local)} of its runs or records are not committed ({few}; `cptlab runs promote` commits them)"
    return _changed_cells(name)


def _shell() -> Any:
    ipython = sys.modules.get("IPython")
    return ipython.get_ipython() if ipython else None


def _changed_cells(name: str) -> str | None:
    """Whether what the kernel executed are cells of the committed notebook with its own parameters."""
    shell, path = _shell(), paths.notebooks_dir() / f"{name}.ipynb"
    if shell is None:
        return "no notebook was executed"
    if not path.is_file():
        return f"{path} does not exist"
    book = Notebook(path)
    # As it was committed: the file itself may hold changes, JupyterLab saves them unasked. A new notebook is taken as it is.
    known = _committed_sources(path) or {cell.source.strip() for cell in book.cells}
    defaults = [values for cell in book.cells if "parameters" in cell.tags for values in [_literals(cell.source)]]
    for number, source in enumerate(shell.history_manager.input_hist_raw):
        if not source.strip() or source.strip() in known:
            continue
        given = _literals(source)
        if given and all(any(values and values.get(key, ...) == value for values in defaults) for key, value in given.items()):
            continue  # the cell that Papermill adds
        return f"cell In [{number}] is not one of {path.name} as it is committed"
    return None


def _committed_sources(path: Path) -> set[str] | None:
    """Sources of the code cells of a notebook in the last commit; None without git."""
    try:
        command = ["git", "-C", str(path.parent), "show", f"HEAD:./{path.name}"]
        found = json.loads(subprocess.run(command, capture_output=True, check=True, timeout=10).stdout)
        return {"".join(cell["source"]).strip() for cell in found["cells"] if cell["cell_type"] == "code"}
    except (OSError, subprocess.SubprocessError, ValueError, KeyError):
        return None


def _literals(source: str) -> dict[str, Any] | None:
    """Values of a cell that only assigns literals; None for another cell."""
    try:
        statements = ast.parse(source).body
        return {statement.targets[0].id: ast.literal_eval(statement.value) for statement in statements}
    except (SyntaxError, ValueError, AttributeError):
        return None


def warn_outside() -> None:
    """Say that there is no clone around this notebook, and what that costs."""
    if sought := paths.sought():
        warnings.warn(
            f"no clone of cptlab was found {sought}: no records are served and no rules of claims are known, so that every "
            "run would have to be trained. Open the notebook in a clone, or set CPTLAB_ROOT to one before the kernel starts",
            stacklevel=3,
        )


def refuse_outside(grid: "Grid") -> None:
    """Refuse to train outside of a clone, where nothing is served.

    Raises:
        ConfigError: names the runs, the minutes, and how to point to a clone or to train all the same.
    """
    if (sought := paths.sought()) and not os.environ.get("CPTLAB_RUNS"):
        todo = grid.plan()
        minutes = todo["minutes"].sum() / grid.execution.workers
        raise ConfigError(
            f"no clone of cptlab was found {sought}, so no records are served: all {len(todo)} runs would be trained, "
            f"about {minutes:,.0f} minutes here. Set CPTLAB_ROOT to a clone (or, to train them all the same, CPTLAB_RUNS to a new folder)"
        )
