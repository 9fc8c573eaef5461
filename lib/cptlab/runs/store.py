"""The run store: two layers, one folder a run in each, plain files in it, written so that a crash cannot tear them.

::

    <layer>/<id>/run.json            what was run, how it ended, what it cost, what made it
                 curve.csv           the training loss along the run
                 measurements.csv    losses on evaluation sets, one row a (step, set); only ever added to
                 samples.json        generated text along the run
                 checkpoints/        weights of kept steps with their hashes (not committed)
                 state/, progress.json, lock, .guard    of a run in progress (not committed)
    <layer>/base-weights/            the committed weights of shared base runs, with a manifest of their sha256

The committed layer is only read. Everything that is trained or measured here goes to the local layer above it;
:mod:`cptlab.runs.promote` moves it down, on purpose and after a check. Reading needs no lock: every file is replaced in one step.
This module imports neither torch nor transformers.
"""

import csv
import io
import json
import math
import os
import re
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from cptlab.errors import StoreError
from cptlab.files import atomic_json, atomic_write, sha256_file
from cptlab.paths import local_runs_dir, runs_dir
from cptlab.runs.locks import RunLock, guarded, live_owner
from cptlab.runs.record import FORMAT, check_record
from cptlab.runs.tables import CURVE_COLUMNS, MEASUREMENT_COLUMNS, parse_row, read_table, table_text
from cptlab.runs.view import OTHER, PARTS, PROOF, STATE, WEIGHTS, Checkpoint, View, agrees, proof, read_json, sample_key

if TYPE_CHECKING:
    import pandas as pd

RELATIVE_TOLERANCE = 1e-6  # between two measurements of the same thing
SAMPLE_KEYS = ("step", "prompt", "text", "seed", "temperature", "length")


class StoreWarning(UserWarning):
    """A record disagrees with what was just computed."""


def write_json(path: Path, value: dict | list) -> None:
    """Write a file of the store; StoreError for what JSON lacks."""
    try:
        atomic_json(path, value)
    except (TypeError, ValueError) as error:
        raise StoreError(f"{path} cannot be written, it would hold a value that JSON lacks: {error}") from None


def same_number(one: float, other: float) -> bool:
    """Whether two measurements of the same thing agree."""
    return (math.isnan(one) and math.isnan(other)) or math.isclose(one, other, rel_tol=RELATIVE_TOLERANCE)


class Store:
    """The runs under ``root``, over the committed ones. Cheap to make, holds no open files, can be pickled.

    Args:
        root: the local layer, where everything is written (default: ``cptlab.paths.local_runs_dir()`` over ``runs_dir()``).
        committed: the layer below it, only read; None: there is none.
    """

    def __init__(self, root: Path | None = None, committed: Path | None = None):
        self.root = Path(root) if root is not None else local_runs_dir()
        self.committed = Path(committed) if committed is not None else runs_dir() if root is None else None
        if self.committed is not None and self.committed.resolve() == self.root.resolve():
            self.committed = None

    def resolved(self) -> "Store":
        """The same store by absolute paths, for processes that work in another folder."""
        return Store(self.root.resolve(), self.committed and self.committed.resolve())

    @property
    def layers(self) -> tuple[Path, ...]:
        """Folders of the layers, the committed one first."""
        return (self.root,) if self.committed is None else (self.committed, self.root)

    def path(self, run_id: str) -> Path:
        """Folder of a run in the local layer, there or not."""
        return self.root / _checked(run_id)

    def find(self, name: str) -> Path | None:
        """A file by its name below the layers (``laws/chinchilla-….json``): the committed one, else the local one; None without one."""
        return next((layer / name for layer in self.layers if (layer / name).is_file()), None)

    def ids(self) -> list[str]:
        """Runs that have a record (done or failed), sorted."""
        return sorted({path.parent.name for layer in self.layers for path in layer.glob("*/run.json")})

    def all_ids(self) -> list[str]:
        """Runs that have a record, a lock or state to resume, sorted."""
        marks = (path.parent.name for mark in ("lock", "state") for path in self.root.glob(f"*/{mark}"))
        return sorted({*self.ids(), *marks})

    # --- reading -------------------------------------------------------------------------------------------------------------

    def views(self, run_id: str) -> list[View]:
        """The ways to read a run, preferred first: as it is committed, with what was added here to the same weights; then as it was
        trained again here, where that gave other weights."""
        local = self.path(run_id)
        committed = self.committed / run_id if self.committed is not None else None
        if committed is None or not (committed / "run.json").exists():
            return [View(run_id, (local,), "local", self.root / "base-weights")]
        below = View(run_id, (committed,), "committed", self.committed / "base-weights")
        if below.status == "failed" and (local / "run.json").exists():
            return [View(run_id, (local,), "local")]
        if agrees(below, local):
            return [View(run_id, (committed, local), "committed", self.committed / "base-weights")]
        if (local / OTHER).exists() or (local / "run.json").exists():
            return [below, View(run_id, (local,), "local")]
        return [below]  # what lies there is of an attempt that nobody compared

    def status(self, run_id: str) -> str:
        """``missing``, ``running`` (a living owner holds it), ``partial`` (can be resumed), ``failed`` or ``done``.

        A finished run stays ``done`` while somebody measures it; a failed one that is tried again is ``running``.
        """
        folder = self.path(run_id)
        running = self.held(run_id)
        try:
            status = self.views(run_id)[0].status
        except StoreError:
            if not running:
                raise
            status = "failed"  # it is being written anew
        if status is not None:
            return "running" if running and status == "failed" else status
        if running:
            return "running"
        state = folder / "state"
        return "partial" if state.is_dir() and any(state.iterdir()) else "missing"

    def held(self, run_id: str) -> bool:
        """Whether a living process is at the run."""
        return live_owner(self.path(run_id) / "lock") is not None

    def ended(self, run_id: str) -> str:
        """How the last training of the run ended, also while its lock is held: ``done``, ``failed``, or ``missing`` without a record."""
        return self.views(run_id)[-1].status or "missing"

    def record_time(self, run_id: str) -> int:
        """When the local record was written (nanoseconds since the epoch); 0 without one."""
        path = self.path(run_id) / "run.json"
        return path.stat().st_mtime_ns if path.exists() else 0

    def record(self, run_id: str) -> dict:
        """The run's record in the preferred view; see :attr:`View.record`."""
        return self.views(run_id)[0].record

    def curve(self, run_id: str) -> "pd.DataFrame":
        """:meth:`View.curve` of the preferred view."""
        return self.views(run_id)[0].curve()

    def measurements(self, run_id: str) -> "pd.DataFrame":
        """:meth:`View.measurements` of the preferred view."""
        return self.views(run_id)[0].measurements()

    def samples(self, run_id: str) -> list[dict]:
        """:meth:`View.samples` of the preferred view."""
        return self.views(run_id)[0].samples()

    def checkpoint(self, run_id: str, step: int) -> Checkpoint | None:
        """Weights of a step, those of the preferred view that has them; None when none has."""
        return next((found for view in self.views(run_id) if (found := view.checkpoint(step))), None)

    def checkpoint_steps(self, run_id: str) -> list[int]:
        """Steps whose weights are here in any view, sorted."""
        return sorted({step for view in self.views(run_id) for step in view.checkpoint_steps()})

    def optimiser_state(self, run_id: str, step: int) -> Checkpoint | None:
        """Optimiser state kept at a step, that of the view that :meth:`start` gives; None when it was not kept."""
        view = self.start(run_id, step, state=True)
        return view and view.optimiser_state(step)

    def start(self, run_id: str, step: int, state: bool) -> View | None:
        """The preferred view that has the weights of a step (and the optimiser state, too): a run starts from one trajectory."""
        found = (view for view in self.views(run_id) if view.checkpoint(step) and (not state or view.optimiser_state(step)))
        return next(found, None)

    # --- writing, in the local layer -----------------------------------------------------------------------------------------

    def write_record(self, run_id: str, record: dict) -> None:
        """Put ``record`` in place; ``format`` and ``id`` are filled in where absent.

        Raises:
            StoreError: a field is missing, of the wrong kind, or not finite.
        """
        path = self.path(run_id) / "run.json"
        record = {"format": FORMAT, "id": run_id} | record
        check_record(record, run_id, f"the record for {path}")
        write_json(path, record)

    def write_curve(self, run_id: str, rows: list[dict]) -> None:
        """Replace the training curve; a number that is not finite is stored empty and read as NaN."""
        path = self.path(run_id) / "curve.csv"
        atomic_write(path, table_text(rows, CURVE_COLUMNS, path, more=True))

    def add_measurements(self, run_id: str, rows: list[dict], replace: bool = False) -> None:
        """Add rows of :meth:`View.measurements`; two processes may add at once.

        A (step, set) that is there already, in either layer, keeps its recorded row, with a :class:`StoreWarning` when loss or accuracy
        differ by more than 1e-6 of their value; ``replace`` puts the rows in the place of all local ones (a run trained from its start).
        """
        path = self.path(run_id) / "measurements.csv"
        lines = list(csv.reader(io.StringIO(table_text(rows, MEASUREMENT_COLUMNS, path))))[1:]  # rounded, as they will be read
        differing = []
        with guarded(path.parent):
            below = {} if replace else {(row["step"], row["set"]): row for row in self.views(run_id)[-1].measurement_rows()}
            merged = {} if replace else {(row["step"], row["set"]): row for row in read_table(path, MEASUREMENT_COLUMNS)}
            for row in (parse_row(cells, MEASUREMENT_COLUMNS) for cells in lines):
                key = (row["step"], row["set"])
                known = merged.get(key) or below.get(key)
                if known is None:
                    merged[key] = row
                elif not all(same_number(known[name], row[name]) for name in ("loss_nats", "accuracy")):
                    differing.append(f"step {key[0]}, {key[1]}: recorded {known['loss_nats']:.9g}, now {row['loss_nats']:.9g}")
            content = table_text((merged[key] for key in sorted(merged)), MEASUREMENT_COLUMNS, path)
            if (merged or replace) and (not path.exists() or content != path.read_text(encoding="utf-8")):
                atomic_write(path, content)
        if differing:
            warnings.warn(
                f"run {run_id}: {len(differing)} measurements differ from the recorded ones, which stay ({'; '.join(differing[:3])}): "
                "other weights or another library version; train the run again if the new values are the right ones",
                StoreWarning,
                stacklevel=2,
            )

    def add_samples(self, run_id: str, samples: list[dict], replace: bool = False) -> None:
        """Add samples; one with the same step, prompt, seed, temperature and length replaces the recorded one; ``replace``: all of them."""
        path = self.path(run_id) / "samples.json"
        for sample in samples:
            if set(sample) != set(SAMPLE_KEYS):
                raise StoreError(f"{path}: a sample has the fields {sorted(sample)}, expected {sorted(SAMPLE_KEYS)}")
        with guarded(path.parent):
            old = read_json(path, "its samples") if path.exists() and not replace else []
            merged = {sample_key(sample): sample for sample in (*old, *samples)}
            if merged or path.exists():
                write_json(path, [merged[key] for key in sorted(merged)])

    def checkpoint_dir(self, run_id: str, step: int) -> Path:
        """Folder that the trainer writes a checkpoint to; it counts once :meth:`note_checkpoint` has noted its hashes."""
        return self.path(run_id) / "checkpoints" / f"step-{step:08d}"

    def note_checkpoint(self, run_id: str, step: int) -> None:
        """Note the hashes of what was written to :meth:`checkpoint_dir`; from then on it can be started from."""
        folder = self.checkpoint_dir(run_id, step)
        write_json(folder / "sha256.json", {name: sha256_file(folder / name) for name in (WEIGHTS, STATE) if (folder / name).is_file()})

    def clear_checkpoints(self, run_id: str) -> None:
        """Remove what :meth:`checkpoint_dir` holds of all steps."""
        shutil.rmtree(self.path(run_id) / "checkpoints", ignore_errors=True)

    def replay_dir(self, run_id: str, step: int) -> Path:
        """Where a finished run that is trained again writes a checkpoint, until it has shown to be the recorded run."""
        return self.path(run_id) / "replay" / f"step-{step:08d}"

    def clear_replay(self, run_id: str) -> None:
        """Remove what an attempt of that kind left."""
        shutil.rmtree(self.path(run_id) / "replay", ignore_errors=True)

    def take_replay(self, run_id: str) -> None:
        """The replay came to the recorded numbers: keep those of its checkpoints that are lacking. A kept one is never written over."""
        for folder in sorted((self.path(run_id) / "replay").glob("step-*")):
            step = int(folder.name.rpartition("-")[2])
            target = self.checkpoint_dir(run_id, step)
            target.mkdir(parents=True, exist_ok=True)
            for path in folder.iterdir():
                if not (target / path.name).exists():
                    path.rename(target / path.name)
            self.note_checkpoint(run_id, step)
        self.clear_replay(run_id)

    def prove(self, run_id: str) -> None:
        """Note that what lies in the local folder is of the committed record's weights; what nobody proved before is set aside."""
        folder, views = self.path(run_id), self.views(run_id)
        if views[0].layer == "local" or (folder / OTHER).exists() or (folder / "run.json").exists():
            return  # it has a record of its own
        if not agrees(views[0], folder, even_empty=False):
            self._set_aside(run_id)
            write_json(folder / PROOF, {"of": proof(views[0].record)})

    def start_other(self, run_id: str) -> None:
        """A finished run that is trained again here turns out to give other bits: from now on its local files are a view of their own.

        What was local before is of the old bits and is set aside in ``replaced/`` (the last one is kept), never mixed with the new.
        """
        if self.committed is not None and (self.committed / run_id / "run.json").exists():
            write_json(self.path(run_id) / OTHER, {"because": "its numbers left the committed ones"})
        self._set_aside(run_id)
        self.clear_replay(run_id)

    def _set_aside(self, run_id: str) -> None:
        folder, aside = self.path(run_id), self.root / "replaced" / run_id
        keep = [folder / name for name in PARTS if (folder / name).exists()]
        if keep:
            shutil.rmtree(aside, ignore_errors=True)
            aside.mkdir(parents=True)
            for path in keep:  # the record first: without it nothing of them is read
                path.rename(aside / path.name)

    # --- a run in progress ---------------------------------------------------------------------------------------------------

    def lock(self, run_id: str, wait: bool = True, on_wait: Callable[[dict], None] | None = None) -> RunLock:
        """``with store.lock(id) as lock:`` the sole right to train the run; see :class:`cptlab.runs.locks.RunLock`."""
        return RunLock(self.path(run_id) / "lock", run_id, wait, on_wait)

    def state_dir(self, run_id: str) -> Path:
        """Folder of what a broken run resumes from; not created here."""
        return self.path(run_id) / "state"

    def clear_state(self, run_id: str) -> None:
        """Remove the state to resume from and the progress note, once the run has ended."""
        shutil.rmtree(self.state_dir(run_id), ignore_errors=True)
        (self.path(run_id) / "progress.json").unlink(missing_ok=True)

    def write_progress(self, run_id: str, progress: dict) -> None:
        """Note how far the run is; not synced to disk, for it is worth nothing after a crash."""
        folder = self.path(run_id)
        folder.mkdir(parents=True, exist_ok=True)
        temporary = folder / f".progress.{os.getpid()}.tmp"
        temporary.write_text(json.dumps(progress), encoding="utf-8")
        temporary.replace(folder / "progress.json")

    def progress(self, run_id: str) -> dict | None:
        """The last note of :meth:`write_progress`; None when there is none."""
        try:
            return json.loads((self.path(run_id) / "progress.json").read_text(encoding="utf-8"))
        except (FileNotFoundError, ValueError):
            return None


def _checked(run_id: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", run_id):
        raise StoreError(f"{run_id!r} is not a run id: ids are 16 hexadecimal digits, see `cptlab status`")
    return run_id
