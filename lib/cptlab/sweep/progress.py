"""Progress of a sweep in words: what each run is doing, the time that is left, failures as they happen; for a terminal, a notebook that
somebody looks at (with the curves, :mod:`cptlab.sweep.picture`), or a log, which gets the failures alone."""

import os
import sys
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from cptlab.errors import StoreError
from cptlab.outputs import interactive
from cptlab.runs import notes
from cptlab.runs.request import Request
from cptlab.runs.store import Store
from cptlab.sweep.cost import Cost, bound

if TYPE_CHECKING:
    from cptlab.sweep.grid import Grid

TEXT_SECONDS = 1.0  # between two texts in a notebook
PICTURE_SECONDS = 3.0  # between two drawings
FRESH_SECONDS = 60.0  # a rate that is older counts no more


@dataclass
class Sweep:
    """A sweep under way: what is to be done by run id, how the runs ended, which run now, what was said of failures without a record."""

    store: Store
    todo: dict[str, Request]
    workers: int = 1
    status: dict[str, str] = field(default_factory=dict)
    running: set[str] = field(default_factory=set)
    errors: dict[str, str] = field(default_factory=dict)
    began: float = field(default_factory=time.time)
    costs: Mapping[str, Cost] | None = None
    pace: float | None = None  # of a second's work as estimated, how much was done a second when that was last seen

    def note(self, run_id: str) -> dict | None:
        """The run's note of this sweep; None for one that an earlier attempt left."""
        found = self.store.progress(run_id)
        return found if found and found.get("time", 0) >= self.began else None


def audience() -> str:
    """Who watches: ``notebook`` (a kernel that Jupyter or an editor started), ``terminal`` or ``nobody`` (Papermill, CI, a log file)."""
    if os.environ.get("CPTLAB_PROGRESS") == "0":
        return "nobody"
    if "ipykernel" in sys.modules:
        return "notebook" if interactive() else "nobody"
    return "terminal" if sys.stderr.isatty() else "nobody"


class Progress:
    """Shows how a sweep goes to whoever watches; a sweep without work shows nothing."""

    def __init__(self, grid: "Grid"):
        self.grid, self.kind, self.sweep = grid, audience(), None
        self.told, self.width, self.last_text = set(), 0, 0.0
        self.text = self.picture = None

    def update(self, sweep: Sweep) -> None:
        """Show what changed; called about twice a second."""
        if self.sweep is None:
            self.sweep = sweep
            if self.kind == "notebook":
                from cptlab.sweep.picture import Picture

                self.picture = Picture(self.grid)
        for line in failure_lines(sweep, self.told):
            if self.width:
                print("\r" + " " * self.width + "\r", end="", file=sys.stderr)
            print(line, file=sys.stderr, flush=True)
        if self.kind == "terminal":
            line = progress_text(sweep, "; ")
            print("\r" + line.ljust(self.width), end="", file=sys.stderr, flush=True)
            self.width = len(line)
        elif self.kind == "notebook" and time.monotonic() - self.last_text > TEXT_SECONDS:
            self.last_text = time.monotonic()
            self._say(progress_text(sweep, "\n  "))
            self.picture.draw(sweep, PICTURE_SECONDS)

    def _say(self, text: str) -> None:
        from IPython.display import display

        data = {"text/plain": text}
        if self.text is None:
            self.text = display(data, raw=True, display_id=True)
        else:
            self.text.update(data, raw=True)

    def close(self) -> None:
        """Show how the sweep ended."""
        if self.sweep is None:
            return
        line = last_line(self.sweep)
        if self.kind == "terminal":
            print("\r" + line.ljust(self.width), file=sys.stderr, flush=True)
        elif self.kind == "notebook":
            self._say(line)
            self.picture.draw(self.sweep)


def name_of(request: Request) -> str:
    """A run's labels in words, its id where it has none."""
    return ", ".join(str(value) for key, value in request.labels.items() if key != "notebook" and value is not None) or request.id


def seen(
    store: Store,
    todo: dict[str, Request] | Iterable[str],
    costs: Mapping[str, Cost] | None = None,
    workers: int = 1,
    since: float = 0.0,
) -> Sweep:
    """A sweep of another process, as the store shows it.

    Args:
        todo: requests by run id, or ids alone, for which no time left is known.
        since: when it began (seconds since the epoch): a failed record from before is of another attempt.
    """
    requests = todo if isinstance(todo, dict) else dict.fromkeys(todo)
    running = {run_id for run_id in requests if store.held(run_id)}  # also a finished run that is trained again for something
    status = {}
    for run_id in requests.keys() - running:
        found = store.status(run_id)
        if found == "done" or (found == "failed" and store.record_time(run_id) / 1e9 >= since):
            status[run_id] = found
    return Sweep(store, requests, workers, status, running, began=since, costs=costs)


def progress_line(*arguments, **options) -> str:
    """One line on a sweep of another process; the arguments are those of :func:`seen`."""
    return progress_text(seen(*arguments, **options), "; ")


def progress_text(sweep: Sweep, separator: str) -> str:
    """Runs done, tokens/s, time left; then, after ``separator`` each, what the runs in progress are doing."""
    notes_now = {run_id: sweep.note(run_id) for run_id in sweep.todo if run_id in sweep.running}
    rates = {run_id: n["tokens_per_s"] for run_id, n in notes_now.items() if n and time.time() - n.get("time", 0) < FRESH_SECONDS}
    line = f"{_count(sweep)}, {len(sweep.running)} running"
    if rate := sum(rates.values()):
        line += f", {rate:,.0f} tokens/s"
    if left := _left(sweep, notes_now, rates):
        line += f", {_minutes(left)} left"
    return separator.join([line, *(_doing(sweep, run_id, note) for run_id, note in notes_now.items())])


def _count(sweep: Sweep) -> str:
    failed = sum(value != "done" for value in sweep.status.values())
    done = len(sweep.status) - failed
    return f"{done} of {len(sweep.todo)} runs done" + (f", {failed} failed or skipped" if failed else "")


def _minutes(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 60 else f"{seconds / 60:.0f} min" if seconds > 600 else f"{seconds / 60:.1f} min"


def _doing(sweep: Sweep, run_id: str, note: dict | None) -> str:
    request = sweep.todo[run_id]
    doing = "starting a worker"
    if note:
        far = f"step {note['step']} of {note['steps']}" if note["step"] else ""
        phase = note.get("phase", "training")
        doing = far or "step 0" if phase == "training" else f"{far}, {phase}" if far and not phase.startswith("resumed") else phase
    return f"{name_of(request) if request else run_id}: {doing}"


def _left(sweep: Sweep, notes_now: dict[str, dict | None], rates: dict[str, float]) -> float | None:
    """Seconds left: the estimated ones of the runs that are not done, at the pace of what runs now (which is also all that is known where
    nothing was estimated: sizes differ too much to count in tokens)."""
    if not all(sweep.todo.values()):
        return None
    costs = sweep.costs or {run_id: Cost(training=request.spec.flops) for run_id, request in sweep.todo.items()}
    paces = [
        rate * costs[run_id].training / sweep.todo[run_id].spec.tokens_trained
        for run_id, rate in rates.items()
        if rate and run_id in costs and costs[run_id].training
    ]
    sweep.pace = sum(paces) / len(paces) if paces else sweep.pace or (1.0 if sweep.costs else None)
    if not sweep.pace:
        return None
    left = {run_id: costs[run_id].seconds for run_id in sweep.todo if run_id not in sweep.status and run_id in costs}
    for run_id, note in notes_now.items():
        if note and note["step"] and run_id in left:
            left[run_id] *= 1 - note["step"] / note["steps"]
    seconds = bound(sweep.todo, left, sweep.workers) / sweep.pace
    return seconds if seconds == seconds else None  # of a model whose FLOPs are not known


def failure_lines(sweep: Sweep, told: set[str]) -> list[str]:
    """A line for each run that failed since ``told``, which is added to: its labels, id, step and the whole message."""
    lines = []
    for run_id, status in sweep.status.items():
        if status != "failed" or run_id in told:
            continue
        told.add(run_id)
        step, message = None, sweep.errors.get(run_id)
        if message is None:
            try:
                error = sweep.store.views(run_id)[-1].record["error"]
                step, message = error["step"], f"{error['type']}: {error['message']}"
            except (StoreError, TypeError):
                message = "its record cannot be read"
        request = sweep.todo[run_id]
        at = f" at step {step} of {request.spec.steps}" if step is not None and request else ""
        name = f"{name_of(request)} ({run_id})" if request and name_of(request) != run_id else run_id
        lines.append(f"run {name} failed{at}: {' '.join(message.split())}")
    return lines


def last_line(sweep: Sweep) -> str:
    """How a sweep ended: ``2 of 3 runs done in 2.1 min; failed: base``."""
    taken = time.time() - sweep.began
    done = sum(value == "done" for value in sweep.status.values())
    line = f"{done} of {len(sweep.todo)} runs done in {_minutes(taken) if taken < 60 else f'{taken / 60:.1f} min'}"
    for status in ("failed", "skipped"):
        names = [name_of(sweep.todo[run_id]) for run_id, found in sweep.status.items() if found == status]
        line += f"; {status}: {'; '.join(names)}" if names else ""
    if len(sweep.status) < len(sweep.todo):
        line += f"; stopped, {len(sweep.todo) - len(sweep.status)} not done"
    return line


def interrupted_text(sweep: Sweep) -> str:
    """Where the runs of an interrupted sweep stopped and where they go on from; call it when the workers have ended."""
    lines = [f"{_count(sweep)}. Run the cell again to go on"]
    for run_id in (run_id for run_id in sweep.todo if run_id in sweep.running):
        note, saved, name = sweep.note(run_id), notes.saved_step(sweep.store, run_id), name_of(sweep.todo[run_id])
        if sweep.store.status(run_id) == "done":
            lines.append(f"{name}: was done" if note is None else f"{name}: stopped while it was {note['phase']}, which begins anew")
        elif note is None or not note["step"]:
            lines.append(f"{name}: stopped before its first step" + (f" here, goes on from step {saved}" if saved else ""))
        else:
            stopped = max(note["step"], saved)
            where = f"stopped at step {stopped} of {note['steps']}"
            kept = "saved there, goes on from there" if saved == stopped else f"goes on from step {saved}, the last one saved"
            lines.append(f"{name}: {where}, {kept if saved else 'no state was saved yet: begins anew'}")
    return "\n  ".join(lines)
