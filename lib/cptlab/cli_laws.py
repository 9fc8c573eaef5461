"""The command ``cptlab fit``."""

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from cptlab.errors import ConfigError


def add(commands: Any) -> None:
    """Add the command to the subparsers of the console command."""
    text = "Fit a scaling law to a table of measured losses, and say how far to trust it."
    forms = "\n".join(f"  {name:17} {law}" for name, law in EQUATIONS.items())
    more = f"forms:\n{forms}\n\nn parameters, d training tokens, u unique tokens, r share of the mixture (0 to 1), loss in nats."
    sub = commands.add_parser("fit", help=text, description=text, epilog=more, formatter_class=argparse.RawDescriptionHelpFormatter)
    sub.set_defaults(function=run)
    sub.add_argument("form", metavar="FORM", help=f"the law: {', '.join(EQUATIONS)}")
    sub.add_argument("data", metavar="DATA.csv", help="one row a measurement, with a header")
    text = "columns by role (default: n=params,d=tokens,loss=loss,r=ratio,u=unique_tokens); group=NAME: rows of one run"
    sub.add_argument("--columns", default="", metavar="ROLE=COLUMN,...", help=text)
    text = "parameters that keep a value; a coefficient at 0 leaves its term out; may be repeated"
    sub.add_argument("--freeze", action="append", default=[], metavar="NAME=VALUE,...", help=text)
    text = "where Huber's loss of the log loss turns from square to linear (default: %(default)s)"
    sub.add_argument("--huber-delta", type=float, default=1e-3, metavar="X", help=text)
    sub.add_argument(
        "--bootstrap", type=int, default=4000, metavar="N", help="refits behind the 95 %% intervals (default: %(default)s; 0: none)"
    )
    text = "rows to predict instead of fitting: a share (0.2), or a condition on a column ('tokens > 1e9')"
    sub.add_argument("--holdout", metavar="SHARE|CONDITION", help=text)
    sub.add_argument("--starts", type=int, default=64, metavar="N", help="starts to explore and refine (default: %(default)s)")
    sub.add_argument("--seed", type=int, default=0, metavar="N", help="of starts, resampling and hold-out (default: %(default)s)")
    sub.add_argument("--json", action="store_true", help="print JSON instead of a table")


EQUATIONS = {
    "kaplan": "L = ((N_c/n)^(alpha/beta) + D_c/d)^beta",
    "chinchilla": "L = E + A/n^alpha + B/d^beta",
    "continual": "L = E + A/n^alpha + B/(d^beta n^gamma)",
    "data-constrained": "chinchilla with d' and n' for repeated data (arXiv 2305.16264)",
    "dcpt": "L = E + A/n^alpha + B r^eta/d^beta + C/(r + eps)^gamma",
}  # for --help, which should not wait for numpy and scipy; a test holds it equal to the registered forms


def run(args: argparse.Namespace) -> int:
    """Fit and print."""
    from cptlab import laws
    from cptlab.laws.table import parse_columns

    with _progress(args) as progress:
        found = laws.fit(
            args.form,
            args.data,
            parse_columns(args.columns),
            freeze=parse_freeze(args.freeze),
            huber_delta=args.huber_delta,
            bootstrap=args.bootstrap,
            holdout=args.holdout,
            seed=args.seed,
            starts=args.starts,
            progress=progress,
        )
    print(json.dumps(found.to_json(), indent=1) if args.json else found)
    return 0


@contextmanager
def _progress(args: argparse.Namespace) -> Iterator[Callable[[int, int], None]]:
    """Shows on a terminal how far the bootstrap is, on one line; shows nothing to a file, a pipe, or beside JSON that goes to one."""
    from cptlab.sweep.progress import audience

    watched = audience() == "terminal" and (sys.stdout.isatty() or not args.json)
    began = width = 0

    def show(done: int, total: int) -> None:
        nonlocal began, width
        began = began or time.monotonic()
        left = f", {(time.monotonic() - began) / done * (total - done):.0f} s left" if 0 < done < total else ""
        line = f"bootstrap: {done} of {total} refits{left}"
        print("\r" + line.ljust(width), end="", file=sys.stderr, flush=True)
        width = len(line)

    try:
        yield show if watched else lambda done, total: None
    finally:
        if width:
            print(file=sys.stderr)


def parse_freeze(texts: list[str]) -> dict[str, float]:
    """``["E=1.55,A=420"]`` as a mapping; ConfigError for anything else."""
    found: dict[str, float] = {}
    for part in (part.strip() for text in texts for part in text.split(",")):
        name, equals, value = (piece.strip() for piece in part.partition("="))
        if part and (not equals or name in found):
            raise ConfigError(f"freeze {part!r}: write NAME=VALUE, each parameter once")
        if part:
            try:
                found[name] = float(value)
            except ValueError:
                raise ConfigError(f"freeze {part!r}: {value!r} is not a number") from None
    return found
