"""``cptlab fit``: what it prints, its JSON, and one line for every mistake."""

import io
import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from test_laws_forms import TRUTH, measured

import cptlab
from cptlab import cli, cli_laws
from cptlab.cli_laws import EQUATIONS, parse_freeze
from cptlab.errors import ConfigError, DataError
from cptlab.laws import FORMS, fit

LIBRARY = str(Path(cptlab.__file__).parents[1])
QUICK = ["--bootstrap", "0", "--starts", "4"]
NAMES = {"n": "params", "d": "tokens", "r": "ratio", "u": "unique_tokens"}


@pytest.fixture(scope="module")
def tables(tmp_path_factory) -> Path:
    """A folder with ``<form>.csv`` for every form, under the default column names."""
    folder = tmp_path_factory.mktemp("tables")
    for name, truth in TRUTH.items():
        measured(name, truth, points=120).rename(columns=NAMES).to_csv(folder / f"{name}.csv", index=False)
    return folder


@pytest.fixture
def run(capsys):
    """``run(*words)`` is exit code, standard output and standard error of ``cptlab fit``."""

    def run(*words) -> tuple[int, str, str]:
        code = cli.main(["fit", *map(str, words)])
        return code, *capsys.readouterr()

    return run


@pytest.fixture
def refused(run):
    """``refused(*words)`` is the one line of an error that the user can mend."""

    def refused(*words) -> str:
        code, out, err = run(*words)
        assert code == 2 and out == "" and err.startswith("cptlab: ") and err.count("\n") == 1 and "Traceback" not in err
        return err

    return refused


@pytest.mark.parametrize("name", FORMS)
def test_every_form_is_fitted_from_default_columns(run, tables, name):
    code, out, err = run(name, tables / f"{name}.csv", "--json", *QUICK)
    record = json.loads(out, parse_constant=lambda constant: pytest.fail(f"{constant} in the JSON"))
    assert (code, err) == (0, "")
    assert {"form", "parameters", "objective", "status", "agreement", "condition", "seconds", "warnings"} <= set(record)
    assert (record["form"], record["points"], record["starts"], record["bootstrap"]) == (name, 120, 4, 0)
    assert list(record["parameters"]) == list(TRUTH[name])
    assert all({"value", "low", "high"} <= set(row) for row in record["parameters"].values())
    assert record["parameters"]["alpha"]["value"] == pytest.approx(TRUTH[name]["alpha"], rel=0.15)


def test_the_command_is_the_function(run, tables):
    path = tables / "continual.csv"
    words = ["--freeze", "E=1.55, alpha=0.4", "--freeze", "A=420", "--huber-delta", "0.01", "--holdout", "params > 5e9", "--seed", "3"]
    _, out, _ = run("continual", path, "--json", "--bootstrap", "8", "--starts", "6", *words)
    options = {"freeze": {"E": 1.55, "alpha": 0.4, "A": 420}, "huber_delta": 0.01, "holdout": "params > 5e9", "seed": 3}
    expected = fit("continual", path, bootstrap=8, starts=6, **options).to_json()
    assert json.loads(out) | {"seconds": 0} == json.loads(json.dumps(expected)) | {"seconds": 0}
    assert expected["held_out"]["points"] > 5 and expected["parameters"]["E"] == {"value": 1.55, "low": 1.55, "high": 1.55, "frozen": True}


def test_columns_of_other_names_and_groups(run, tmp_path):
    frame = measured("chinchilla", TRUTH["chinchilla"], points=60).rename(columns={"n": "N params", "d": "D", "loss": "nll"})
    path = tmp_path / "mine.csv"
    frame.assign(run=np.repeat(range(12), 5)).to_csv(path, index=False)
    code, out, _ = run("chinchilla", path, "--columns", "n=N params, d=D,loss=nll,group=run", "--holdout", "0.25", "--json", *QUICK)
    assert code == 0 and json.loads(out)["points"] == 45


def test_text_shows_values_intervals_and_the_certificate(run, tables):
    code, out, err = run("chinchilla", tables / "chinchilla.csv", "--bootstrap", "20", "--starts", "8", "--holdout", "0.1")
    lines = out.splitlines()
    assert (code, err) == (0, "")
    assert lines[0] == "chinchilla: L = E + A/n^alpha + B/d^beta" and lines[1] == "108 points, Huber delta 0.001, seed 0"
    assert [line.split()[0] for line in lines[2:7]] == ["E", "A", "B", "alpha", "beta"]
    assert lines[5].split()[1].startswith("0.3") and "[" in lines[5] and "NOT DETERMINED" not in out
    assert "(converged), reached by" in lines[7] and "of 8 starts" in lines[7] and lines[8].startswith("condition ")
    assert lines[9].startswith("held out: 12 points, rms error of log loss 0.00")


class Terminal(io.StringIO):
    """Standard error, or output, on a terminal."""

    def isatty(self):
        return True


@pytest.fixture
def watch(monkeypatch):
    """``watch("stderr")`` puts it on a terminal; the clock moves 2 s at every look."""
    monkeypatch.delenv("CPTLAB_PROGRESS", raising=False)
    monkeypatch.delitem(sys.modules, "ipykernel", raising=False)
    monkeypatch.setattr(cli_laws.time, "monotonic", itertools.count(100.0, 2.0).__next__)
    monkeypatch.setattr(sys.modules["cptlab.laws.fit"], "_cores", lambda: 1)  # on which the parts depend that are told

    def watch(name: str, stream: io.StringIO) -> io.StringIO:
        monkeypatch.setattr(sys, name, stream)
        return stream

    return watch


@pytest.fixture
def bootstrapped(tables):
    """``bootstrapped(count, ...)`` is the exit code of a fit with so many refits."""
    words = ["fit", "chinchilla", str(tables / "chinchilla.csv"), "--starts", "4", "--bootstrap"]
    return lambda count, *more: cli.main([*words, str(count), *more])


def test_a_terminal_shows_how_far_the_bootstrap_is(watch, bootstrapped):
    said = watch("stderr", Terminal())
    assert bootstrapped(120) == 0
    assert said.getvalue().split("\r") == [
        "",
        "bootstrap: 0 of 120 refits",
        "bootstrap: 30 of 120 refits, 6 s left",  # a quarter in 2 s
        "bootstrap: 60 of 120 refits, 4 s left",
        "bootstrap: 90 of 120 refits, 2 s left",
        "bootstrap: 120 of 120 refits         \n",  # nothing of a longer line is left
    ]


@pytest.mark.parametrize(
    ("out", "error", "words", "shown"),
    [
        (io.StringIO, Terminal, ["--json"], False),
        (io.StringIO, Terminal, [], True),
        (Terminal, Terminal, ["--json"], True),
        (Terminal, io.StringIO, [], False),
    ],
)
def test_nothing_is_shown_to_a_file_or_beside_json_in_a_pipe(watch, bootstrapped, out, error, words, shown):
    printed, said = watch("stdout", out()), watch("stderr", error())
    assert bootstrapped(8, *words) == 0
    assert ("\rbootstrap: 8 of 8 refits" in said.getvalue()) == shown == bool(said.getvalue())
    assert "bootstrap:" not in printed.getvalue() and printed.getvalue().startswith("{" if words else "chinchilla")


def test_progress_can_be_switched_off(watch, bootstrapped, monkeypatch):
    said = watch("stderr", Terminal())
    monkeypatch.setenv("CPTLAB_PROGRESS", "0")
    assert bootstrapped(8) == 0 and said.getvalue() == ""


def test_an_error_stands_on_a_line_of_its_own(watch, bootstrapped, monkeypatch):
    def refits(*arguments):
        raise DataError("too few points")

    monkeypatch.setattr("cptlab.laws.bootstrap._refits", refits)
    said = watch("stderr", Terminal())
    assert bootstrapped(60) == 2
    assert said.getvalue() == "\rbootstrap: 0 of 60 refits\ncptlab: too few points\n"


@pytest.mark.skipif(not hasattr(os, "openpty"), reason="no pseudo-terminals")
def test_a_pseudo_terminal_sees_one_line(tables):
    ours, theirs = os.openpty()
    command = [
        sys.executable,
        "-m",
        "cptlab.cli",
        "fit",
        "chinchilla",
        str(tables / "chinchilla.csv"),
        "--starts",
        "4",
        "--bootstrap",
        "60",
    ]
    env = {name: value for name, value in os.environ.items() if name != "CPTLAB_PROGRESS"}
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=theirs, text=True, env=env | {"PYTHONPATH": LIBRARY})
    os.close(theirs)
    said = os.read(ours, 10_000).decode()
    os.close(ours)
    assert done.returncode == 0 and "bootstrap" not in done.stdout and done.stdout.startswith("chinchilla: L = E")
    assert said.startswith("\rbootstrap: 0 of 60 refits") and said.endswith("\n") and said.count("\n") == 1 and "60 of 60" in said


def test_text_names_what_the_data_do_not_determine(run, tmp_path):
    n = np.geomspace(1e8, 1e10, 40)
    loss = FORMS["continual"].loss(TRUTH["continual"], n=n, d=20 * n) * np.exp(np.random.default_rng(0).normal(0, 0.003, 40))
    path = tmp_path / "ratio.csv"
    np.savetxt(path, np.stack([n, 20 * n, loss], axis=1), delimiter=",", header="params,tokens,loss", comments="")
    code, out, err = run("continual", path, *QUICK, "--freeze", "E=1.55")
    assert (code, err) == (0, "")
    marked = {line.split()[0] for line in out.splitlines() if line.endswith("NOT DETERMINED")}
    assert {"B", "beta", "gamma"} <= marked and "E" not in marked
    assert "warning: condition number" in out and "warning: not determined by these data:" in out


def test_the_same_command_prints_the_same(run, tables):
    words = ["kaplan", tables / "kaplan.csv", "--json", "--bootstrap", "6", "--starts", "4"]
    one, same, other = (json.loads(run(*words, "--seed", seed)[1]) | {"seconds": 0} for seed in (1, 1, 2))
    assert one == same and one["parameters"] != other["parameters"]


GOOD = "params,tokens,loss\n" + "".join(f"{n:g},{d:g},{2 + 400 / n**0.3:.6f}\n" for n in (1e8, 1e9, 1e10) for d in (1e9, 1e10, 1e11))


@pytest.mark.parametrize(
    ("content", "words", "parts"),
    [
        (GOOD.replace("tokens", "T"), [], ["no column 'tokens' for d", "params, T, loss", "--columns d=NAME"]),
        (GOOD.replace("1e+11", "0", 1), [], ["row 3 (line 4), column 'tokens': 0 is not above zero"]),
        (GOOD.replace("1e+11", "-1e11", 1), [], ["row 3 (line 4), column 'tokens': -1e11 is not above zero"]),
        (GOOD.replace("1e+11", "nan", 1), [], ["row 3 (line 4), column 'tokens': no value"]),
        (GOOD.replace("1e+11", "", 1), [], ["row 3 (line 4), column 'tokens': no value"]),
        (GOOD.replace("1e+11", "inf", 1), [], ["row 3 (line 4), column 'tokens': inf is infinite"]),
        (GOOD.replace("1e+11", "100B", 1), [], ["row 3 (line 4), column 'tokens': '100B' is not a number"]),
        (GOOD + "1e8,1e9,0\n", [], ["row 10 (line 11), column 'loss': 0 is not above zero"]),
        (GOOD + "1e8,1e9\n", [], ["row 10 (line 11) has 2 fields, the header has 3"]),
        (GOOD.replace("params", "loss", 1), [], ["the header has 'loss' twice"]),
        ("\n".join(GOOD.splitlines()[:6]), [], ["5 points to fit, the 5 free parameters of chinchilla need at least 6"]),
        (
            GOOD.replace("1e+08,", "1e+09,").replace("1e+10,1e", "1e+09,1e"),
            [],
            ["column 'params' has only one value, 1e+09", "alpha=VALUE"],
        ),
        (GOOD, ["--holdout", "tokens < 5e10"], ["3 points to fit"]),
        (GOOD, ["--holdout", "params > 5e8", "--freeze", "A=1,B=1"], ["3 points to fit"]),
        (GOOD, ["--freeze", "gamma=0.1"], ["form chinchilla has no parameter 'gamma': it has E, A, B, alpha, beta"]),
        (GOOD, ["--freeze", "E=1,A=1,B=1,alpha=1,beta=1"], ["every parameter of chinchilla is frozen"]),
        (GOOD, ["--freeze", "E"], ["freeze 'E': write NAME=VALUE"]),
        (GOOD, ["--freeze", "=1"], ["no parameter ''"]),
        (GOOD, ["--freeze", "E=low"], ["freeze 'E=low': 'low' is not a number"]),
        (GOOD, ["--freeze", "E=1", "--freeze", "E=2"], ["freeze 'E=2': write NAME=VALUE, each parameter once"]),
        (GOOD, ["--freeze", "E=-1"], ["parameter E = -1.0: it has to be zero or a positive number"]),
        (GOOD, ["--freeze", "alpha=nan"], ["parameter alpha = nan: it has to be a number"]),
        (GOOD, ["--columns", "params"], ["columns 'params': write ROLE=COLUMN", "n, d, r, u, loss, group"]),
        (GOOD, ["--columns", "N=params"], ["columns 'N=params'", "roles are n, d, r, u, loss, group"]),
        (GOOD, ["--columns", "n=size"], ["no column 'size' for n"]),
        (GOOD, ["--holdout", "0"], ["holdout 0: give a share between 0 and 1"]),
        (GOOD, ["--holdout", "size > 3"], ["holdout 'size > 3'", "params, tokens, loss"]),
        (GOOD, ["--holdout", "params > 1e12"], ["holds no row"]),
        (GOOD, ["--holdout", "params > 1e3"], ["holds every row"]),
        (GOOD, ["--holdout", "params > many"], ["'many' is not a number"]),
        (GOOD, ["--bootstrap", "-1"], ["bootstrap -1"]),
        (GOOD, ["--starts", "0"], ["starts 0"]),
        (GOOD, ["--seed", "-1"], ["seed -1"]),
        (GOOD, ["--huber-delta", "0"], ["huber_delta 0: give a positive number"]),
        (GOOD, ["--huber-delta", "-1"], ["huber_delta -1:"]),
        (GOOD, ["--huber-delta", "nan"], ["huber_delta nan"]),
        ("", [], ["is empty"]),
        (" \n \n", [], ["is empty"]),
        ("params,tokens,loss\n", [], ["has a header and no rows"]),
        (bytes(99), [], ["is not a text file"]),
        (np.random.default_rng(5).bytes(999), [], ["is not a text file"]),
        (b"\x89PNG\r\n\x1a\n", [], ["is not a text file in UTF-8"]),
    ],
)
def test_mistakes_are_one_line_that_says_where(refused, tmp_path, content, words, parts):
    path = tmp_path / "losses.csv"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    said = refused("chinchilla", path, *words)
    assert all(part in said for part in parts), said
    assert not {"row", "column"} & set(parts[0].split()) or str(path) in said


def test_a_ratio_in_percent_is_refused(refused, tables, tmp_path):
    text = (tables / "dcpt.csv").read_text().splitlines()
    path = tmp_path / "percent.csv"
    path.write_text("\n".join([*text[:4], "1e9,1e10,50,2.5", *text[4:]]))
    assert f"{path}: row 4 (line 5), column 'ratio': 50 does not lie between 0 and 1" in refused("dcpt", path)


@pytest.mark.parametrize(("name", "why"), [("none.csv", "No such file or directory"), (".", "Is a directory")])
def test_a_path_that_is_no_file(refused, tmp_path, name, why):
    said = refused("chinchilla", tmp_path / name)
    assert why in said and str(tmp_path) in said


def test_an_unknown_form_lists_the_known_ones(refused, tables):
    assert "form 'chinchila' is unknown: use one of " + ", ".join(EQUATIONS) in refused("chinchila", tables / "chinchilla.csv")


@pytest.mark.parametrize("words", [["--bootstrap", "many"], ["--starts", "1.5"], ["--huber-delta", "small"], ["--unknown"]])
def test_options_of_another_kind_end_in_2(tables, capsys, words):
    with pytest.raises(SystemExit, match="2"):
        cli.main(["fit", "chinchilla", str(tables / "chinchilla.csv"), *words])
    assert words[0] in capsys.readouterr().err


def test_a_seed_of_any_size_is_taken_or_refused(refused, tables):
    assert "seed" in refused("chinchilla", tables / "chinchilla.csv", *QUICK, "--seed", 2**40)


@pytest.mark.parametrize(
    ("texts", "found"),
    [([], {}), ([""], {}), (["E=1.55,A=4e2"], {"E": 1.55, "A": 400.0}), ([" E = 0 ,", "gamma=-0.1"], {"E": 0.0, "gamma": -0.1})],
)
def test_parameters_to_freeze(texts, found):
    assert parse_freeze(texts) == found


@pytest.mark.parametrize("text", ["E", "E=", "E==1", "E=1;A=2", "E=1 A=2", "E:1"])
def test_malformed_freezes(text):
    with pytest.raises(ConfigError, match="freeze"):
        parse_freeze([text])


@pytest.mark.parametrize("words", [["--help"], ["fit", "--help"]])
def test_help_imports_nothing_heavy(words):
    heavy = ("numpy", "scipy", "pandas", "optuna", "joblib", "torch")
    code = f"import sys\nfrom cptlab import cli\ntry:\n cli.main({words})\nfinally:\n print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=os.environ | {"PYTHONPATH": LIBRARY})
    assert done.returncode == 0 and done.stdout.splitlines()[-1] == "[]"
    assert "fit" in done.stdout


def test_help_shows_the_equations_and_the_defaults(capsys):
    with pytest.raises(SystemExit, match="0"):
        cli.main(["fit", "--help"])
    text = capsys.readouterr().out
    assert all(name in text and law in text for name, law in EQUATIONS.items())
    assert "default: 4000" in text and "default: 0.001" in text and "group=NAME" in text
