"""Fits beside one another as tables for people: their parameters, their certificates, and what to beware of."""

import math
from collections.abc import Mapping

import pandas as pd

from cptlab.laws.fit import Fit

# Beginnings of warnings whose numbers are in the other two tables.
_TOLD = ("not determined by these data", "condition number", "only ")
#: For :func:`cptlab.show.table` of :func:`certificates`.
FORMATS = {"that agree": ".0%", "condition number": ".3g", "rms error": ".2%"}


def parameters(fits: Mapping[str, Fit]) -> pd.DataFrame:
    """Value and 95 % interval, a row a parameter that some fit left free, a column a fit.

    ``open`` after a value says that the data do not determine it; what a fit froze is ``frozen``, what its law lacks is empty.
    """
    free = [name for found in fits.values() for name in found.form.names if name not in found.frozen]
    rows = [{"parameter": name} | {label: _cell(found, name) for label, found in fits.items()} for name in dict.fromkeys(free)]
    return pd.DataFrame(rows, columns=["parameter", *fits])


def certificates(fits: Mapping[str, Fit]) -> pd.DataFrame:
    """How far to trust each fit: points, free parameters and how many of them are open, the share of starts that agree, condition
    number, error of log loss, and how the search ended."""
    return pd.DataFrame(
        {
            "fit": label,
            "points": found.points,
            "free": len(found.form.names) - len(found.frozen),
            "open": len(found.unidentified),
            "starts": found.starts,
            "that agree": found.agreement,
            "condition number": found.condition,
            "rms error": found.rms_log_error,
            "search": found.status,
        }
        for label, found in fits.items()
    )


def cautions(fits: Mapping[str, Fit]) -> pd.DataFrame:
    """What else to beware of: a row a warning, with the fits that give it; what :func:`parameters` and :func:`certificates` show is
    left out."""
    of: dict[str, list[str]] = {}
    for label, found in fits.items():
        for text in found.warnings:
            if not text.startswith(_TOLD):
                of.setdefault(text, []).append(label)
    return pd.DataFrame([(text, "; ".join(labels)) for text, labels in of.items()], columns=["warning", "fits"])


def _cell(found: Fit, name: str) -> str:
    if name not in found.parameters:
        return ""
    if name in found.frozen:
        return "frozen"
    estimate = found.parameters[name]
    text = f"{estimate.value:.3g}"
    text += " (no interval)" if math.isnan(estimate.low) else f" [{estimate.low:.3g}, {estimate.high:.3g}]"
    return f"{text}, open" if name in found.unidentified else text
