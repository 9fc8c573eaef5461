"""Figures: one style, marks that label themselves, and files that carry their data and their origin."""

from cptlab.figures import style
from cptlab.figures.save import save
from cptlab.figures.style import PAPER, band, direct_label, label_ends, size_colors

__all__ = ["PAPER", "band", "direct_label", "label_ends", "save", "size_colors", "style"]
