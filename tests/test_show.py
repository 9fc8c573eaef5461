"""Tables for people."""

import numpy as np
import pandas as pd

from cptlab.show import facts, table


def test_numbers_are_read_at_a_glance():
    frame = pd.DataFrame(
        {"tokens": [4_000_000, 12], "loss": [2.7444, 10.2], "flops": [1.2e12, 3e11], "lr": [0.002, 0.016], "ok": [True, False]}
    )
    shown = table(frame)
    assert shown.cells == [("4,000,000", "2.74", "1.20e+12", "0.002", "yes"), ("12", "10.20", "3.00e+11", "0.016", "no")]
    assert repr(shown).splitlines()[0].split() == ["tokens", "loss", "flops", "lr", "ok"]


def test_index_and_empty_cells():
    frame = pd.DataFrame({"loss": [1.5, np.nan], "note": [None, "x"]}, index=pd.Index(["a", "b"], name="arm"))
    assert table(frame).cells == [("a", "1.500", ""), ("b", "", "x")]
    assert table(frame.reset_index(drop=True)).heads == ["loss", "note"]  # an index of numbers is dropped
    assert table(frame, loss="+.1%").cells[0][1] == "+150.0%"


def test_long_tables_fold_and_text_is_escaped():
    shown = table(pd.DataFrame({"name": ["<b>"] * 15}))._repr_html_()
    assert shown.count("&lt;b&gt;") == 15 and "<b>" not in shown
    assert "<details><summary>3 more rows</summary>" in shown
    assert "<details>" not in table(pd.DataFrame({"name": ["x"] * 12}))._repr_html_()


def test_a_description_is_two_columns():
    shown = facts({"model": {"layers": 4, "width": 96}, "tokens": 1_500_000, "objective": None, "phases": ()})
    assert shown.cells == [("model.layers", "4"), ("model.width", "96"), ("tokens", "1,500,000")]
