"""The look of every figure: colour-blind safe colours, labels at the lines themselves, bands over seeds."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import matplotlib.style
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_hex, to_rgb
from matplotlib.lines import Line2D
from matplotlib.text import Annotation

from cptlab.errors import ConfigError

STYLE_FILE = Path(__file__).with_name("cptlab.mplstyle")

#: Okabe and Ito's palette (2008) without its yellow, by name, in the order of the style's colour cycle.
COLORS = {
    "blue": "#0072B2",
    "vermillion": "#D55E00",
    "green": "#009E73",
    "purple": "#CC79A7",
    "orange": "#E69F00",
    "sky": "#56B4E9",
    "black": "#000000",
}

#: Line style of numbers taken from a paper, the same in every figure: ``ax.plot(x, y, **figures.PAPER)``.
PAPER: dict[str, Any] = {"color": "#6B6B6B", "linestyle": (0, (4, 2)), "linewidth": 1.2, "zorder": 1.5}


def use() -> None:
    """Apply the style to every figure made after this call (Matplotlib's rcParams of this process)."""
    matplotlib.style.use(STYLE_FILE)


def size_colors(n: int) -> list[str]:
    """``n`` hex colours from light (the smallest size) to dark (the largest), ordered in print and for the colour-blind too."""
    if n < 1:
        raise ConfigError(f"size_colors needs n of at least 1, got {n}")
    # The ends of viridis are left out: the light one vanishes on white, the dark one passes for black.
    places = np.linspace(0.78, 0.06, n) if n > 1 else [0.42]
    return [to_hex(matplotlib.colormaps["viridis"](place)) for place in places]


def _luminance(rgb: np.ndarray) -> float:
    """Relative luminance in [0, 1] of an sRGB triple (WCAG 2.1, definition of relative luminance)."""
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])


def text_color(color: Any, contrast: float = 4.5) -> str:
    """``color`` darkened as far as text on white needs for the WCAG contrast ratio ``contrast`` (4.5 is level AA)."""
    rgb = np.array(to_rgb(color))
    while 1.05 / (_luminance(rgb) + 0.05) < contrast:
        rgb = rgb * 0.97
    return to_hex(rgb)


def direct_label(ax: Axes, x: float, y: float, text: str, color: Any, *, dx: float = 4, dy: float = 0, **text_options: Any) -> Annotation:
    """Write ``text`` beside the point (x, y) of the data, ``dx`` and ``dy`` points away, in a readable shade of ``color``."""
    options = {"va": "center", "ha": "left" if dx >= 0 else "right", "fontsize": matplotlib.rcParams["xtick.labelsize"]} | text_options
    return ax.annotate(text, (x, y), xytext=(dx, dy), textcoords="offset points", color=text_color(color), annotation_clip=False, **options)


def label_ends(ax: Axes, lines: Sequence[Line2D] | None = None, *, dx: float = 4, spacing: float = 1.15) -> list[Annotation]:
    """Label each line at its last finite point instead of in a legend; labels that would overlap move apart vertically.

    ``lines`` is by default every line of the axes with a label of its own. Call it last, when scales and limits are set.
    ``spacing`` is the least distance of two labels in units of the text height. Returns the labels in the order of the lines.
    """
    lines = ax.get_lines() if lines is None else lines
    ax.get_xlim(), ax.get_ylim()  # settles limits that autoscaling has still to update
    ends: list[tuple[Line2D, float, float]] = []
    for line in lines:
        x, y = (np.asarray(values, dtype=float) for values in line.get_data(orig=False))
        finite = np.flatnonzero(np.isfinite(x) & np.isfinite(y))
        if not str(line.get_label()).startswith("_") and finite.size:
            ends.append((line, float(x[finite[-1]]), float(y[finite[-1]])))
    if not ends:
        return []
    from matplotlib.font_manager import FontProperties

    size = FontProperties(size=matplotlib.rcParams["xtick.labelsize"]).get_size_in_points()
    points_per_pixel = 72 / ax.figure.dpi
    heights = np.array([ax.transData.transform((x, y))[1] for _, x, y in ends]) * points_per_pixel
    moved = _spread(heights, spacing * size)
    return [
        direct_label(ax, x, y, str(line.get_label()), line.get_color(), dx=dx, dy=float(new - old))
        for (line, x, y), old, new in zip(ends, heights, moved, strict=True)
    ]


def _spread(heights: np.ndarray, gap: float) -> np.ndarray:
    """The positions nearest to ``heights`` (least squares, order kept) of which no two are closer than ``gap``."""
    order = np.argsort(heights, kind="stable")
    # With z_i = h_i - i * gap the constraint reads "z does not fall": pool adjacent violators.
    blocks: list[list[float]] = []
    for rank, index in enumerate(order):
        blocks.append([heights[index] - rank * gap, 1])
        while len(blocks) > 1 and blocks[-2][0] > blocks[-1][0]:
            mean, count = blocks.pop()
            below, number = blocks.pop()
            blocks.append([(mean * count + below * number) / (count + number), count + number])
    fitted = np.concatenate([np.full(int(count), mean) for mean, count in blocks])
    result = np.empty_like(heights)
    result[order] = fitted + gap * np.arange(len(heights))
    return result


def band(
    ax: Axes, x: Any, mean: Any, low: Any, high: Any, color: Any, label: str | None = None, *, alpha: float = 0.18, **line_options: Any
) -> Line2D:
    """Draw ``mean`` against ``x`` as a line and ``low`` to ``high`` (same length) as a band; NaN bounds draw no band. Returns the line."""
    x, mean, low, high = (np.asarray(values, dtype=float) for values in (x, mean, low, high))
    if np.isfinite(low).any() and np.isfinite(high).any():
        ax.fill_between(x, low, high, color=color, alpha=alpha, linewidth=0)
    (line,) = ax.plot(x, mean, color=color, label=label, **line_options)
    return line
