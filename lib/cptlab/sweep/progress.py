"""Progress of a sweep: one line on a terminal, live curves in a notebook that somebody looks at, nothing under Papermill."""

import os
import sys
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING

from cptlab.runs.request import Request
from cptlab.runs.store import Store

if TYPE_CHECKING:
    from cptlab.sweep.grid import Grid

NOTEBOOK_SECONDS = 3.0  # between two drawings


def audience() -> str:
    """Who watches: ``notebook`` (a kernel that Jupyter or an editor started), ``terminal`` or ``nobody`` (Papermill, CI, a log file)."""
    if os.environ.get("CPTLAB_PROGRESS") == "0":
        return "nobody"
    if "ipykernel" in sys.modules:
        return "notebook" if "JPY_SESSION_NAME" in os.environ or "VSCODE_PID" in os.environ else "nobody"
    return "terminal" if sys.stderr.isatty() else "nobody"


class Progress:
    """Shows how a sweep goes to whoever watches."""

    def __init__(self, grid: "Grid"):
        self.grid, self.kind, self.handle, self.drawn, self.width = grid, audience(), None, 0.0, 0

    def update(self, line: str) -> None:
        """Show the sweep's progress line; in a notebook also the curves of the runs in progress."""
        if self.kind == "terminal":
            print("\r" + line.ljust(self.width), end="", file=sys.stderr, flush=True)
            self.width = len(line)
        elif self.kind == "notebook" and time.monotonic() - self.drawn > NOTEBOOK_SECONDS:
            self.drawn = time.monotonic()
            self._draw(line)

    def _draw(self, line: str) -> None:
        import matplotlib.pyplot as plt
        from IPython.display import display

        fig, ax = plt.subplots(figsize=(6, 2.6))
        for request, labels in zip(self.grid.requests, (r.labels for r in self.grid.requests), strict=True):
            note = self.grid.store.progress(request.id)
            seen = [row for row in (note or {}).get("measured", []) if row["set"] == next(iter(request.sets), None)]
            if seen:
                name = ", ".join(str(value) for key, value in labels.items() if key != "notebook")
                ax.plot([row["tokens"] for row in seen], [row["loss_nats"] for row in seen], marker=".", label=name[:40])
        if ax.lines:
            ax.legend(fontsize=6)
        ax.set(title=line, xlabel="tokens", ylabel="validation loss (nats)", xscale="log")
        ax.title.set_fontsize(8)
        if self.handle is None:
            self.handle = display(fig, display_id=True)
        else:
            self.handle.update(fig)
        plt.close(fig)

    def close(self) -> None:
        """End the line."""
        if self.kind == "terminal" and self.width:
            print(file=sys.stderr)


def progress_line(
    store: Store, todo: dict[str, Request] | Iterable[str], status: dict[str, str] | None = None, running: set[str] | None = None
) -> str:
    """One line on a sweep: runs done, tokens/s, time left. With ids only (another process's sweep) the store says who runs."""
    ids = list(todo)
    if status is None:
        found = {run_id: store.status(run_id) for run_id in ids}
        running = {run_id for run_id in ids if store.held(run_id)}  # also a finished run that is trained again for something
        status = {run_id: s for run_id, s in found.items() if s in ("done", "failed") and run_id not in running}
    notes = {run_id: note for run_id in running or () if (note := store.progress(run_id)) and time.time() - note["time"] < 60}
    rate = sum(note["tokens_per_s"] for note in notes.values())
    failed = sum(value != "done" for value in status.values())
    line = f"{len(status)}/{len(ids)} runs done" + (f", {failed} failed" if failed else "")
    line += f", {len(running or ())} running, {rate:,.0f} tokens/s"
    if isinstance(todo, dict) and rate:
        # Work left in FLOPs, at the rate in FLOPs of what runs now: sizes differ too much to count in tokens.
        cost = {run_id: request.spec.flops for run_id, request in todo.items()}
        speed = sum(note["tokens_per_s"] * cost[r] / (todo[r].spec.steps * todo[r].spec.batch_tokens) for r, note in notes.items())
        left = sum(flops for run_id, flops in cost.items() if run_id not in status)
        left -= sum(cost[r] * note["step"] / note["steps"] for r, note in notes.items())
        if speed:
            line += f", {max(0.0, left) / speed / 60:.0f} min left"
    return line
