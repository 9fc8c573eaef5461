"""Tables of losses: every bad cell and file is named, odd but good ones are read."""

import gzip
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from test_laws_forms import TRUTH, measured

from cptlab.errors import ConfigError, DataError
from cptlab.laws import FORMS, fit
from cptlab.laws.table import load, parse_columns, read_csv

PLAIN = "params,tokens,loss\n1e8,2e9,3.5\n2e8,4e9,3.25\n4e8,8e9,3.0\n"
LAW = FORMS["chinchilla"]


@pytest.fixture
def write(tmp_path: Path):
    """``write(text)`` is the path of a file with that text or those bytes."""

    def write(content: str | bytes) -> Path:
        path = tmp_path / "losses.csv"
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    return write


def refused(data, message: str, law=LAW, **options) -> None:
    """Loading raises a DataError whose text matches."""
    with pytest.raises(DataError, match=message):
        load(data, law, **options)


@pytest.mark.parametrize(
    ("cell", "what"),
    [
        ("0", "0 is not above zero"),
        ("-4e9", "-4e9 is not above zero"),
        ("", "no value"),
        ("NaN", "no value"),
        ("N/A", "no value"),
        ("inf", "inf is infinite"),
        ("-inf", "-inf is infinite"),
        ("1e999", "1e999 is infinite"),
        ("7B", "'7B' is not a number"),
        ("4 000", "'4 000' is not a number"),
        ('"4,000,000,000"', "'4,000,000,000' is not a number"),
        ("true", "'true' is not a number"),
    ],
)
@pytest.mark.parametrize("column", ["params", "tokens", "loss"])
def test_a_bad_cell_is_named_by_row_line_and_column(write, cell, what, column):
    place = PLAIN.splitlines()[0].split(",").index(column)
    fields = ["2e8", "4e9", "3.25"]
    fields[place] = cell
    path = write(f"params,tokens,loss\n1e8,2e9,3.5\n\n{','.join(fields)}\n4e8,8e9,3.0\n")
    refused(path, rf"^{re.escape(str(path))}: row 2 \(line 4\), column '{column}': {re.escape(what)}; .*mend the value")


def test_several_bad_cells_are_counted_and_the_first_one_named(write):
    refused(write("params,tokens,loss\n1,1,1\n1,1,0\n1,1,-2\n"), r"row 2 \(line 3\), column 'loss': 0 is not above zero \(2 such rows\)")


@pytest.mark.parametrize("ratio", ["1.0001", "-0.1", "50", "1e9"])
def test_a_share_outside_0_to_1_is_refused(write, ratio):
    path = write(f"params,tokens,ratio,loss\n1e8,2e9,0,3.5\n1e8,2e9,1,3.5\n1e8,2e9,{ratio},3.5\n")
    refused(path, rf"row 3 \(line 4\), column 'ratio': {re.escape(ratio)} does not lie between 0 and 1", FORMS["dcpt"])


def test_shares_of_0_and_1_are_good(write):
    table = load(write("params,tokens,ratio,loss\n1e8,2e9,0,3.5\n1e8,2e9,1,3.4\n"), FORMS["dcpt"])
    assert table.inputs["r"].tolist() == [0.0, 1.0]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (None, r"has no column 'tokens' for d \(training tokens\): it has params, loss; say which one with --columns d=NAME"),
        ({"d": "T"}, "has no column 'T' for d"),
        ({"d": "params", "loss": "nll"}, r"has no column 'nll' for loss \(measured loss \(nats\)\)"),
        ({"d": "params", "group": "run"}, r"has no column 'run' for group \(the run that a row belongs to\)"),
    ],
)
def test_a_missing_column_is_named_with_those_there_are(write, columns, message):
    path = write("params,loss\n1e8,3.5\n")
    refused(path, rf"^{re.escape(str(path))} {message}", columns=columns)


def test_an_unknown_role_lists_the_known_ones(write):
    with pytest.raises(ConfigError, match="'N' is no role; roles are n, d, r, u, loss, group"):
        load(write(PLAIN), LAW, {"N": "params"})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty: it needs a header line and one row a measurement"),
        (b" \n\t\r\n  ", "is empty"),
        (b"params,tokens,loss\n", "has a header and no rows"),
        (b"params,tokens,loss\n\n \n,,\n", "has a header and no rows"),
        (bytes(range(128, 256)) * 8, r"not a text file in UTF-8 \(byte 0\)"),
        (np.random.default_rng(0).bytes(4096), "not a text file"),
        (bytes(512), r"not a text file \(a zero byte at 0\)"),
        (PLAIN.encode() + b"\0\0", "a zero byte at"),
        (b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", r"not a text file in UTF-8 \(byte 0\)"),
        (PLAIN.encode("utf-16"), "not a text file in UTF-8"),
        (gzip.compress(PLAIN.encode()), "not a text file in UTF-8"),
        (b"params,tokens,loss\n1,2,3\n1,2\n", r"row 2 \(line 3\) has 2 fields, the header has 3: mend the line"),
        (b"params,tokens,loss\n1,2,3,4\n", r"row 1 \(line 2\) has 4 fields, the header has 3"),
        (b"params,tokens,loss\n1;2;3\n", r"row 1 \(line 2\) has 1 fields, the header has 3"),
        (b"# losses\nparams,tokens,loss\n1,2,3\n", r"row 1 \(line 2\) has 3 fields, the header has 1"),
        (b"params,loss,tokens,loss\n1,2,3,4\n", "the header has 'loss' twice: rename one"),
        (b"params,tokens,loss\n1,2," + b"3" * 200_000 + b"\n", "line 2: field larger than field limit"),
        (b'params,tokens,loss\n1,2,"3\n4,5,6\n', "column 'loss': '3\\\\n4,5,6' is not a number"),
    ],
    ids=lambda value: repr(value)[:24] if isinstance(value, bytes) else "",
)
def test_a_file_that_is_no_table_is_refused_by_name(write, content, message):
    path = write(content)
    refused(path, f"{re.escape(str(path))}.*{message}")


@pytest.mark.parametrize("content", ["\ufeff", "\ufeff\n\n", ",,,\n,,\n", '""\n""\n', "\u00a0\n", "\x1c\x1d"])
def test_a_file_without_a_single_character_to_read_is_empty(write, content):
    refused(write(content), "empty")


def test_a_path_that_cannot_be_read_says_why(tmp_path):
    refused(tmp_path / "none.csv", r"none\.csv: No such file or directory: give the path of a CSV file")
    refused(str(tmp_path), f"{re.escape(str(tmp_path))}: Is a directory")


SPELLINGS = {
    "plain": PLAIN,
    "byte order mark": "\ufeff" + PLAIN,
    "semicolons": PLAIN.replace(",", ";"),
    "tabs": PLAIN.replace(",", "\t"),
    "blank lines": "\n\n" + PLAIN.replace("\n", "\n\n \n"),
    "carriage returns": PLAIN.replace("\n", "\r\n"),
    "no last newline": PLAIN.rstrip(),
    "quotes": re.sub(r"([^,\n]+)", r'"\1"', PLAIN),
    "quotes within": PLAIN.replace("loss", 'loss,"a ""note"", of sorts"')
    .replace("3.5", '3.5,"x, y"')
    .replace(".25", ".25,")
    .replace("3.0", "3.0,-"),
    "spaces before quotes": re.sub(r"([^,\n]+)", r' "\1"', PLAIN),
    "spaces": PLAIN.replace(",", "  ,  ").replace("\n", "  \n"),
    "digits": PLAIN.replace("e8", "00000000").replace("e9", "000000000"),
    "capital exponents": PLAIN.replace("e8", ".0E+08").replace("e9", ".0E+09"),
    "other columns": "seed,loss,tokens,params\n0,3.5,2e9,1e8\nx,3.25,4e9,2e8\n,3.0,8e9,4e8\n",
    "names of the roles": PLAIN.replace("params", "n").replace("tokens", "d"),
}


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_every_common_spelling_of_a_table_reads_the_same(write, spelling):
    table = load(write(SPELLINGS[spelling]), LAW)
    assert table.inputs["n"].tolist() == [1e8, 2e8, 4e8] and table.inputs["d"].tolist() == [2e9, 4e9, 8e9]
    assert table.loss.tolist() == [3.5, 3.25, 3.0]
    assert table.groups.tolist() == [0, 1, 2] and not table.held.any()


def test_numbers_are_read_to_the_last_bit(write):
    losses = 3 + np.random.default_rng(1).random(200)
    table = load(write("n,d,loss\n" + "".join(f"1,2,{float(value)!r}\n" for value in losses)), LAW)
    assert (table.loss == losses).all()


def test_usual_names_win_over_role_names_and_chosen_columns_over_both():
    frame = pd.DataFrame({"params": [1.0, 2], "n": [3.0, 4], "size": [5.0, 6], "d": [1, 1], "loss": [1.0, 1]})
    assert load(frame, LAW).columns == {"n": "params", "d": "d", "loss": "loss"}
    assert load(frame, LAW, {"n": "size"}).inputs["n"].tolist() == [5.0, 6.0]
    assert load(frame, LAW, {"n": "n"}).inputs["n"].tolist() == [3.0, 4.0]


def test_only_what_the_law_needs_is_read(write):
    path = write("params,tokens,loss,ratio,unique_tokens\n1e8,2e9,3.5,7,-1\n1e8,2e9,3.4,x,\n")
    assert sorted(load(path, LAW).inputs) == ["d", "n"]
    refused(path, r"row 1 \(line 2\), column 'ratio'", FORMS["dcpt"])
    refused(path, r"column 'unique_tokens': -1 is not above zero .*; unique training tokens is needed", FORMS["data-constrained"])


def test_rows_of_a_frame_are_called_by_their_index():
    frame = measured("chinchilla", TRUTH["chinchilla"], points=4).set_index(pd.Index(["a", "b", "c", "d"]))
    frame.loc["c", "loss"] = -1.0
    refused(frame, r"^the table: row c, column 'loss': -1.0 is not above zero")
    pairs = frame.set_index(pd.MultiIndex.from_product([[1, 2], ["x", "y"]]))
    refused(pairs, r"row \(2, 'x'\), column 'loss'")


@pytest.mark.parametrize("index", [[0] * 60, range(60, 0, -1), [f"run {i}" for i in range(60)], pd.date_range("2024", periods=60)])
def test_the_index_of_a_frame_does_not_matter(index):
    frame = measured("chinchilla", TRUTH["chinchilla"], points=60)
    expected = fit("chinchilla", frame, bootstrap=4, starts=4, holdout="n < 1e8")
    found = fit("chinchilla", frame.set_index(pd.Index(index)), bootstrap=4, starts=4, holdout="n < 1e8")
    assert found.values == expected.values and found.held_out == expected.held_out
    assert np.array_equal(found.replicates, expected.replicates)


def test_mappings_of_read_only_arrays_are_fitted_and_left_as_they_are():
    data = {name: values.to_numpy(copy=True) for name, values in measured("chinchilla", TRUTH["chinchilla"], points=60).items()}
    before = {name: values.copy() for name, values in data.items()}
    for values in data.values():
        values.setflags(write=False)
    assert fit("chinchilla", data, bootstrap=4, starts=4, holdout=0.2).points == 48
    assert all((data[name] == before[name]).all() for name in data)


@pytest.mark.parametrize("kind", ["Int64", "object", "category", "string"])
def test_kinds_of_columns_that_hold_numbers(kind):
    frame = measured("chinchilla", TRUTH["chinchilla"], points=30).round({"n": 0, "d": 0})
    whole = frame.astype({"n": "int64", "d": "int64"})
    found = load(whole.astype({"n": kind, "d": kind}), LAW)
    assert (found.inputs["n"] == frame["n"]).all() and (found.inputs["d"] == frame["d"]).all()


def test_a_missing_integer_is_no_value():
    frame = measured("chinchilla", TRUTH["chinchilla"], points=5).round()
    refused(frame.assign(n=frame["n"].astype("Int64").mask(frame.index == 3)), "row 3, column 'n': no value")
    refused(frame.assign(loss=None), r"row 0, column 'loss': no value \(5 such rows\)")


@pytest.mark.parametrize("data", [pd.DataFrame(), {}, pd.DataFrame({"params": [], "tokens": [], "loss": []})])
def test_a_table_without_rows(data):
    refused(data, "the table has no rows")


@pytest.mark.parametrize("kind", ["a column twice", "columns of unequal length", "single numbers"])
def test_tables_that_pandas_cannot_make_are_refused(kind):
    frame = measured("chinchilla", TRUTH["chinchilla"], points=8)
    tables = {
        "a column twice": pd.concat([frame, frame[["n"]]], axis=1),
        "columns of unequal length": {"n": [1e8, 1e9], "d": [1e9], "loss": [3.0, 2.0]},
        "single numbers": {"n": 1e8, "d": 1e9, "loss": 3.0},
    }
    refused(tables[kind], "the table")


def test_rows_of_one_group_are_held_out_together():
    frame = measured("chinchilla", TRUTH["chinchilla"], points=60).assign(run=np.repeat([f"r{i}" for i in range(12)], 5))
    table = load(frame, LAW, {"group": "run"}, holdout=0.25, seed=1)
    assert table.groups.tolist() == np.repeat(range(12), 5).tolist()
    assert table.held.reshape(12, 5).all(axis=1).sum() == 3 and table.held.sum() == 15
    assert load(frame, LAW, holdout=0.25).held.sum() == 15


@pytest.mark.parametrize(
    ("condition", "rows"),
    [
        ("size > 2e8", [2]),
        ("size>=2e8", [1, 2]),
        (" size  <  4e8 ", [0, 1]),
        ("tokens <= 2e9", [0]),
        ("n > 2e8", [2]),
        ("d == 4e9", [1]),
        ("loss != 3.5", [1, 2]),
        ("corpus == rpj", [1]),
        ("corpus != 'rpj'", [0, 2]),
        ("step > 10", [2]),
        (0.34, None),
        ("0.34", None),
        (0.01, None),
    ],
)
def test_hold_out_by_a_condition_or_a_share(write, condition, rows):
    path = write("size,tokens,loss,corpus,step\n1e8,2e9,3.5,c4,10\n2e8,4e9,3.25,rpj,\n4e8,8e9,3.0,c4,11\n")
    held = load(path, LAW, {"n": "size"}, holdout=condition).held
    assert held.sum() == 1 if rows is None else np.flatnonzero(held).tolist() == rows


@pytest.mark.parametrize(
    ("holdout", "message"),
    [
        ("params > 1e12", "holds no row of .*: nothing is left to predict"),
        ("params > 1", "holds every row of .*: nothing is left to fit"),
        (0.99, "holds every row"),
        (0.0, "holdout 0.0: give a share between 0 and 1"),
        ("1", "holdout 1: give a share between 0 and 1"),
        ("-0.5", "holdout -0.5: give a share"),
        ("nan", "holdout nan: give a share"),
        ("size > 1", r"holdout 'size > 1': write a share such as 0.2, or COLUMN > NUMBER with a column of .*: params, tokens, loss"),
        ("params = 3", "write a share such as 0.2"),
        ("params >", "write a share"),
        ("> 3", "write a share"),
        ("", "write a share"),
        ("large runs", "write a share"),
        ("params > 1B", "'1B' is not a number; text can be compared with == and != only"),
    ],
)
def test_a_hold_out_that_cannot_be_is_refused(write, holdout, message):
    with pytest.raises(ConfigError, match=message):
        load(write(PLAIN), LAW, holdout=holdout)


@pytest.mark.parametrize(
    ("column", "needing", "frozen"),
    [("n", "alpha", {"A": 0.0, "alpha": 0.3}), ("d", "beta", {"B": 0.0, "beta": 0.3})],
    ids=["size", "tokens"],
)
def test_an_input_with_one_value_needs_its_exponent_frozen(column, needing, frozen):
    frame = measured("chinchilla", TRUTH["chinchilla"], points=60)
    other = {"n": "B", "d": "A"}[column]
    truth = TRUTH["chinchilla"] | {name: 0.0 for name in frozen if name in "AB"}
    frame = frame.assign(**{column: 1e9}, loss=FORMS["chinchilla"].loss(truth, n=frame["n"], d=frame["d"]))
    with pytest.raises(DataError, match=rf"column '{column}' has only one value, 1e\+09, .*{needing}.*--freeze {needing}=VALUE"):
        fit("chinchilla", frame, bootstrap=0)
    found = fit("chinchilla", frame, freeze=frozen, bootstrap=0, starts=8)
    assert found.values[other] == pytest.approx(truth[other], rel=1e-5) and found.values["E"] == pytest.approx(1.69, rel=1e-6)


def test_one_value_among_the_rows_to_fit_is_noticed_after_the_hold_out():
    frame = measured("chinchilla", TRUTH["chinchilla"], points=60)
    frame["n"] = np.where(frame.index < 50, 1e9, 1e10)
    with pytest.raises(DataError, match="column 'n' has only one value, 1e\\+09, in the rows to fit"):
        fit("chinchilla", frame, holdout="n > 5e9", bootstrap=0)
    with pytest.raises(DataError, match="column 'r' has only one value, 0.5, .*eta.*gamma"):
        fit("dcpt", measured("dcpt", TRUTH["dcpt"], points=60).assign(r=0.5), bootstrap=0)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("", {}),
        ("n=params", {"n": "params"}),
        (" n = N params , loss=val=1,", {"n": "N params", "loss": "val=1"}),
        ("group=run", {"group": "run"}),
    ],
)
def test_columns_of_the_command_line(text, found):
    assert parse_columns(text) == found


@pytest.mark.parametrize("text", ["params", "n=", "=params", "N=params", "n=a,n=b", "n:params", "n=a;d=b,x"])
def test_malformed_columns_list_the_roles(text):
    with pytest.raises(ConfigError, match="write ROLE=COLUMN, each role once; roles are n, d, r, u, loss, group"):
        parse_columns(text)


def test_read_csv_gives_strings_and_what_to_call_the_rows(write):
    frame, rows = read_csv(write("a; b\n\n 1;x y\n2;\n"))
    assert frame.to_dict("list") == {"a": ["1", "2"], "b": ["x y", ""]} and rows == ["row 1 (line 3)", "row 2 (line 4)"]
