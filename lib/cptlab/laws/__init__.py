"""Scaling laws: their forms, certified fits, and what follows from them."""

from cptlab.laws import catalogue, optimal
from cptlab.laws.fit import Fit, fit
from cptlab.laws.forms import FORMS, Form, PowerSum, Term, coefficient, exponent, form, positive, register
from cptlab.laws.record import recorded

__all__ = [
    "FORMS",
    "Fit",
    "Form",
    "PowerSum",
    "Term",
    "catalogue",
    "coefficient",
    "exponent",
    "fit",
    "form",
    "optimal",
    "positive",
    "recorded",
    "register",
]
