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
from cptlab.cli_output import print_json, say, table
from cptlab.errors import ConfigError, CptlabError, StoreError
from cptlab.outputs import COMMITTED_PROFILE

if TYPE_CHECKING:
    from cptlab.notebooks import Notebook, Outcome


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _choose(args: argparse.Namespace) -> "list[tuple[Notebook, dict[str, Any]]]":
    """The chosen notebooks with their parameters, a pair each combination of ``--each``, all checked before anything runs."""
    from cptlab import batch, notebooks, study

    books = notebooks.find(args.notebooks)
    if Path(args.profile).suffix in (".yaml", ".yml"):  # a user's own; notebooks run in another folder
        args.profile = str(Path(args.profile).resolve())
    study.load_profile(args.profile)
    given = notebooks.parse_parameters(args.parameter)
    chosen: list[tuple[Notebook, dict[str, Any]]] = []
    for values in batch.combinations(given, getattr(args, "each", [])):
        parameters = notebooks.assign_parameters(books, args.profile, values)
        chosen += [(book, parameters[book.name]) for book in books]
    told = {(book.path, json.dumps(parameters, sort_keys=True)): (book, parameters) for book, parameters in chosen}  # True is not 1
    return list(told.values())


def _environment(args: argparse.Namespace) -> dict[str, str]:
    """Where executions put their runs; paths are absolute, because notebooks run in their own folder."""
    places = ("CPTLAB_RUNS", "CPTLAB_LOCAL", "CPTLAB_CACHE", "CPTLAB_FIGURES")
    env = {name: str(Path(os.environ[name]).resolve()) for name in places if os.environ.get(name)}
    if args.fresh:
        store = paths.outputs_dir() / "fresh" / f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{Path(args.profile).stem}"
        store.mkdir(parents=True)
        env["CPTLAB_RUNS"] = str(store)
        say(f"training every run anew in {store}")
    workers = {"CPTLAB_WORKERS": str(args.jobs)} if args.jobs else {}  # else the profile's own number
    return env | {"CPTLAB_PROGRESS": "0"} | workers


def figures(args: argparse.Namespace) -> int:
    """Run notebooks through Papermill; 1 when one of them fails."""
    from cptlab import batch, notebooks

    if args.jobs is not None and args.jobs < 1:
        raise ConfigError(f"-j {args.jobs}: give the number of processes, 1 or more")
    chosen = _choose(args)
    env = _environment(args)
    cached, training, work, told, began = [], [], {}, set(), time.time()
    several = len(chosen) > len({book.path for book, _ in chosen})
    jobs = [batch.job(book, parameters, env, several) for book, parameters in chosen]
    with notebooks.environment(env):
        for (book, parameters), job in zip(chosen, jobs, strict=True):
            try:
                found = notebooks.plan(book, parameters)
                if not found.cached:
                    from cptlab.sweep.cost import costs
                    from cptlab.sweep.scheduler import needed

                    grid, minutes = found.grid, found.runs.attrs.get("minutes", 0.0)
                    todo = needed(grid.store, grid.requests)
                    say(f"{batch.title(job.output)}: {len(todo)} runs to do, about {minutes:.1f} min here")
                    work[job.output] = (grid.store, todo, costs(grid.store, todo, grid.execution), grid.execution.workers)
                (cached if found.cached else training).append(job)
            except Exception as error:
                known = isinstance(error, ConfigError) and isinstance(error.__cause__, CptlabError)
                if several or known:  # a wrong parameter, a claim without a rule: before anything runs
                    raise
                training.append(job)  # it will fail again when executed, and then be reported beside its executed copy

    for job in jobs:
        batch.clear(job)

    def report(outcome: "Outcome") -> None:
        say(f"{batch.title(outcome.output)}  {outcome.seconds:.1f} s  {'failed' if outcome.error else 'ok'}")
        if outcome.error:
            say(f"  {outcome.error}\nexecuted copy: {outcome.output}".replace("\n", "\n  "))

    def progress(job: "notebooks.Job") -> None:
        if job.output in work:
            from cptlab.sweep.progress import failure_lines, progress_text, seen

            sweep = seen(*work[job.output], since=began)
            for line in failure_lines(sweep, told):
                say(f"{job.name}: {line}")
            say(f"{job.name}: {progress_text(sweep, '; ')}")

    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # as an exception, so that the workers are ended too
    try:
        outcomes = notebooks.execute_all(cached, training, args.jobs or _cores(), report, progress)
    finally:
        signal.signal(signal.SIGTERM, before)
    if several:
        failed = {outcome.output for outcome in outcomes if outcome.error}
        for table in batch.overview(job for job in jobs if job.output not in failed):
            print(table.to_string(index=False, na_rep="", float_format=lambda value: f"{value:.4g}"), end="\n\n")
    return 1 if any(outcome.error for outcome in outcomes) else 0


def plan(args: argparse.Namespace) -> int:
    """Show what notebooks would train."""
    from cptlab.cli_plan import plan

    return plan(args, _choose(args))


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
        print_json({"store": str(store.root), "committed": store.committed and str(store.committed), "counts": counts, "runs": rows})
        return 0
    where = " over ".join(map(str, reversed(store.layers)))
    print(f"{where}: {len(rows)} runs" + "".join(f", {count} {name}" for name, count in sorted(counts.items())))
    open_rows = [row for row in rows if row["status"] != "done" or (args.local and (store.path(row["id"]) / "run.json").exists())]
    if open_rows:
        with pd.option_context("display.max_colwidth", None):
            print(table(pd.DataFrame(open_rows)))
    return 0


def promote(args: argparse.Namespace) -> int:
    """Move finished local records into the committed layer."""
    from cptlab.runs.promote import promote as move
    from cptlab.runs.promote import upstreams_first
    from cptlab.study import open_study

    store = open_study("", args.profile).store
    for name in upstreams_first(store, args.names):
        for line in move(store, name, args.weights):
            print(line)
    return 0


def claims(args: argparse.Namespace) -> int:
    """Show every claim with its verdict; at the committed profile, bring the tables in README.md and figures/claims.md up to date."""
    import pandas as pd

    from cptlab import verdicts

    rows = verdicts.rows(args.profile)
    if args.json:
        print_json(rows)
    else:
        shown = [row | {"runs": len(row["runs"]) or ""} for row in rows]
        columns = ["id", "verdict", "quantity", "effect", "low", "high", "runs", "notebook"]
        print(pd.DataFrame(shown, columns=columns).to_string(index=False, na_rep="", float_format=lambda value: f"{value:.4g}"))
    if args.profile == COMMITTED_PROFILE:
        for path in verdicts.write(rows):
            say(f"written: {path}")
    return 0


def new_study(args: argparse.Namespace) -> int:
    """Write the files of a new study."""
    from cptlab.scaffold import new_study as write

    for path in write(args.name):
        print(path)
    say(f"it runs: cptlab figures {args.name} --profile smoke")
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
        print_json(result)
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
            "-p",
            dest="parameter",
            action="append",
            default=[],
            metavar="KEY=VALUE",
            help="turn a dial, a notebook parameter (YAML)",
        )
        sub.add_argument(
            "--each",
            action="append",
            default=[],
            metavar="KEY=V1,V2",
            help="one execution for each of these values of a dial (in YAML: near=de,es  seeds=[0],[1]); several --each: every combination",
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
    sub = command("new-study", new_study, "Write a study to start from, which runs: notebook, settings in each profile, a claim, a test.")
    sub.add_argument("name", metavar="NAME", help="number and words, such as 13_my_question")
    sub = command("claims", claims, "Show every claim with its verdict and what decides it; update the tables in README.md and figures/.")
    sub.add_argument("--profile", default=COMMITTED_PROFILE, metavar="P", help="whose verdicts (default: %(default)s, the committed ones)")
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
        say(f"cptlab: {error}")
        return 2
    except BrokenPipeError:  # the reader of our output has closed it, as head does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except KeyboardInterrupt:
        say("cptlab: interrupted")
        return 130


if __name__ == "__main__":
    sys.exit(main())
