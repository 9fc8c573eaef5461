"""``cptlab plan``."""

import argparse
from typing import TYPE_CHECKING

from cptlab.cli_output import human, print_json, records, table

if TYPE_CHECKING:
    import pandas as pd

    from cptlab.notebooks import Notebook, Plan


def plan(args: argparse.Namespace, chosen: "list[tuple[Notebook, dict]]") -> int:
    """Show what notebooks would train: a line each, or with ``--runs`` a line a run."""
    import pandas as pd

    from cptlab import batch, notebooks

    several = len(chosen) > len({book.path for book, _ in chosen})
    names = [batch.title(batch.job(book, parameters, {}).output) if several else book.name for book, parameters in chosen]
    plans = [notebooks.plan(book, parameters) for book, parameters in chosen]
    frames = [found.runs.assign(notebook=name) for name, found in zip(names, plans, strict=True)]
    runs = pd.concat([frame for frame in frames if not frame.empty] or frames, ignore_index=True)
    first = [name for name in ("notebook", "id", "status") if name in runs]
    last = [name for name in ("tokens", "flops", "minutes") if name in runs]
    runs = runs[first + [name for name in runs if name not in first + last] + last]
    distinct = runs.drop_duplicates("id")  # notebooks share runs
    todo = distinct[~distinct["status"].isin(notebooks.SERVED)]
    rows = [_row(name, found, todo) for name, found in zip(names, plans, strict=True)]
    workers = max([found.grid.execution.workers for found in plans if found.grid is not None], default=1)
    totals = {"runs": len(distinct), "status": distinct["status"].value_counts(sort=False).to_dict(), "workers": workers}
    totals |= {name: float(todo[name].sum()) if name in todo else 0.0 for name in ("tokens", "flops")}
    totals["minutes"] = round(sum(row["minutes"] for row in rows), 2)  # one notebook trains after another
    if args.json:
        print_json({"profile": args.profile, "notebooks": rows, "runs": records(runs), "totals": totals})
        return 0
    shown = runs if args.runs else pd.DataFrame(rows)
    if not shown.empty:
        print(table(shown))
    print(", ".join([f"{totals['runs']} runs", *(f"{count} {name}" for name, count in totals["status"].items())]))
    cost = f"{human(totals['tokens'])} tokens, {totals['flops']:.2e} FLOPs, {totals['minutes']:.1f} minutes with {workers} workers"
    print(f"to do: {cost}" if len(todo) else "to do: nothing")
    return 0


def _row(name: str, found: "Plan", todo: "pd.DataFrame") -> dict:
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
