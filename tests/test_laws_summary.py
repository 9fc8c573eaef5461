"""Fits as tables for people say what the fits say."""

import numpy as np
import pandas as pd
import pytest
from test_laws_forms import TRUTH, measured

from cptlab.laws import fit, form, summary


@pytest.fixture(scope="module")
def fits():
    data = measured("chinchilla", TRUTH["chinchilla"], seed=2)
    first = fit("chinchilla", data, bootstrap=40, starts=4)
    kept = {name: first.values[name] for name in ("E", "A", "alpha")}
    return {"scratch": first, "continual": fit("continual", data, freeze=kept, bootstrap=0, starts=4)}


def test_parameters(fits):
    table = summary.parameters(fits).set_index("parameter")
    assert list(table.index) == ["E", "A", "B", "alpha", "beta", "gamma"] and list(table) == ["scratch", "continual"]
    found = fits["scratch"].parameters["beta"]
    assert table.loc["beta", "scratch"] == f"{found.value:.3g} [{found.low:.3g}, {found.high:.3g}]"
    assert (table.loc[["E", "A", "alpha"], "continual"] == "frozen").all() and table.loc["gamma", "scratch"] == ""
    assert "(no interval)" in table.loc["gamma", "continual"]


def test_what_the_data_do_not_determine_is_open():
    n, d = (values.ravel() for values in np.meshgrid(np.geomspace(1e7, 1e9, 6), [1e9, 4e9]))  # two budgets cannot tell E, B and beta
    few = fit("chinchilla", {"n": n, "d": d, "loss": form("chinchilla").loss(TRUTH["chinchilla"], n=n, d=d)}, bootstrap=40, starts=4)
    table = summary.parameters({"few": few}).set_index("parameter")["few"]
    assert {"E", "B", "beta"} <= {name for name in table.index if table[name].endswith(", open")} == set(few.unidentified)


def test_certificates(fits):
    table = summary.certificates(fits).set_index("fit")
    assert table.loc["scratch", ["points", "free", "starts"]].tolist() == [fits["scratch"].points, 5, 4]
    assert table.loc["continual", "free"] == 3 and table.loc["scratch", "open"] == len(fits["scratch"].unidentified)
    assert table.loc["scratch", "that agree"] == fits["scratch"].agreement and set(summary.FORMATS) <= set(table)


def test_cautions_name_the_fits_and_leave_out_what_the_tables_show(fits):
    table = summary.cautions(fits | {"again": fits["scratch"]})
    told = table.set_index("warning")["fits"]
    assert "intervals from 40 refits only: they are rough" in told.index
    assert told["intervals from 40 refits only: they are rough"] == "scratch; again"
    assert not any(text.startswith(("condition number", "only ", "not determined")) for text in told.index)


def test_no_fits():
    for show in (summary.parameters, summary.certificates, summary.cautions):
        assert isinstance(show({}), pd.DataFrame) and show({}).empty
