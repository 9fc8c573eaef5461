"""The notebooks as programs: find them, check their parameters, plan their runs, and execute them through Papermill.

A notebook is executed by a kernel of the interpreter that runs this module. Notebooks whose runs are all stored run side by side;
one that has to train runs alone, because its own workers use every core.
"""

import ast
import contextlib
import io
import json
import multiprocessing
import os
import re
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor, as_completed, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cptlab import paths
from cptlab.errors import ConfigError

if TYPE_CHECKING:
    import pandas as pd

PROGRESS_SECONDS = 10.0
SERVED = ("cached", "failed")  # statuses of a plan that need no work
TRACEBACK_LINES = 12
_ANSI = re.compile("\x1b\\[[0-9;]*[A-Za-z]")


@dataclass(frozen=True)
class Cell:
    """A code cell: its number among the code cells of the notebook (from 1), its source and its tags."""

    number: int
    source: str
    tags: tuple[str, ...]


@dataclass(frozen=True)
class Notebook:
    """A notebook file, read as plain JSON."""

    path: Path

    @property
    def name(self) -> str:
        return self.path.stem

    @cached_property
    def cells(self) -> tuple[Cell, ...]:
        """The code cells in order.

        Raises:
            ConfigError: when the file is not a notebook.
        """
        try:
            code = [cell for cell in json.loads(self.path.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == "code"]
            return tuple(
                Cell(number, "".join(cell["source"]), tuple(cell.get("metadata", {}).get("tags", ())))
                for number, cell in enumerate(code, start=1)
            )
        except (OSError, ValueError, KeyError, TypeError) as error:
            problem = f"{type(error).__name__}: {error}"
            raise ConfigError(f"{self.path} is not a Jupyter notebook ({problem}): open and save it in JupyterLab") from error

    @cached_property
    def parameters(self) -> tuple[str, ...]:
        """Names assigned in the cells tagged ``parameters``: what Papermill can override."""
        names: dict[str, None] = {}
        for cell in self.cells:
            if "parameters" in cell.tags:
                try:
                    statements = ast.parse(cell.source).body
                except SyntaxError as error:
                    raise ConfigError(f"{self.path}, code cell {cell.number} (parameters), line {error.lineno}: {error.msg}") from error
                for statement in statements:
                    targets = statement.targets if isinstance(statement, ast.Assign) else [getattr(statement, "target", None)]
                    names |= {target.id: None for target in targets if isinstance(target, ast.Name)}
        return tuple(names)


def available() -> list[Notebook]:
    """The committed notebooks, in order of their names."""
    return [Notebook(path) for path in sorted(paths.notebooks_dir().glob("*.ipynb"))]


def find(names: list[str]) -> list[Notebook]:
    """Notebooks by number (``02``), name (``02_cpt_loss_curves``) or path; all of them when ``names`` is empty.

    Raises:
        ConfigError: for a name that fits none or several; it lists the valid ones.
    """
    known = available()
    if not names:
        if not known:
            raise ConfigError(f"{paths.notebooks_dir()} holds no notebooks: run cptlab in a clone of the repository, or set CPTLAB_ROOT")
        return known
    chosen: dict[Path, Notebook] = {}
    for name in names:
        stem = Path(name).stem if name.endswith(".ipynb") else name
        matches = [book for book in known if book.name == stem] or [book for book in known if book.name.split("_")[0] == stem]
        if name.endswith(".ipynb") and Path(name).is_file():
            matches = [Notebook(Path(name).resolve())]
        if len(matches) != 1:
            problem = "fits more than one notebook" if matches else "is not a notebook"
            raise ConfigError(f"{name!r} {problem}: use one of {', '.join(book.name for book in known)}, or the path of an .ipynb file")
        chosen[matches[0].path.resolve()] = matches[0]
    return list(chosen.values())


def parse_parameters(items: list[str]) -> dict[str, Any]:
    """``["seeds=[0, 1]", "lr=3e-3"]`` as values: YAML, plus numbers such as ``3e-3`` that YAML 1.1 takes for text."""
    import yaml

    from cptlab.dials import EXPONENT

    values: dict[str, Any] = {}
    for item in items:
        key, separator, text = item.partition("=")
        if not separator or not key.isidentifier():
            raise ConfigError(f"parameter {item!r} is not of the form key=value, for example -p seeds='[0, 1]'")
        if key == "profile":
            raise ConfigError("the profile is not set by -p: use --profile")
        try:
            value = yaml.safe_load(text)
            json.dumps(value, allow_nan=False)
        except (yaml.YAMLError, TypeError, ValueError) as error:
            raise ConfigError(f"parameter {key} = {text!r} is not a number, text, list or mapping in YAML: {error}") from error
        if isinstance(value, str) and EXPONENT.fullmatch(value):
            value = float(value)
        values[key] = value
    return values


def assign_parameters(notebooks: list[Notebook], profile: str, overrides: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The parameters that each notebook (by name) gets: the profile, and those overrides that its ``parameters`` cell assigns.

    Raises:
        ConfigError: when no chosen notebook has the parameter (Papermill would only warn), with the valid ones of each.
    """
    for book in notebooks:
        if "profile" not in book.parameters:
            raise ConfigError(f'{book.path}: no cell tagged "parameters" assigns profile: add one with profile = "laptop"')
    unknown = sorted(set(overrides) - {name for book in notebooks for name in book.parameters})
    if unknown:
        valid = "; ".join(f"{book.name}: {', '.join(n for n in book.parameters if n != 'profile') or 'none'}" for book in notebooks)
        raise ConfigError(f"no chosen notebook has the parameter {', '.join(unknown)}. Valid parameters: {valid}")
    return {book.name: {"profile": profile} | {k: v for k, v in overrides.items() if k in book.parameters} for book in notebooks}


@contextlib.contextmanager
def environment(values: dict[str, str]) -> Iterator[None]:
    """Environment variables for the length of a block."""
    before = {key: os.environ.get(key) for key in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for key, value in before.items():
            if value is None:
                os.environ.pop(key, None)
            else:
                os.environ[key] = value


@dataclass(frozen=True)
class Plan:
    """What a notebook would do: one row a run (see ``Grid.plan``), and its grid (None without runs)."""

    runs: "pd.DataFrame"
    grid: Any = None

    @property
    def cached(self) -> bool:
        """Whether every run has its record (of success or failure), so that the notebook only reads."""
        return self.runs.empty or bool(self.runs["status"].isin(SERVED).all())


def plan(notebook: Notebook, parameters: dict[str, Any]) -> Plan:
    """Plan a notebook's runs without a kernel: its code cells up to the last one tagged ``grid`` are executed here, then ``grid.plan()``.

    Raises:
        ConfigError: when one of these cells fails or leaves no ``grid``; the message names the cell and the line.
    """
    import pandas as pd

    tagged = [cell.number for cell in notebook.cells if "grid" in cell.tags]
    if not tagged:
        return Plan(pd.DataFrame({"id": [], "status": []}))
    namespace: dict[str, Any] = {"__name__": notebook.name, "display": lambda *args, **kwargs: None}
    quiet = contextlib.redirect_stdout(io.StringIO())
    folder = contextlib.chdir(paths.notebooks_dir() if paths.notebooks_dir().is_dir() else notebook.path.parent)
    with folder, quiet, environment({"MPLBACKEND": "Agg", "CPTLAB_PLANNING": "1"}), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the notebook itself shows them
        for cell in notebook.cells[: tagged[-1]]:
            place = f"{notebook.path}, code cell {cell.number}"
            try:
                exec(compile(cell.source, place, "exec"), namespace)
            except Exception as error:
                lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == place]
                line = f", line {lines[-1]}" if lines else ""
                raise ConfigError(f"{place}{line}: {type(error).__name__}: {error}") from error
            if "parameters" in cell.tags:
                namespace |= parameters
        if "grid" not in namespace:
            raise ConfigError(f'{notebook.path}: the cells tagged "grid" leave no variable named grid: assign study.grid() to it')
        grid = namespace["grid"]
        return Plan(grid.plan(), grid)


@dataclass(frozen=True)
class Job:
    """One execution of a notebook: where from, where to, with which parameters and environment variables."""

    source: Path
    output: Path
    parameters: dict[str, Any]
    env: dict[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return self.source.stem


@dataclass(frozen=True)
class Outcome:
    """How an execution ended: ``error`` is None or the text of the failure."""

    name: str
    seconds: float
    output: Path
    error: str | None = None


@contextlib.contextmanager
def _own_kernel() -> Iterator[dict[str, str]]:
    """Environment in which the kernel ``python3`` is this interpreter, whatever kernels the user has installed."""
    with tempfile.TemporaryDirectory(prefix="cptlab-kernel-") as folder:
        spec = Path(folder) / "kernels" / "python3"
        spec.mkdir(parents=True)
        kernel = {
            "argv": [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}", "--log-level=50"],  # errors reach the notebook
            "display_name": "Python 3",
            "language": "python",
            "metadata": {"supported_encryption": ["curve"]},
        }
        (spec / "kernel.json").write_text(json.dumps(kernel))
        inherited = [os.environ["JUPYTER_PATH"]] if os.environ.get("JUPYTER_PATH") else []
        yield {"JUPYTER_PATH": os.pathsep.join([folder, *inherited]), "PYDEVD_DISABLE_FILE_VALIDATION": "1"}


def execute(job: Job) -> Outcome:
    """Run one notebook through Papermill in its committed folder. A failure is an outcome, never an exception."""
    import papermill
    from papermill.exceptions import PapermillExecutionError
    from traitlets.config import Config

    start = time.monotonic()
    job.output.parent.mkdir(parents=True, exist_ok=True)
    folder = paths.notebooks_dir() if paths.notebooks_dir().is_dir() else job.source.parent
    error = None
    try:
        with _own_kernel() as kernel, environment(kernel | job.env):
            papermill.execute_notebook(
                job.source,
                job.output,
                job.parameters,
                kernel_name="python3",
                language="python",
                cwd=folder,
                progress_bar=False,
                config=Config({"KernelManager": {"transport_encryption": "auto"}}),  # or every kernel warns of its local sockets
            )
    except PapermillExecutionError as failure:
        lines = _ANSI.sub("", "\n".join(failure.traceback) or f"{failure.ename}: {failure.evalue}").splitlines()
        error = "\n".join([f"cell In [{failure.exec_count}]:", *lines[-TRACEBACK_LINES:]])
    except KeyboardInterrupt:
        error = "interrupted"
    except Exception as failure:  # a kernel that died, a full disk: the other notebooks go on
        error = f"{type(failure).__name__}: {_ANSI.sub('', str(failure))}"
    return Outcome(job.name, time.monotonic() - start, job.output, error)


def _pool(workers: int) -> ProcessPoolExecutor:
    return ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn"))


def _outcome(future: "Future[Outcome]", job: Job, seconds: float) -> Outcome:
    try:
        return future.result()
    except BrokenProcessPool:
        return Outcome(job.name, seconds, job.output, "its process was killed (out of memory?): run it alone, or with a lower -j")


def execute_all(
    cached: list[Job],
    training: list[Job],
    workers: int,
    report: Callable[[Outcome], None],
    progress: Callable[[Job], None] = lambda job: None,
    pool: Callable[[int], Executor] = _pool,
) -> list[Outcome]:
    """Execute the ``cached`` jobs up to ``workers`` at a time, then the ``training`` ones one after another.

    ``report`` is called as each ends; ``progress`` every :data:`PROGRESS_SECONDS` while one trains.
    """
    outcomes: list[Outcome] = []

    def finish(future: "Future[Outcome]", job: Job) -> None:
        outcomes.append(_outcome(future, job, time.monotonic() - start))
        report(outcomes[-1])

    try:
        start = time.monotonic()
        if cached:
            with pool(min(workers, len(cached))) as executor:
                futures = {executor.submit(execute, job): job for job in cached}
                for future in as_completed(futures):
                    finish(future, futures[future])
        for job in training:
            start = time.monotonic()
            with pool(1) as executor:  # a pool of its own: one that breaks takes no other notebook with it
                future = executor.submit(execute, job)
                while not wait([future], timeout=PROGRESS_SECONDS).done:
                    progress(job)
                finish(future, job)
    except BaseException:
        for process in multiprocessing.active_children():  # kernels end with them
            process.terminate()
        raise
    return outcomes
