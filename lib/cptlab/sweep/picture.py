"""The curves of a sweep while it trains: a panel an evaluation set, a colour an arm, finished runs from the store."""

import base64
import io
import math
import time
from typing import TYPE_CHECKING

from cptlab.sweep.progress import Sweep, name_of

if TYPE_CHECKING:
    from cptlab.sweep.grid import Grid

COLUMNS = 3  # of panels
LOWEST = 0.25  # where the y axis begins, as a share of the loss of knowing nothing


class Picture:
    """Losses on every evaluation set of a grid against tokens. The x axis is fixed, the y axis only ever grows."""

    def __init__(self, grid: "Grid"):
        from cptlab.figures.style import COLORS

        self.requests = grid.requests
        self.sets = list(dict.fromkeys(name for request in self.requests for name in request.sets))
        arms = dict.fromkeys(map(arm_of, self.requests))
        self.colors = {arm: list(COLORS.values())[i % len(COLORS)] for i, arm in enumerate(arms)}
        self.finished: dict[str, list[dict]] = {}
        self.low = LOWEST * math.log(max(request.spec.corpus.vocab for request in self.requests))
        self.high = 0.0
        self.handle, self.drawn = None, 0.0

    def rows(self, sweep: Sweep, request) -> list[dict]:
        """Measurements of a run: of its note while it is in progress, else of its record."""
        run_id = request.id
        if run_id in self.finished:
            return self.finished[run_id]
        if run_id in sweep.todo and sweep.status.get(run_id) != "done":
            return (sweep.note(run_id) or {}).get("measured", [])
        rows = sweep.store.views(run_id)[-1 if run_id in sweep.todo else 0].measurement_rows()
        self.finished[run_id] = [row for row in rows if row["step"] in request.measured_steps]
        return self.finished[run_id]

    def draw(self, sweep: Sweep, every: float = 0.0) -> None:
        """Show the curves, if the last drawing is ``every`` seconds ago and there is something to draw."""
        if time.monotonic() - self.drawn < every or not self.sets:
            return
        curves = [(request, self.rows(sweep, request)) for request in self.requests]
        if not any(rows for _, rows in curves):
            return
        png = self.png(curves)
        self.drawn = time.monotonic()
        from IPython.display import display

        data = {"image/png": base64.b64encode(png).decode(), "text/plain": f"validation loss on {', '.join(self.sets)}"}
        if self.handle is None:
            self.handle = display(data, raw=True, display_id=True)
        else:
            self.handle.update(data, raw=True)

    def png(self, curves: list[tuple]) -> bytes:
        """The picture of ``curves``: pairs of a request and its rows of measurements."""
        figure = self.figure(curves)
        stream = io.BytesIO()
        figure.savefig(stream, format="png", dpi=100)
        return stream.getvalue()

    def figure(self, curves: list[tuple]):
        """The Matplotlib figure behind :meth:`png`, of no backend."""
        from matplotlib.figure import Figure

        columns = min(COLUMNS, len(self.sets))
        lines = -(-len(self.sets) // columns)
        figure = Figure(figsize=(max(4.2, 3.2 * columns), 2.4 * lines + 0.5), layout="constrained")
        axes = figure.subplots(lines, columns, squeeze=False, sharex=True, sharey=True).ravel()
        losses = [row["loss_nats"] for _, rows in curves for row in rows if row["set"] in self.sets and math.isfinite(row["loss_nats"])]
        if losses:
            self.low, self.high = min(self.low, 0.97 * min(losses)), max(self.high, 1.03 * max(losses))
        shown = {}
        for request, rows in curves:
            arm = arm_of(request)
            for ax, name in zip(axes, self.sets, strict=False):
                points = sorted((row["tokens"], row["loss_nats"]) for row in rows if row["set"] == name)
                if points:
                    (shown[arm],) = ax.plot(*zip(*points, strict=True), color=self.colors[arm], marker=".", markersize=3, linewidth=1)
        first = min(request.spec.batch_tokens for request in self.requests)
        for ax, name in zip(axes, self.sets, strict=False):
            ax.set_title(name, fontsize=9)
            ax.set_xscale("symlog", linthresh=first)  # step 0 has no tokens
            ax.set(xlim=(0, 1.1 * max(request.spec.tokens_trained for request in self.requests)))
            ax.tick_params(labelsize=7)
        if self.high > self.low:
            axes[0].set_ylim(self.low, self.high)
        for ax in axes[len(self.sets) :]:
            ax.remove()
        figure.supxlabel("tokens", fontsize=8)
        figure.supylabel("validation loss (nats)", fontsize=8)
        if shown:
            figure.legend(list(shown.values()), [name[:40] for name in shown], loc="outside upper center", ncols=4, fontsize=7)
        return figure


def arm_of(request) -> str:
    """What shares a colour: the label ``arm``, else all labels."""
    return str(request.labels["arm"]) if "arm" in request.labels else name_of(request)
