"""Figures: one style, marks that label themselves, and files that carry their data and their origin."""

from cptlab.figures import style
from cptlab.figures.panels import heatmap, legend_beside, lines, small_multiples
from cptlab.figures.save import save
from cptlab.figures.style import PAPER, band, direct_label, label_ends, size_colors

__all__ = [
    "PAPER",
    "band",
    "direct_label",
    "heatmap",
    "label_ends",
    "legend_beside",
    "lines",
    "save",
    "size_colors",
    "small_multiples",
    "style",
]
