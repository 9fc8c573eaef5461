"""The console command ``cptlab``. Everything heavy is imported inside the command that needs it."""

import argparse
import json
import os
import signal
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cptlab import __version__, cli_corpora, cli_laws, paths
from cptlab.errors import ConfigError, CptlabError, StoreError

if TYPE_CHECKING:
    import pandas as pd

    from cptlab.notebooks import Outcome, Plan

COMMITTED_PROFILE = "laptop"  # the one whose figures are committed


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _print_json(value: Any) -> None:
    print(json.dumps(value, indent=1, ensure_ascii=False, default=str))


def _records(frame: "pd.DataFrame") -> list[dict]:
    """Rows as plain JSON values; what is not a number becomes null."""
    return json.loads(frame.to_json(orient="records", double_precision=15))


def _human(value: Any) -> str:
    """A count in three figures: 4.00M, 12.3k; empty when unknown."""
    if value is None or value != value:
        return ""
    for limit, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= limit:
            return f"{value / limit:.3g}{unit}"
    return f"{value:.3g}"


def _table(frame: "pd.DataFrame") -> str:
    formats = {"tokens": _human, "bytes": _human, "bytes_left": _human, "flops": lambda v: f"{v:.2e}", "minutes": lambda v: f"{v:.1f}"}
    formats |= {"seconds": lambda v: f"{v:.1f}", "bytes_per_token": lambda v: f"{v:.2f}"}
    return frame.to_string(index=False, na_rep="", formatters={k: v for k, v in formats.items() if k in frame})


def _choose(args: argparse.Namespace) -> tuple[list, dict[str, dict]]:
    """The chosen notebooks and the parameters of each, all checked before anything runs."""
    from cptlab import notebooks, study

    books = notebooks.find(args.notebooks)
    if Path(args.profile).suffix in (".yaml", ".yml"):  # a user's own; notebooks run in another folder
        args.profile = str(Path(args.profile).resolve())
    study.load_profile(args.profile)
    return books, notebooks.assign_parameters(books, args.profile, notebooks.parse_parameters(args.parameter))


def _executed_dir(profile: str) -> Path:
    """Where executed copies of notebooks go: ``notebooks/<profile>`` below :func:`cptlab.paths.outputs_dir`."""
    return paths.outputs_dir() / "notebooks" / Path(profile).stem


def _figures_env(args: argparse.Namespace) -> dict[str, str]:
    """Where this execution puts its runs and figures; paths are absolute, because notebooks run in their own folder."""
    places = ("CPTLAB_RUNS", "CPTLAB_LOCAL", "CPTLAB_CACHE", "CPTLAB_FIGURES")
    env = {name: str(Path(os.environ[name]).resolve()) for name in places if os.environ.get(name)}
    if args.fresh:
        store = paths.outputs_dir() / "fresh" / f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{Path(args.profile).stem}"
        store.mkdir(parents=True)
        env["CPTLAB_RUNS"] = str(store)
        _say(f"training every run anew in {store}")
    if args.profile != COMMITTED_PROFILE or args.fresh or args.parameter:
        env.setdefault("CPTLAB_FIGURES", str(_executed_dir(args.profile) / "figures"))
    workers = {"CPTLAB_WORKERS": str(args.jobs)} if args.jobs else {}  # else the profile's own number
    return env | {"CPTLAB_PROGRESS": "0"} | workers


def figures(args: argparse.Namespace) -> int:
    """Run notebooks through Papermill; 1 when one of them fails."""
    from cptlab import notebooks

    if args.jobs is not None and args.jobs < 1:
        raise ConfigError(f"-j {args.jobs}: give the number of processes, 1 or more")
    books, parameters = _choose(args)
    env = _figures_env(args)
    folder = _executed_dir(args.profile)
    cached, training, work, told, began = [], [], {}, set(), time.time()
    with notebooks.environment(env):
        for book in books:
            job = notebooks.Job(book.path, folder / book.path.name, parameters[book.name], env)
            try:
                found = notebooks.plan(book, job.parameters)
                if not found.cached:
                    from cptlab.sweep.cost import costs
                    from cptlab.sweep.scheduler import needed

                    grid = found.grid
                    todo = needed(grid.store, grid.requests)
                    work[job.name] = (grid.store, todo, costs(grid.store, todo, grid.execution), grid.execution.workers)
                (cached if found.cached else training).append(job)
            except Exception:  # it will fail again when executed, and then be reported beside its executed copy
                training.append(job)

    def report(outcome: "Outcome") -> None:
        _say(f"{outcome.name}  {outcome.seconds:.1f} s  {'failed' if outcome.error else 'ok'}")
        if outcome.error:
            _say(f"  {outcome.error}\nexecuted copy: {outcome.output}".replace("\n", "\n  "))

    def progress(job: "notebooks.Job") -> None:
        if job.name in work:
            from cptlab.sweep.progress import failure_lines, progress_text, seen

            sweep = seen(*work[job.name], since=began)
            for line in failure_lines(sweep, told):
                _say(f"{job.name}: {line}")
            _say(f"{job.name}: {progress_text(sweep, '; ')}")

    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # as an exception, so that the workers are ended too
    try:
        outcomes = notebooks.execute_all(cached, training, args.jobs or _cores(), report, progress)
    finally:
        signal.signal(signal.SIGTERM, before)
    return 1 if any(outcome.error for outcome in outcomes) else 0


def plan(args: argparse.Namespace) -> int:
    """Show what notebooks would train: a line each, or with ``--runs`` a line a run."""
    import pandas as pd

    from cptlab import notebooks

    books, parameters = _choose(args)
    plans = [notebooks.plan(book, parameters[book.name]) for book in books]
    frames = [found.runs.assign(notebook=book.name) for book, found in zip(books, plans, strict=True)]
    runs = pd.concat([frame for frame in frames if not frame.empty] or frames, ignore_index=True)
    first = [name for name in ("notebook", "id", "status") if name in runs]
    last = [name for name in ("tokens", "flops", "minutes") if name in runs]
    runs = runs[first + [name for name in runs if name not in first + last] + last]
    distinct = runs.drop_duplicates("id")  # notebooks share runs
    todo = distinct[~distinct["status"].isin(notebooks.SERVED)]
    rows = [_plan_row(book.name, found, todo) for book, found in zip(books, plans, strict=True)]
    workers = max([found.grid.execution.workers for found in plans if found.grid is not None], default=1)
    totals = {"runs": len(distinct), "status": distinct["status"].value_counts(sort=False).to_dict(), "workers": workers}
    totals |= {name: float(todo[name].sum()) if name in todo else 0.0 for name in ("tokens", "flops")}
    totals["minutes"] = round(sum(row["minutes"] for row in rows), 2)  # one notebook trains after another
    if args.json:
        _print_json({"profile": args.profile, "notebooks": rows, "runs": _records(runs), "totals": totals})
        return 0
    table = runs if args.runs else pd.DataFrame(rows)
    if not table.empty:
        print(_table(table))
    print(", ".join([f"{totals['runs']} runs", *(f"{count} {name}" for name, count in totals["status"].items())]))
    cost = f"{_human(totals['tokens'])} tokens, {totals['flops']:.2e} FLOPs, {totals['minutes']:.1f} minutes with {workers} workers"
    print(f"to do: {cost}" if len(todo) else "to do: nothing")
    return 0


def _plan_row(name: str, found: "Plan", todo: "pd.DataFrame") -> dict:
    """A notebook's line: what it has to do is what no notebook before it does (``todo``: all that is to be done, each run once)."""
    from cptlab.notebooks import SERVED

    runs = found.runs.drop_duplicates("id")
    own = todo[todo["notebook"] == name]
    lacking = runs[~runs["status"].isin(SERVED)]
    row = {"notebook": name, "runs": len(runs), "stored": len(runs) - len(lacking), "to do": len(own)}
    row["tokens"] = float(own["tokens"].sum()) if len(own) else 0.0
    alone = float(own["minutes"].sum()) if len(own) else 0.0  # of one worker
    whole = found.runs.attrs.get("minutes")  # of all that lacks, start-up included
    if not len(own):
        minutes = 0.0
    elif whole is None or not lacking["minutes"].sum():
        minutes = whole if whole is not None else alone / found.grid.execution.workers
    else:
        minutes = whole * alone / float(lacking["minutes"].sum())
    return row | {"minutes": round(minutes, 2)}


def status(args: argparse.Namespace) -> int:
    """Show the runs of a store."""
    import pandas as pd

    from cptlab.study import open_study

    store = open_study("", args.profile).store
    rows = []
    for run_id in store.all_ids():
        row = {"id": run_id, "status": "unreadable", "labels": "", "detail": ""}
        try:
            row["status"] = store.status(run_id)
            if row["status"] in ("done", "failed"):
                record = store.record(run_id)
                row["labels"] = " ".join(f"{k}={v}" for k, v in record["labels"].items())
                error = record.get("error")
                row["detail"] = f"{error['type']} at step {error['step']}: {error['message']}" if error else ""
            elif row["status"] in ("running", "partial"):
                note = store.progress(run_id)
                row["detail"] = "starting"
                if note and note["step"]:
                    row["detail"] = f"step {note['step']}/{note['steps']}, {note['tokens_per_s']:,.0f} tokens/s"
                elif note:
                    row["detail"] = note.get("phase", "starting")
        except StoreError as problem:
            row["detail"] = str(problem)
        rows.append(row)
    counts: dict[str, int] = {}
    for row in rows:
        counts[row["status"]] = counts.get(row["status"], 0) + 1
    if args.json:
        _print_json({"store": str(store.root), "committed": store.committed and str(store.committed), "counts": counts, "runs": rows})
        return 0
    where = " over ".join(map(str, reversed(store.layers)))
    print(f"{where}: {len(rows)} runs" + "".join(f", {count} {name}" for name, count in sorted(counts.items())))
    open_rows = [row for row in rows if row["status"] != "done" or (args.local and (store.path(row["id"]) / "run.json").exists())]
    if open_rows:
        with pd.option_context("display.max_colwidth", None):
            print(_table(pd.DataFrame(open_rows)))
    return 0


def promote(args: argparse.Namespace) -> int:
    """Move finished local records into the committed layer."""
    from cptlab.runs.promote import promote as move
    from cptlab.study import open_study

    store = open_study("", args.profile).store
    for name in args.names:
        for line in move(store, name, args.weights):
            print(line)
    return 0


def bench(args: argparse.Namespace) -> int:
    """Measure this machine."""
    from cptlab import bench as library

    if args.what == "corpora":
        from cptlab.corpora.bench import measure

        result = measure()
    elif args.what == "laws":
        from cptlab.laws.bench import measure

        result = measure()
    else:
        result = getattr(library, args.what)()
    if args.json or args.what in ("corpora", "laws", "compute"):  # their tables are several
        _print_json(result)
    else:
        for key, value in result.items():
            print(f"{key:24} {value:.4g}" if isinstance(value, float) else f"{key:24} {value}")
    return 0


def build_parser() -> argparse.ArgumentParser:
    """The whole command line."""
    parser = argparse.ArgumentParser(prog="cptlab", description="A literate laboratory for continual pre-training of language models.")
    parser.add_argument("--version", action="version", version=f"cptlab {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    def command(name: str, function: Any, text: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text)
        sub.set_defaults(function=function)
        return sub

    def notebook_options(sub: argparse.ArgumentParser) -> None:
        sub.add_argument("notebooks", nargs="*", metavar="NOTEBOOK", help="number (02), name or path; all of notebooks/ when left out")
        sub.add_argument(
            "--profile",
            default=COMMITTED_PROFILE,
            metavar="P",
            help="smoke, laptop, gpu or paper (default: %(default)s)",
        )
        sub.add_argument(
            "-p", dest="parameter", action="append", default=[], metavar="KEY=VALUE", help="override a notebook parameter (value in YAML)"
        )

    json_help = "print JSON instead of a table"
    sub = command("figures", figures, "Run notebooks headlessly: serve the stored runs, train the missing ones, write the figures.")
    notebook_options(sub)
    sub.add_argument("--fresh", action="store_true", help="train every run anew, in a new folder below runs/fresh/")
    sub.add_argument(
        "-j", "--jobs", type=int, metavar="N", help="notebooks at once, or runs trained at once (default: cores, the profile's)"
    )
    sub = command("plan", plan, "Show what notebooks would train: runs stored and to do, tokens, and the minutes that takes here.")
    notebook_options(sub)
    sub.add_argument("--runs", action="store_true", help="a line a run instead of a line a notebook")
    sub.add_argument("--json", action="store_true", help=json_help)
    sub = command("status", status, "Show the runs of the store by status: running ones with their progress, failed ones with their error.")
    sub.add_argument("--profile", default=COMMITTED_PROFILE, metavar="P", help="whose store (default: %(default)s)")
    sub.add_argument("--local", action="store_true", help="list the runs of the local layer, finished ones too")
    sub.add_argument("--json", action="store_true", help=json_help)
    text = "Work on the run store."
    actions = commands.add_parser("runs", help=text, description=text).add_subparsers(metavar="ACTION", required=True)
    text = "Move finished local runs into the committed layer, after checking hashes, provenance, and that nothing committed would change."
    sub = actions.add_parser("promote", help=text, description=text)
    sub.set_defaults(function=promote)
    sub.add_argument("names", nargs="+", metavar="ID", help="a run's id (`cptlab status --local`), or another record, such as laws/NAME")
    sub.add_argument("--weights", action="store_true", help="also commit the weights of the last step, for arms to start from")
    sub.add_argument("--profile", default=COMMITTED_PROFILE, metavar="P", help="whose store (default: %(default)s)")
    cli_corpora.add(commands)
    cli_laws.add(commands)
    text = "Measure this machine: training against transformers.Trainer, bf16 against fp32, serving runs, the corpora, fits of laws."
    sub = command("bench", bench, text)
    text = "train: speedup, utilisation; compute: losses in bf16 and fp32; serve: milliseconds a run; corpora: speed, memory; laws: seconds"
    sub.add_argument("what", choices=("train", "compute", "serve", "corpora", "laws"), help=f"{text} a fit (all but serve: minutes)")
    sub.add_argument("--json", action="store_true", help=json_help)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Entry point: 0 done, 1 a notebook failed, 2 wrong use or an error that the user can mend."""
    args = build_parser().parse_args(argv)
    try:
        return args.function(args)
    except CptlabError as error:
        _say(f"cptlab: {error}")
        return 2
    except BrokenPipeError:  # the reader of our output has closed it, as head does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except KeyboardInterrupt:
        _say("cptlab: interrupted")
        return 130


if __name__ == "__main__":
    sys.exit(main())
