"""The console command: checks before it runs anything, tables and JSON, exit codes."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

import cptlab
from cptlab import cli, notebooks
from cptlab.errors import ConfigError, CorpusError
from cptlab.notebooks import Outcome

GRID = """
from types import SimpleNamespace
import pandas as pd
cost = {"tokens": 1_000_000, "flops": 2.0e9, "minutes": 0.5}
rows = [{"id": f"{seed:016x}", "status": status, "arm": "scratch", "seed": seed} | cost for seed in seeds]
grid = SimpleNamespace(plan=lambda: pd.DataFrame(rows), store="store", requests=[1, 2], execution=SimpleNamespace(workers=2))
"""


def fake_module(monkeypatch: pytest.MonkeyPatch, name: str, **content) -> None:
    """Stand-in for the submodule ``cptlab.<name>``."""
    module = SimpleNamespace(**content)
    monkeypatch.setitem(sys.modules, f"cptlab.{name}", module)
    if "." not in name:
        monkeypatch.setattr(cptlab, name, module, raising=False)


def load_profile(name: str) -> dict:
    if name not in ("laptop", "smoke") and not Path(name).is_file():
        raise ConfigError(f"profile {name!r} is unknown: use one of laptop, smoke")
    return {}


@pytest.fixture
def books(lab, write_notebook, monkeypatch) -> Path:
    fake_module(monkeypatch, "study", load_profile=load_profile)
    for name, status in (("00_first", "cached"), ("02_second", "missing")):
        cells = [("parameters", f'profile = "laptop"\nseeds = [0, 1]\nstatus = "{status}"'), ("grid", GRID)]
        write_notebook(lab / "notebooks" / f"{name}.ipynb", *cells)
    return lab


@pytest.fixture
def executed(monkeypatch) -> SimpleNamespace:
    """Records what ``figures`` would execute."""
    seen = SimpleNamespace(error=None, failing=False)

    def execute_all(cached, training, workers, report, progress):
        seen.cached, seen.training, seen.workers = cached, training, workers
        for job in training:
            progress(job)
        outcomes = [Outcome(job.name, 1.25, job.output, seen.error) for job in (*cached, *training)]
        for outcome in outcomes:
            report(outcome)
        return outcomes

    monkeypatch.setattr(notebooks, "execute_all", execute_all)
    fake_module(monkeypatch, "sweep.scheduler", needed=lambda store, requests: requests)
    fake_module(monkeypatch, "sweep.cost", costs=lambda store, todo, execution: {})
    progress = {"seen": lambda store, todo, costs, workers, since: SimpleNamespace(store=store, todo=todo, workers=workers)}
    progress |= {"failure_lines": lambda sweep, told: ["run x failed"] if seen.failing else []}
    fake_module(
        monkeypatch, "sweep.progress", progress_text=lambda sweep, by: f"{sweep.store} {len(sweep.todo)}{by}{sweep.workers}", **progress
    )
    return seen


def test_help_is_quick_and_complete():
    done = subprocess.run([sys.executable, "-m", "cptlab.cli", "--help"], capture_output=True, text=True, env=_env())
    assert done.returncode == 0 and all(name in done.stdout for name in ("figures", "plan", "status", "corpora", "bench"))
    code = "import sys, cptlab.cli; print([m for m in ('numpy', 'pandas', 'yaml', 'torch', 'papermill') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=_env()).stdout.strip() == "[]"


def _env() -> dict[str, str]:
    library = str(Path(cptlab.__file__).parents[1])
    return os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, [library, os.environ.get("PYTHONPATH")]))}


@pytest.mark.parametrize("command", ["figures", "plan", "status", "corpora", "bench"])
def test_every_command_has_help(command, capsys):
    with pytest.raises(SystemExit, match="0"):
        cli.main(["--help"])
    whole = capsys.readouterr().out
    with pytest.raises(SystemExit, match="0"):
        cli.main([command, "--help"])
    text = capsys.readouterr().out
    _, described, *_ = text.split("\n\n")  # after the usage
    assert described.endswith(".") and " ".join(described.split()) in " ".join(whole.split())
    assert ("--json" in text) == (command not in ("figures", "corpora"))  # corpora has actions of its own


def test_version(capsys):
    with pytest.raises(SystemExit, match="0"):
        cli.main(["--version"])
    assert capsys.readouterr().out == f"cptlab {cptlab.__version__}\n"


@pytest.mark.parametrize("command", ["figures", "plan"])
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["11"], "'11' is not a notebook: use one of 00_first, 02_second"),
        (["--profile", "huge"], "profile 'huge' is unknown: use one of laptop, smoke"),
        (["-p", "sed=1"], "no chosen notebook has the parameter sed. Valid parameters: 00_first: seeds, status"),
        (["-p", "seeds"], "key=value"),
    ],
)
def test_wrong_use_lists_what_is_valid(books, executed, capsys, command, words, message):
    assert cli.main([command, *words]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("cptlab: ") and message in err and "Traceback" not in err
    assert not hasattr(executed, "cached") and not (books / "runs").exists()


def test_figures_refuses_no_processes(books, executed, capsys):
    assert cli.main(["figures", "-j", "0"]) == 2
    assert "-j 0" in capsys.readouterr().err


def test_figures_of_the_committed_profile(books, executed, capsys):
    assert cli.main(["figures", "-j", "3"]) == 0
    [cached], [training] = executed.cached, executed.training
    assert (cached.name, training.name, executed.workers) == ("00_first", "02_second", 3)
    assert cached.parameters == {"profile": "laptop"}
    assert cached.output == books / "runs" / "notebooks" / "laptop" / "00_first.ipynb"
    executed_copies = str(books / "runs" / "notebooks" / "laptop")
    # figures/ and runs/ are the repository's own
    assert cached.env == {"CPTLAB_PROGRESS": "0", "CPTLAB_WORKERS": "3", "CPTLAB_EXECUTED": executed_copies}
    out, err = capsys.readouterr()
    assert out == ""
    said = ["02_second: 2 runs to do, about 0.0 min here", "02_second: store 2; 2"]
    assert err.splitlines() == [*said, "00_first  1.2 s  ok", "02_second  1.2 s  ok"]


@pytest.mark.parametrize("words", [["--profile", "smoke"], ["--fresh"], ["-p", "seeds=[3]"]])
def test_other_figures_do_not_touch_the_committed_ones(books, executed, words):
    assert cli.main(["figures", "00", *words]) == 0
    [job] = executed.cached
    profile = "smoke" if "smoke" in words else "laptop"
    folder = books / "runs" / "notebooks" / profile / ("seeds=3" if "-p" in words else "")
    assert job.env["CPTLAB_EXECUTED"] == str(folder) and job.output == folder / "00_first.ipynb"
    assert "CPTLAB_FIGURES" not in job.env  # the library decides: tests/test_outputs.py
    assert job.parameters == {"profile": profile} | ({"seeds": [3]} if "-p" in words else {})
    if "--fresh" in words:
        store = Path(job.env["CPTLAB_RUNS"])
        assert store.parent == books / "runs" / "fresh" and store.name.endswith("Z-laptop") and not any(store.iterdir())
    else:
        assert "CPTLAB_RUNS" not in job.env


def test_profile_and_workers_of_the_user(books, executed, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    Path("mine.yaml").write_text("description: mine")
    assert cli.main(["figures", "00", "--profile", "mine.yaml"]) == 0
    [job] = executed.cached
    assert job.parameters == {"profile": str(tmp_path / "mine.yaml")}
    assert job.output.parent.parent == books / "runs" / "notebooks" and job.output.parent.name.startswith(
        "mine-"
    )  # another mine.yaml is another
    assert "CPTLAB_WORKERS" not in job.env and executed.workers == cli._cores()  # without -j the profile says how many


def test_places_of_the_user_are_made_absolute(books, executed, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CPTLAB_RUNS", "mine")
    monkeypatch.setenv("CPTLAB_FIGURES", "plots")
    assert cli.main(["figures", "00", "--profile", "smoke"]) == 0
    assert executed.cached[0].env["CPTLAB_RUNS"] == str(tmp_path / "mine")
    assert executed.cached[0].env["CPTLAB_FIGURES"] == str(tmp_path / "plots")


def test_failed_runs_are_said_while_a_notebook_trains(books, executed, capsys):
    executed.failing = True
    cli.main(["figures", "02"])
    assert capsys.readouterr().err.splitlines()[1:3] == ["02_second: run x failed", "02_second: store 2; 2"]


def test_failing_notebook_is_reported_and_ends_in_1(books, executed, capsys):
    executed.error = "cell In [3]:\nValueError: 8"
    assert cli.main(["figures", "00"]) == 1
    copy = books / "runs" / "notebooks" / "laptop" / "00_first.ipynb"
    assert capsys.readouterr().err == f"00_first  1.2 s  failed\n  cell In [3]:\n  ValueError: 8\n  executed copy: {copy}\n"


def test_notebook_that_cannot_be_planned_is_executed_alone(books, executed, write_notebook):
    write_notebook(books / "notebooks" / "05_bad.ipynb", ("parameters", 'profile = "laptop"'), ("grid", "1 / 0"))
    assert cli.main(["figures"]) == 0
    assert [job.name for job in executed.training] == ["02_second", "05_bad"]


def test_plan_table_and_json(books, capsys):
    assert cli.main(["plan", "--json", "-p", "seeds=[1, 2, 3]"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [(run["notebook"], run["seed"], run["status"]) for run in found["runs"][:1]] == [("00_first", 1, "cached")]
    assert len(found["runs"]) == 6  # the notebooks share their runs, which count once
    nothing = {"tokens": 0.0, "flops": 0.0, "minutes": 0.0}
    assert found["totals"] == {"runs": 3, "status": {"cached": 3}, "workers": 2} | nothing
    whole = {"notebook": "00_first", "runs": 3, "stored": 3, "to do": 0, "tokens": 0.0, "minutes": 0.0}
    assert found["notebooks"] == [whole, whole | {"notebook": "02_second", "stored": 0}]
    assert cli.main(["plan", "--runs", "02"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["notebook", "id", "status", "arm", "seed", "tokens", "flops", "minutes"]
    assert lines[-2:] == ["2 runs, 2 missing", "to do: 2M tokens, 4.00e+09 FLOPs, 0.5 minutes with 2 workers"]


def test_plan_has_a_line_a_notebook(books, write_notebook, capsys):
    # Its sweep takes more than its runs' share of the workers: start-up and the corpus, which the table of its grid tells.
    whole = GRID.replace("plan=lambda: pd.DataFrame(rows)", "plan=plan") + "\nseed = 9\n"
    whole = whole.replace(
        "grid =", "def plan():\n    table = pd.DataFrame(rows)\n    table.attrs['minutes'] = 4.0\n    return table\ngrid ="
    )
    parameters = 'profile = "laptop"\nseeds = [1, 2]\nstatus = "missing"'
    write_notebook(books / "notebooks" / "03_third.ipynb", ("parameters", parameters), ("grid", whole))
    assert cli.main(["plan", "-p", "status=missing"]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines[:4] == [
        ["notebook", "runs", "stored", "to", "do", "tokens", "minutes"],
        ["00_first", "2", "0", "2", "2M", "0.5"],
        ["02_second", "2", "0", "0", "0", "0.0"],  # the same runs, which the first one trains
        ["03_third", "2", "0", "1", "1M", "2.0"],  # one of its two is new
    ]
    assert " ".join(lines[-1]) == "to do: 3M tokens, 6.00e+09 FLOPs, 2.5 minutes with 2 workers"


def test_plan_of_a_notebook_without_runs(books, write_notebook, capsys):
    write_notebook(books / "notebooks" / "11_numbers.ipynb", ("parameters", 'profile = "laptop"'))
    assert cli.main(["plan", "11"]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines[1:] == [["11_numbers", "0", "0", "0", "0", "0.0"], ["0", "runs"], ["to", "do:", "nothing"]]


def record(run_id: str, status: str, error: dict | None = None) -> dict:
    identity = {"recipe_version": 2, "corpus_fingerprint": "f", "upstreams": {}}
    content = {"labels": {"arm": "scratch", "seed": 0}, "spec": {}, "identity": identity, "status": status, "error": error}
    return {"format": 1, "id": run_id} | content | {"summary": {}, "checkpoints": {}, "provenance": {}}


def test_status(lab, capsys):
    from cptlab.runs.store import Store

    assert cli.main(["status"]) == 0
    assert capsys.readouterr().out == f"{lab / 'runs' / 'local'} over {lab / 'runs'}: 0 runs\n"
    store = Store()
    store.write_record("a" * 16, record("a" * 16, "done"))
    store.write_record("b" * 16, record("b" * 16, "failed", {"type": "TrainingError", "message": "loss is nan", "step": 7}))
    store.write_progress("c" * 16, {"step": 3, "steps": 9, "tokens_per_s": 1234.5})
    store.state_dir("c" * 16).mkdir()
    (store.state_dir("c" * 16) / "state.safetensors").write_bytes(b"")
    (store.path("d" * 16)).mkdir()
    (store.path("d" * 16) / "run.json").write_text("{")
    assert cli.main(["status", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["counts"] == {"done": 1, "failed": 1, "partial": 1, "unreadable": 1}
    details = {run["status"]: run["detail"] for run in found["runs"]}
    assert details["failed"] == "TrainingError at step 7: loss is nan" and details["partial"] == "step 3/9, 1,234 tokens/s"
    assert "not valid JSON" in details["unreadable"]
    assert cli.main(["status"]) == 0
    text = capsys.readouterr().out
    assert text.startswith(f"{lab / 'runs' / 'local'} over {lab / 'runs'}: 4 runs, 1 done, 1 failed")
    assert "a" * 16 not in text and "loss is nan" in text
    assert cli.main(["status", "--local"]) == 0
    assert "a" * 16 in capsys.readouterr().out


def test_promote(lab, capsys):
    from cptlab.runs.store import Store

    store = Store()
    (store.root / "laws").mkdir(parents=True)
    made = {"record": "laws/chinchilla-1", "provenance": {"commit": "c", "versions": {"python": "3"}, "machine": {"cores": 2}}}
    (store.root / "laws" / "chinchilla-1.json").write_text(json.dumps(made))
    assert cli.main(["runs", "promote", "laws/chinchilla-1"]) == 0
    assert capsys.readouterr().out == "laws/chinchilla-1: record\n"
    assert json.loads((lab / "runs" / "laws" / "chinchilla-1.json").read_text()) == made
    assert store.find("laws/chinchilla-1.json") == lab / "runs" / "laws" / "chinchilla-1.json"
    assert cli.main(["runs", "promote", "e" * 16]) == 2
    assert "holds no finished run" in capsys.readouterr().err


def test_corpora(monkeypatch, capsys):
    asked = []
    row = {"source": "en", "split": "train", "documents": 9, "bytes": 40_000, "tokens": 10_000, "bytes_per_token": 4.0}
    taken = {"step": "near", "source": "en", "split": "train", "rule": "near", "documents": 2, "edited": 0, "bytes": 9_000, "tokens": 2_000}
    note = {"file": "/web.jsonl", "number": 7, "reason": "not-json", "detail": "not valid JSON"}
    cleaning = {"taken": [taken], "steps": [{"step": "near"}, {"step": "rules"}], "read": [row], "left": [row | {"documents": 7}]}
    cleaning["quarantine"] = {"en": {"records": 50, "bad": 3, "reasons": {"not-json": 3}, "first": [note]}}
    entry = {"name": "two", "fingerprint": "f" * 64, "path": "/two", "rows": [row], "cleaning": cleaning}
    fake_module(
        monkeypatch,
        "corpora",
        recipe_names=lambda: ["one", "two"],
        embedded_names=lambda: ["one", "two"],
        built=lambda: ["f" * 64],
        fetch_all=lambda names: asked.append(names) or [{"name": "text", "version": "1", "bytes": 5_000_000, "path": "/text"}],
        build_corpus=lambda name, say: entry | {"name": name, "built": True, "seconds": 2.0},
        report=lambda name: entry,
    )
    assert cli.main(["corpora", "fetch"]) == 0 and cli.main(["corpora", "fetch", "text"]) == 0
    assert asked == [None, ["text"]] and "5M" in capsys.readouterr().out
    assert cli.main(["corpora", "build"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split() for line in lines] == [
        ["name", "fingerprint", "path", "built", "seconds"],
        ["one", "f" * 16, "/two", "True", "2.0"],
        ["two", "f" * 16, "/two", "True", "2.0"],
    ]
    assert cli.main(["corpora", "report", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == [entry]
    assert cli.main(["corpora", "report", "two"]) == 0
    assert capsys.readouterr().out.splitlines()[1].split() == ["two", "f" * 16, "en", "train", "9", "40k", "10k", "4.00"]
    assert cli.main(["corpora", "report", "two", "--steps"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split() == ["two", "near", "en", "train", "near", "2", "0", "9k", "2k"]
    assert lines[2].split()[:3] == ["two", "rules", "nothing"]
    assert "/web.jsonl:7 not-json" in lines[4] and lines[5] == "two: en train: 9 documents read, 7 left"


def test_report_before_any_build_says_what_to_run(monkeypatch, capsys):
    fake_module(monkeypatch, "corpora", recipe_names=lambda: ["one", "two"], built=list)
    assert cli.main(["corpora", "report"]) == 2
    assert "cptlab corpora build NAME` with one of one, two" in capsys.readouterr().err


def test_bench(monkeypatch, capsys):
    fake_module(monkeypatch, "bench", train=lambda: {"speedup": 2.71828, "utilisation": 0.5}, serve=lambda: {"milliseconds": 12.0})
    assert cli.main(["bench", "train", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"speedup": 2.71828, "utilisation": 0.5}
    assert cli.main(["bench", "serve"]) == 0
    assert capsys.readouterr().out.split() == ["milliseconds", "12"]


def test_errors_that_a_user_can_mend_have_no_traceback(monkeypatch, capsys):
    def fetch_all(names):
        raise CorpusError("no network: put the file there")

    fake_module(monkeypatch, "corpora", fetch_all=fetch_all)
    assert cli.main(["corpora", "fetch"]) == 2
    assert capsys.readouterr().err == "cptlab: no network: put the file there\n"


def test_interrupt(monkeypatch, capsys):
    def train():
        raise KeyboardInterrupt

    fake_module(monkeypatch, "bench", train=train)
    assert cli.main(["bench", "train"]) == 130
    assert capsys.readouterr().err == "cptlab: interrupted\n"
