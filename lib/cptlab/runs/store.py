"""The run store: one folder a run, plain files in it, written so that a crash cannot tear them.

::

    <root>/<id>/run.json            what was run, how it ended, what it cost, what made it
                curve.csv           the training loss along the run
                measurements.csv    losses on evaluation sets, one row a (step, set); only ever added to
                samples.json        generated text along the run
                checkpoints/        weights of kept steps (not committed)
                state/, progress.json, lock, .guard    of a run in progress (not committed)
    <root>/base-weights/            the committed weights of shared base runs, with a manifest of their sha256

Reading needs no lock: every file is replaced in one step. This module imports neither torch nor transformers.
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
from cptlab.files import atomic_json, atomic_write, atomic_write_with, sha256_file
from cptlab.paths import runs_dir
from cptlab.runs.locks import RunLock, guarded, live_owner
from cptlab.runs.tables import CURVE_COLUMNS, MEASUREMENT_COLUMNS, frame, parse_row, read_table, table_text

if TYPE_CHECKING:
    import pandas as pd

FORMAT = 1
STATUSES = ("missing", "running", "partial", "failed", "done")
WEIGHTS = "model.safetensors"
BASE_WEIGHTS_LIMIT_BYTES = 25 * 2**20  # they are in the repository's history for ever
RELATIVE_TOLERANCE = 1e-6  # between two measurements of the same thing

SAMPLE_KEYS = ("step", "prompt", "text", "seed", "temperature")
RECORD_KEYS = {
    "format": int, "id": str, "labels": dict, "spec": dict, "identity": dict, "status": str, "error": (dict, type(None)),
    "summary": dict, "checkpoints": dict, "provenance": dict,
}  # fmt: skip
IDENTITY_KEYS = ("recipe_version", "corpus_fingerprint", "upstreams")

_hashed: dict[tuple[str, int, int], str] = {}  # (path, mtime, size) -> sha256, so that a process hashes each committed file once


class StoreWarning(UserWarning):
    """A record disagrees with what was just computed."""


def _read_json(path: Path, what: str) -> dict | list:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise StoreError(f"{path} does not exist: {what} is not in this store") from None
    except ValueError as error:
        raise StoreError(f"{path} is not valid JSON ({error}): restore it from git, or delete it to have it made again") from None


def _write_json(path: Path, value: dict | list) -> None:
    try:
        atomic_json(path, value)
    except (TypeError, ValueError) as error:
        raise StoreError(f"{path} cannot be written, it would hold a value that JSON lacks: {error}") from None


def _check_record(record: dict, run_id: str, where: str) -> None:
    if not isinstance(record, dict):
        raise StoreError(f"{where} holds no JSON object: restore it from git, or delete it to train the run again")
    if record.get("format") != FORMAT:
        raise StoreError(
            f"{where}: format is {record.get('format')!r}, this version reads {FORMAT}: use the cptlab that wrote it, or retrain"
        )
    for key, kind in RECORD_KEYS.items():
        if key not in record or not isinstance(record[key], kind):
            raise StoreError(
                f"{where}: field {key!r} is {'missing' if key not in record else f'{record[key]!r:.60}'}: restore it, or retrain the run"
            )
    if record["id"] != run_id:
        raise StoreError(
            f"{where}: id is {record['id']!r}, but the folder says {run_id!r}: a record cannot be moved to another run's folder"
        )
    missing = [key for key in IDENTITY_KEYS if key not in record["identity"]]
    if missing:
        raise StoreError(f"{where}: identity lacks {', '.join(missing)}")
    if record["status"] not in ("done", "failed"):
        raise StoreError(f"{where}: status is {record['status']!r}: a record says 'done' or 'failed'")
    if (record["status"] == "failed") != (record["error"] is not None):
        raise StoreError(
            f"{where}: status is {record['status']!r} with error {record['error']!r:.60}: a failed run has an error, a finished one none"
        )
    if record["error"] is not None and not {"type", "message", "step"} <= set(record["error"]):
        raise StoreError(f"{where}: error needs type, message and step")


def _same(one: float, other: float) -> bool:
    return (math.isnan(one) and math.isnan(other)) or math.isclose(one, other, rel_tol=RELATIVE_TOLERANCE)


class Store:
    """The runs under ``root`` (default: ``cptlab.paths.runs_dir()``). Cheap to make, holds no open files, can be pickled."""

    def __init__(self, root: Path | None = None):
        self.root = Path(root) if root is not None else runs_dir()

    def path(self, run_id: str) -> Path:
        """Folder of a run, there or not."""
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", run_id):
            raise StoreError(f"{run_id!r} is not a run id: ids are 16 hexadecimal digits, see `cptlab status`")
        return self.root / run_id

    def ids(self) -> list[str]:
        """Runs that have a record (done or failed), sorted."""
        return sorted(path.parent.name for path in self.root.glob("*/run.json"))

    def all_ids(self) -> list[str]:
        """Runs that have a record, a lock or state to resume, sorted."""
        marks = ("run.json", "lock", "state")
        return sorted({path.parent.name for mark in marks for path in self.root.glob(f"*/{mark}")})

    def status(self, run_id: str) -> str:
        """``missing``, ``running`` (a living owner holds it), ``partial`` (can be resumed), ``failed`` or ``done``.

        A finished run stays ``done`` while somebody measures it; a failed one that is tried again is ``running``.
        """
        folder = self.path(run_id)
        running = live_owner(folder / "lock") is not None
        if (folder / "run.json").exists():
            try:
                status = self.record(run_id)["status"]
            except StoreError:
                if not running:
                    raise
                status = "running"
            return "running" if running and status == "failed" else status
        if running:
            return "running"
        state = folder / "state"
        return "partial" if state.is_dir() and any(state.iterdir()) else "missing"

    # --- records -------------------------------------------------------------------------------------------------------------

    def record(self, run_id: str) -> dict:
        """The run's ``run.json``.

        Raises:
            StoreError: absent, torn, of another format version, of another run, or lacking a field; names the file.
        """
        path = self.path(run_id) / "run.json"
        record = _read_json(path, f"run {run_id}")
        _check_record(record, run_id, str(path))
        return record

    def write_record(self, run_id: str, record: dict) -> None:
        """Put ``record`` in place; ``format`` and ``id`` are filled in where absent.

        Raises:
            StoreError: a field is missing, of the wrong kind, or not finite.
        """
        path = self.path(run_id) / "run.json"
        record = {"format": FORMAT, "id": run_id} | record
        _check_record(record, run_id, f"the record for {path}")
        _write_json(path, record)

    def curve(self, run_id: str) -> "pd.DataFrame":
        """Training curve, a row a logged step: step, tokens, lr, loss_nats (mean since the row before), grad_norm, and what else its
        objective tells (means, too). Empty when absent."""
        return frame(read_table(self.path(run_id) / "curve.csv", CURVE_COLUMNS, more=True), CURVE_COLUMNS)

    def write_curve(self, run_id: str, rows: list[dict]) -> None:
        """Replace the training curve; a number that is not finite is stored empty and read as NaN."""
        path = self.path(run_id) / "curve.csv"
        atomic_write(path, table_text(rows, CURVE_COLUMNS, path, more=True))

    def measurements(self, run_id: str) -> "pd.DataFrame":
        """Evaluations, a row a (step, set): step, tokens, set, loss_nats (mean), accuracy, predicted_tokens. Empty when absent."""
        return frame(read_table(self.path(run_id) / "measurements.csv", MEASUREMENT_COLUMNS), MEASUREMENT_COLUMNS)

    def add_measurements(self, run_id: str, rows: list[dict], replace: bool = False) -> None:
        """Add rows of :meth:`measurements`; two processes may add at once.

        A (step, set) that is there already keeps its recorded row, with a :class:`StoreWarning` when loss or accuracy differ by more than
        1e-6 of their value; ``replace`` takes the new row instead (a run trained again from its start).
        """
        path = self.path(run_id) / "measurements.csv"
        lines = list(csv.reader(io.StringIO(table_text(rows, MEASUREMENT_COLUMNS, path))))[1:]  # rounded, as they will be read
        differing = []
        with guarded(path.parent):
            old = read_table(path, MEASUREMENT_COLUMNS)
            merged = {(row["step"], row["set"]): row for row in old}
            for row in (parse_row(cells, MEASUREMENT_COLUMNS) for cells in lines):
                known = merged.get(key := (row["step"], row["set"]))
                if known is not None and not replace:
                    if not all(_same(known[name], row[name]) for name in ("loss_nats", "accuracy")):
                        differing.append(f"step {key[0]}, {key[1]}: recorded {known['loss_nats']:.9g}, now {row['loss_nats']:.9g}")
                    continue
                merged[key] = row
            content = table_text((merged[key] for key in sorted(merged)), MEASUREMENT_COLUMNS, path)
            if not path.exists() or content != path.read_text(encoding="utf-8"):
                atomic_write(path, content)
        if differing:
            warnings.warn(
                f"run {run_id}: {len(differing)} measurements differ from the recorded ones, which stay ({'; '.join(differing[:3])}): "
                "other weights or another library version; train the run again if the new values are the right ones",
                StoreWarning,
                stacklevel=2,
            )

    def samples(self, run_id: str) -> list[dict]:
        """Generated text: {step, prompt, text, seed, temperature}, sorted; [] when absent."""
        path = self.path(run_id) / "samples.json"
        return _read_json(path, "its samples") if path.exists() else []

    def add_samples(self, run_id: str, samples: list[dict]) -> None:
        """Add samples; one with the same step, prompt, seed and temperature replaces the recorded one."""
        path = self.path(run_id) / "samples.json"
        for sample in samples:
            if set(sample) != set(SAMPLE_KEYS):
                raise StoreError(f"{path}: a sample has the fields {sorted(sample)}, expected {sorted(SAMPLE_KEYS)}")
        with guarded(path.parent):
            merged = {(s["step"], s["prompt"], s["seed"], s["temperature"]): s for s in (*self.samples(run_id), *samples)}
            _write_json(path, [merged[key] for key in sorted(merged)])

    # --- weights -------------------------------------------------------------------------------------------------------------

    def checkpoint_dir(self, run_id: str, step: int) -> Path:
        """Folder that the trainer writes a checkpoint to (``model.safetensors`` in it, put in place in one step)."""
        return self.path(run_id) / "checkpoints" / f"step-{step:08d}"

    def optimiser_state(self, run_id: str, step: int) -> Path:
        """Where the optimiser state of a kept step lies, there or not."""
        return self.checkpoint_dir(run_id, step) / "optimizer.safetensors"

    def _base_file(self, run_id: str, step: int) -> Path:
        return self.root / "base-weights" / f"{run_id}-step-{step:08d}.safetensors"

    def checkpoint(self, run_id: str, step: int) -> Path | None:
        """Weights of a step: the local file, else the committed one; None when neither is there.

        Raises:
            StoreError: a committed file is not in the manifest, or its sha256 is another one.
        """
        local = self.checkpoint_dir(run_id, step) / WEIGHTS
        if local.is_file():
            return local
        base = self._base_file(run_id, step)
        if not base.is_file():
            return None
        expected = self._manifest()["files"].get(base.name, {}).get("sha256")
        stat = base.stat()
        key = (str(base.resolve()), stat.st_mtime_ns, stat.st_size)
        found = _hashed.get(key) or _hashed.setdefault(key, sha256_file(base))
        if found != expected:
            raise StoreError(
                f"{base}: sha256 is {found}, {base.parent / 'manifest.json'} says {expected}: restore both from git, "
                "or delete the file to train the run again"
            )
        return base

    def checkpoint_steps(self, run_id: str) -> list[int]:
        """Steps whose weights are here, local or committed, sorted."""
        local = (path.parent.name for path in self.path(run_id).glob(f"checkpoints/step-*/{WEIGHTS}"))
        base = (path.stem for path in (self.root / "base-weights").glob(f"{run_id}-step-*.safetensors"))
        return sorted({int(name.rpartition("-")[2]) for name in (*local, *base)})

    def _manifest(self) -> dict:
        path = self.root / "base-weights" / "manifest.json"
        manifest = _read_json(path, "the manifest of the committed weights") if path.exists() else {"format": FORMAT, "files": {}}
        if not isinstance(manifest, dict) or manifest.get("format") != FORMAT or not isinstance(manifest.get("files"), dict):
            raise StoreError(f"{path} is not a manifest of format {FORMAT}: restore it from git")
        return manifest

    def commit_base_weights(self, run_id: str, step: int) -> Path:
        """Copy a local checkpoint to ``base-weights/`` and note its sha256 and bytes in the manifest; the path of the copy.

        Raises:
            StoreError: there is no local checkpoint of that step, or all committed weights would exceed 25 MiB.
        """
        source, target = self.checkpoint_dir(run_id, step) / WEIGHTS, self._base_file(run_id, step)
        if not source.is_file():
            raise StoreError(f"{source} does not exist: train run {run_id} and keep step {step} first")
        with guarded(target.parent):
            manifest = self._manifest()
            manifest["files"][target.name] = {"bytes": source.stat().st_size, "run": run_id, "sha256": sha256_file(source), "step": step}
            total = sum(entry["bytes"] for entry in manifest["files"].values())
            if total > BASE_WEIGHTS_LIMIT_BYTES:
                raise StoreError(
                    f"{target.parent} would hold {total / 2**20:.1f} MiB, more than {BASE_WEIGHTS_LIMIT_BYTES / 2**20:.0f}: "
                    "commit fewer or smaller base runs"
                )
            atomic_write_with(target, lambda temporary: shutil.copyfile(source, temporary))
            _write_json(target.parent / "manifest.json", manifest)
        return target

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
