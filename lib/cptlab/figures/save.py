"""Saving a figure with the data it shows and the runs it comes from; the same input gives the same bytes."""

import hashlib
import io
import re
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import LayoutEngine

from cptlab import __version__
from cptlab.errors import ConfigError
from cptlab.files import atomic_json, atomic_write
from cptlab.paths import figures_dir

FLOAT_FORMAT = "%.8g"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")


def save(
    fig: Figure, name: str, data: pd.DataFrame, notebook: str, profile: str, runs: list[str], caption: str, folder: Path | None = None
) -> None:
    """Write ``<name>.{svg,png,csv,json}`` to ``folder`` (default: that of the figures), each file atomically; a notebook calls
    :meth:`cptlab.study.Study.figure`, which knows where.

    ``data`` is the plotted table: rows and columns in the order given (a named index becomes columns, another is dropped), floats with
    eight significant digits. The JSON holds name, notebook, profile, caption, sorted run ids, sha256 of the CSV and cptlab's version;
    no file holds a date. Raises ConfigError for a name that is no plain file name, an empty table, columns that share a name, or axes
    that show no finite number.
    """
    if not _NAME.fullmatch(name):
        raise ConfigError(f"figure name {name!r}: use letters, digits, '_', '-' and '.' only, it becomes a file name")
    named = [level for level in data.index.names if level is not None]
    table = data.reset_index(level=named) if named else data
    if table.empty:
        raise ConfigError(f"figure {name!r}: data is empty; pass the table that the figure plots")
    if not table.columns.is_unique:
        twice = sorted({str(column) for column in table.columns[table.columns.duplicated()]})
        raise ConfigError(f"figure {name!r}: data has columns of the same name: {', '.join(twice)}; rename or drop them")
    csv = table.to_csv(index=False, float_format=FLOAT_FORMAT, lineterminator="\n").encode()
    for ax in fig.axes:
        if ax.axison and ax.get_visible() and not _shows_something(ax):
            titles = map(ax.get_title, ("left", "center", "right"))
            title = next(filter(None, titles), "") or ax.get_xlabel() or ax.get_ylabel() or f"number {fig.axes.index(ax) + 1}"
            raise ConfigError(
                f"figure {name!r}: the axes {title!r} show no finite number; check that the table has rows for them (a language, size or "
                "arm that was not run?), or leave the axes out"
            )

    # Whatever rcParams hold now: text as outlines and a fixed salt make the SVG's bytes a function of what is drawn.
    images = {}
    engine = _settle(fig)
    try:
        with matplotlib.rc_context({"svg.fonttype": "path", "svg.hashsalt": "cptlab"}):
            description = {"Title": name, "Description": caption}
            for kind, metadata in (("svg", {"Date": None, "Creator": "cptlab"}), ("png", {"Software": None})):
                buffer = io.BytesIO()
                fig.savefig(buffer, format=kind, metadata=metadata | description)
                images[kind] = buffer.getvalue()
    finally:
        fig.set_layout_engine(engine)

    folder = folder or figures_dir()
    for kind, content in images.items():
        atomic_write(folder / f"{name}.{kind}", content)
    atomic_write(folder / f"{name}.csv", csv)
    atomic_json(
        folder / f"{name}.json",
        {
            "name": name,
            "notebook": notebook,
            "profile": profile,
            "caption": caption,
            "runs": sorted(set(runs)),
            "csv_sha256": hashlib.sha256(csv).hexdigest(),
            "cptlab": __version__,
        },
    )


def _shows_something(ax: Axes) -> bool:
    """Whether anything with finite coordinates is drawn; lines over the whole width or height alone are not data."""
    images = [np.isfinite(np.asarray(image.get_array(), dtype=float)).any() for image in ax.get_images()]
    return any(images) if images else bool(np.isfinite(ax.dataLim.get_points()).all())


def _settle(fig: Figure) -> LayoutEngine | None:
    """Repeat the layout until it stands still and switch it off; returns the engine, to be put back.

    Constrained layout moves the axes a little at every draw. Its fixed point does not depend on how often a notebook has shown the figure.
    """
    engine = fig.get_layout_engine()
    if engine is None:
        return None
    before = None
    for _ in range(10):
        fig.draw_without_rendering()
        now = np.array([ax.get_position(original=True).bounds for ax in fig.axes])
        if now.size == 0 or (before is not None and np.abs(now - before).max() < 1e-10):
            break
        before = now
    fig.set_layout_engine("none")
    for ax, bounds in zip(fig.axes, now.round(6), strict=True):  # the last bits never settle, and ids in the SVG are hashes of them
        in_layout = ax.get_in_layout()
        ax.set_position(bounds)
        ax.set_in_layout(in_layout)
    return engine
