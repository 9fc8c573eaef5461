"""Mechanics that studies share: panels side by side, each with one line an arm, and shares as a table of colours."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import EngFormatter

from cptlab.errors import ConfigError
from cptlab.figures import style


def small_multiples(
    frame: pd.DataFrame,
    x: str,
    y: str,
    panel: str | None,
    line: str,
    *,
    colors: Mapping[str, str],
    titles: Mapping[str, str] | None = None,
    styles: Mapping[str, str] | None = None,
    style_by: str | None = None,
    size: tuple[float, float] = (7.2, 3.0),
    labels: str = "legend",
    xscale: str = "linear",
    xlabel: str = "",
    ylabel: str = "",
    at_values: bool = False,
    **line_options,
) -> Figure:
    """A row of panels with a shared y axis, one for each value of ``panel``, in each a line for each value of ``line``.

    Args:
        frame: tidy rows; columns ``low`` and ``high``, where there are any, become bands.
        panel: column whose values are panels; None: one panel of all rows.
        colors: value of ``line`` -> a colour or the name of one in :data:`cptlab.figures.style.COLORS`; its order is that of the lines.
        titles: value of ``panel`` -> title; its order is that of the panels. Default: the values, in order of appearance.
        styles: value of ``line`` -> line style; default solid.
        style_by: column that ``styles`` goes by in the place of ``line`` (an arm, where colours are sizes): a line for each value of both,
            without a label.
        at_values: ticks of x at the values that a panel shows (rates, warm-ups that were tried).
        labels: ``ends`` (at the lines), ``legend`` (one, in the last panel) or ``none``.

    Raises:
        ConfigError: no column of that name, or a line without a colour.
    """
    if panel is None:
        frame, panel = frame.assign(_all=""), "_all"
    wanted = [x, y, panel, line, style_by or line]
    if missing := [name for name in wanted if name not in frame]:
        raise ConfigError(f"small_multiples: no column {missing[0]!r} in the table; it has {', '.join(map(str, frame.columns))}")
    if bare := [value for value in frame[line].unique() if value not in colors]:
        raise ConfigError(f"small_multiples: {line} {bare[0]!r} has no colour; colors has {', '.join(map(str, colors))}")
    import matplotlib.pyplot as plt  # slow to import, and no kernel without a figure needs it

    style.use()
    titles = titles or {value: str(value) for value in frame[panel].unique()}
    fig, axes = plt.subplots(1, len(titles), figsize=size, sharey=True, squeeze=False)
    for ax, (value, title) in zip(axes[0], titles.items(), strict=True):
        here = frame[frame[panel] == value]
        for name, color in colors.items():
            for kind, rows in here[here[line] == name].groupby(style_by or line, sort=False):
                options = {"ls": (styles or {}).get(kind, "-")} | line_options
                lines(ax, rows.sort_values(x), x, y, style.COLORS.get(color, color), "_" if style_by else str(name), **options)
        ax.set(title=title, xscale=xscale, xlabel=xlabel)
        if xscale == "linear" and len(here) and here[x].abs().max() >= 1e5:
            ax.xaxis.set_major_formatter(EngFormatter(sep=""))  # 3M
        if at_values:
            ticks = sorted(here[x].unique())
            ax.set_xticks(ticks, [f"{tick:g}" if tick < 1000 else EngFormatter(sep="")(tick) for tick in ticks])
            ax.xaxis.minorticks_off()
        if labels == "ends":
            style.label_ends(ax)
        else:
            ax.set_xlim(right=ax.get_xlim()[1])  # keeps it when something is drawn over the whole width later
    axes[0][0].set_ylabel(ylabel)
    if labels == "legend":
        axes[0][-1].legend()
    return fig


def lines(ax: Axes, rows: pd.DataFrame, x: str, y: str, color: str, label: str, **line_options) -> None:
    """One line with its band, where the rows have ``low`` and ``high``; the interval of a single point is a bar."""
    nothing = np.full(len(rows), np.nan)
    low, high = rows.get("low", nothing), rows.get("high", nothing)
    style.band(ax, rows[x], rows[y], low, high, color, label, **line_options)
    if len(rows) == 1 and np.isfinite([*low, *high]).all():
        ax.vlines(rows[x], low, high, color=color)


def legend_beside(fig: Figure, colors: Mapping[str, str], title: str = "", entries: int = 12) -> None:
    """What the colours of all panels mean, once, to their right: a line for each of ``colors`` (name -> colour), under ``title``.

    Of more than ``entries``, as of shades from light to dark, every so many are named, the first and the last among them.
    """
    names = list(colors)
    named = [names[place] for place in np.unique(np.linspace(0, len(names) - 1, min(entries, len(names))).round().astype(int))]
    handles = [Line2D([], [], color=style.COLORS.get(colors[name], colors[name]), label=name) for name in named]
    fig.legend(handles=handles, title=title, loc="outside right center")


def points(ax: Axes, names: Sequence[str], values: Sequence[float], low: Sequence[float], high: Sequence[float], color: str) -> None:
    """Values with their intervals as error bars, one beside the other, each over its name."""
    values, low, high = (np.asarray(column, dtype=float) for column in (values, low, high))
    places = np.arange(len(values))
    ax.errorbar(places, values, yerr=[values - low, high - values], fmt="o", ms=4, capsize=3, color=color)
    ax.set_xticks(places, names, fontsize=7)
    ax.set_xlim(-0.5, len(values) - 0.5)


def upright(ax: Axes, place: float, value: float, low: float, high: float, color: str, sure: bool = True) -> None:
    """A value at ``place`` with its interval as an upright line; hollow and dotted when not ``sure``, dotted over the whole height when
    the bounds are NaN."""
    if np.isnan(low):
        ax.axvline(place, color=color, lw=1.5, ls=":")
    ax.plot([place, place], [low, high], color=color, lw=1.5, ls="-" if sure else ":")
    ax.plot(place, value, "o", ms=4, color=color, mfc=color if sure else "white")


def labelled(
    ax: Axes,
    rows: pd.DataFrame,
    x: str,
    y: str,
    label: str,
    color: str,
    *,
    marker: str = "o",
    error: float = 0.0,
    places: Mapping[str, tuple[float, float]] | None = None,
) -> None:
    """Points with what they are written beside them.

    Args:
        label: column of the texts; an empty one is left out.
        error: half width of the error bars, both ways.
        places: text -> how far from its point it is written, to the right and upward in points; default (4, 6).
    """
    bars = {"xerr": error, "yerr": error} if error else {}
    ax.errorbar(rows[x], rows[y], fmt=marker, color=color, ms=3.5, elinewidth=0.8, **bars)
    for at, height, text in zip(rows[x], rows[y], rows[label], strict=True):
        dx, dy = (places or {}).get(text, (4, 6))
        if text:
            style.direct_label(ax, at, height, text, color, dx=dx, dy=dy, fontsize=6.5)


def reported(ax: Axes, low: float, high: float, x: float, y: float, text: str = "what the work reports") -> None:
    """A grey band over the whole width between two numbers of a work, with ``text`` at (x, y)."""
    color = style.PAPER["color"]
    ax.axhspan(low, high, color=color, alpha=0.25, lw=0)
    style.direct_label(ax, x, y, text, color)


def heatmap(ax: Axes, shares: pd.DataFrame, texts: pd.DataFrame | None = None, cmap: str = "Blues") -> None:
    """Shares (0 to 1) as a table of colours with their per cent written in; NaN and 0 stay empty.

    Args:
        texts: what is written, of the same shape; default: per cent, ``<1`` where it rounds to nothing.
    """
    import seaborn

    if texts is None:
        texts = shares.map(lambda v: "" if not v > 0 else f"{100 * v:.0f}" if v >= 0.01 else "<1")
    options = {"vmin": 0, "vmax": 1, "cbar": False, "fmt": "", "annot_kws": {"fontsize": 7}}
    seaborn.heatmap(shares, ax=ax, annot=texts, cmap=cmap, **options)
    ax.grid(False)
    ax.set(xlabel="", ylabel="")
    ax.tick_params(length=0)
