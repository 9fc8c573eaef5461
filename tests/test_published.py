from importlib import resources

import numpy as np
import pandas as pd
import pytest

from cptlab import published
from cptlab.errors import ConfigError


@pytest.mark.parametrize("name", published.names())
def test_every_table_names_its_place_in_a_work(name):
    found = published.source(name)
    assert {"work", "arxiv", "place"} <= set(found) and set(found) <= {"work", "arxiv", "place", "note", "facts"}


@pytest.mark.parametrize("name", published.names())
def test_a_table_is_its_file_cell_by_cell(name):
    text = resources.files("cptlab.published").joinpath(f"{name}.csv").read_text(encoding="utf-8")
    header, *lines = (line.split(",") for line in text.splitlines())
    table = published.table(name)
    assert table.columns.tolist() == header and len(table) == len(lines) > 0
    for line, (_, row) in zip(lines, table.iterrows(), strict=True):
        for cell, value in zip(line, row, strict=True):
            assert str(value) == cell or (pd.isna(value) if cell == "" else float(value) == float(cell)), (name, line)


def test_every_file_of_numbers_has_a_source():
    files = {path.name.removesuffix(".csv") for path in resources.files("cptlab.published").iterdir() if path.name.endswith(".csv")}
    assert files == set(published.names())


def test_digits_are_kept_as_printed():
    laws = published.printed("cpt_laws").set_index(["law", "quantity"])["value"]
    assert laws["scratch", "alpha"] == "0.40" and laws["scratch", "A"] == "420.0" and laws["continual", "gamma"] == "0.08"
    assert published.table("cpt_laws").set_index(["law", "quantity"])["value"]["scratch", "alpha"] == 0.4


def test_an_empty_cell_is_nan_and_a_column_with_words_stays_text():
    table = published.table("replay_and_rates")
    base = table[table["kind"] == "base_before_cpt"]
    assert base["new_loss"].isna().any() and table["new_loss"].dtype == float
    assert "const" in set(table["value"])


@pytest.mark.parametrize(("text", "half"), [("0.40", 0.005), ("420.0", 0.05), ("7", 0.5), ("1e3", 500.0), ("33.69907", 5e-6)])
def test_half_a_unit_of_the_last_digit(text, half):
    assert published.half_unit(text) == pytest.approx(half)


def test_a_word_has_no_last_digit():
    with pytest.raises(ConfigError, match="'const' is not a printed number"):
        published.half_unit("const")


def test_the_rounding_box_holds_what_would_be_printed_so_and_nothing_else():
    box = published.rounding_box({"a": "0.40", "b": "7"}, 5000)
    assert {f"{value:.2f}" for value in box["a"]} == {"0.40"} and {f"{value:.0f}" for value in box["b"]} == {"7"}
    assert box["a"].min() < 0.3955 and box["a"].max() > 0.4045
    assert abs(np.corrcoef(box["a"], box["b"])[0, 1]) < 0.05


def test_rounding_is_propagated():
    found = published.propagate(lambda v: v["a"] - v["b"], {"a": "2.50", "b": "1.50"}, 40000)
    # The difference of two uniform errors is triangular on (-0.01, 0.01): 2.5 % lie below -0.01 + 0.01 sqrt(2 x 0.025).
    edge = 0.01 * (1 - np.sqrt(0.05))
    assert found.value == pytest.approx(1.0) and found.n == 2
    assert found.low == pytest.approx(1 - edge, abs=2e-4) and found.high == pytest.approx(1 + edge, abs=2e-4)


def test_an_unknown_table_lists_the_known():
    with pytest.raises(ConfigError, match="no published table 'chinchilla': there are cpt_laws"):
        published.table("chinchilla")


def test_the_patch_tables_agree_with_each_other_and_with_their_formula():
    tasks = published.table("patch_tasks")
    share = tasks["lambda"].map({"0": 0, "1/2": 1 / 2, "2/3": 2 / 3, "4/5": 4 / 5})
    k = published.source("patch_perplexity")["facts"]["k"]
    assert np.allclose(tasks["cost"], share / k + 1 - share, atol=1e-3)
    fine = published.table("patch_perplexity").query("table == 3").set_index("setting")
    both = tasks[(tasks["table"] == 1) & tasks["lambda"].isin(["0", "2/3"])]
    assert sorted(zip(both["model"], both["lambda"], strict=True)) == [
        (model, share) for model in sorted(fine.index) for share in ("0", "2/3")
    ]
    for row in both.itertuples():
        column = "token" if row[3] == "0" else "patch"
        assert row.ppl == pytest.approx(fine.loc[row.model, column], abs=0.0501)


def test_a_rounding_box_needs_draws():
    with pytest.raises(ConfigError, match="draws = 0: give a whole number of at least 1"):
        published.rounding_box({"a": "0.40"}, 0)
