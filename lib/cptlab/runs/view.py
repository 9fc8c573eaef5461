"""A run as it is read: one trajectory, from the folders that hold a part of it.

A run that is committed may have been added to here (more evaluation sets, more checkpoints, of the same weights), or have been trained
again here to other bits, as another processor or library version gives them. The first is one view over two folders, the second two
views: rows of two trajectories are never mixed in one table.
"""

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from cptlab.errors import StoreError
from cptlab.files import hash_once
from cptlab.identity import digest
from cptlab.runs.record import check_record
from cptlab.runs.tables import CURVE_COLUMNS, MEASUREMENT_COLUMNS, frame, read_table

if TYPE_CHECKING:
    import pandas as pd

WEIGHTS, STATE = "model.safetensors", "optimizer.safetensors"
PARTS = ("run.json", "curve.csv", "measurements.csv", "samples.json", "checkpoints")
PROOF = "agrees.json"  # in a local folder: what lies there is of the committed record's weights
SAMPLE_KEY = ("step", "prompt", "seed", "temperature", "length")
OTHER = "other.json"  # in a local folder: it was trained again to other bits than the committed record's


def read_json(path: Path, what: str) -> dict | list:
    """Content of a JSON file.

    Raises:
        StoreError: absent or torn; names the file and the remedy.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise StoreError(f"{path} does not exist: {what} is not in this store") from None
    except ValueError as error:
        raise StoreError(
            f"{path} is not valid JSON ({error}): restore it from git, or delete its folder to have all of it made again"
        ) from None


@dataclass(frozen=True)
class Checkpoint:
    """A file of weights or optimiser state, with the sha256 that its record or manifest gives it."""

    path: Path
    sha256: str
    said_by: Path

    def verified(self) -> Path:
        """The path, once the file's content is what was recorded.

        Raises:
            StoreError: it is not.
        """
        found = hash_once(self.path)
        if found != self.sha256:
            raise StoreError(
                f"{self.path}: sha256 is {found}, {self.said_by} says {self.sha256}: restore both from git, "
                "or delete the file to train the run again"
            )
        return self.path


@dataclass(frozen=True)
class View:
    """One way to read a run.

    Args:
        run_id: the run.
        folders: where its files lie; the record and the curve are those of the first that has a record.
        layer: ``committed`` or ``local``: the layer of the record.
        base_weights: ``base-weights/`` of the layer whose record this is.
    """

    run_id: str
    folders: tuple[Path, ...]
    layer: str
    base_weights: Path | None = None

    @cached_property
    def home(self) -> Path | None:
        """The folder with the record; None when there is none."""
        return next((folder for folder in self.folders if (folder / "run.json").exists()), None)

    @cached_property
    def record(self) -> dict:
        """The run's ``run.json``.

        Raises:
            StoreError: absent, torn, of another format version, of another run, or lacking a field; names the file.
        """
        path = (self.home or self.folders[-1]) / "run.json"
        record = read_json(path, f"run {self.run_id}")
        check_record(record, self.run_id, str(path))
        return record

    @property
    def status(self) -> str | None:
        """``done`` or ``failed``; None without a record."""
        return self.record["status"] if self.home else None

    def curve_rows(self) -> list[dict]:
        """Rows of the training curve; [] when absent."""
        return read_table((self.home or self.folders[-1]) / "curve.csv", CURVE_COLUMNS, more=True)

    def curve(self) -> "pd.DataFrame":
        """Training curve, a row a logged step: step, tokens, lr, loss_nats (mean since the row before), grad_norm, and what else its
        objective tells (means, too). Empty when absent."""
        return frame(self.curve_rows(), CURVE_COLUMNS)

    def measurement_rows(self) -> list[dict]:
        """Rows of all folders, each (step, set) once; what was recorded first counts."""
        rows: dict[tuple, dict] = {}
        for folder in self.folders:
            for row in read_table(folder / "measurements.csv", MEASUREMENT_COLUMNS):
                rows.setdefault((row["step"], row["set"]), row)
        return [rows[key] for key in sorted(rows)]

    def measurements(self) -> "pd.DataFrame":
        """Evaluations, a row a (step, set): step, tokens, set, loss_nats (mean), accuracy, predicted_tokens. Empty when absent."""
        return frame(self.measurement_rows(), MEASUREMENT_COLUMNS)

    def samples(self) -> list[dict]:
        """Generated text: {step, prompt, text, seed, temperature, length}, sorted; [] when absent."""
        found: dict[tuple, dict] = {}
        for folder in self.folders:
            path = folder / "samples.json"
            for sample in read_json(path, "its samples") if path.exists() else ():
                try:
                    found.setdefault(sample_key(sample), sample)
                except (KeyError, TypeError):
                    raise StoreError(f"{path} holds a sample that lacks one of {', '.join(SAMPLE_KEY)}: restore it, or delete it") from None
        return [found[key] for key in sorted(found)]

    def _noted(self, folder: Path, step: int, name: str) -> str | None:
        """sha256 of a file of a kept checkpoint: as the record of a finished run has it, else from the note beside the file."""
        note = folder / "checkpoints" / f"step-{step:08d}" / "sha256.json"
        if not note.is_file():
            return None
        known = self.record["checkpoints"].get(str(step)) if name == WEIGHTS and self.status == "done" else None
        return known["sha256"] if known else read_json(note, "the note of a checkpoint's hashes").get(name)

    def _kept(self, step: int, name: str) -> Checkpoint | None:
        for folder in self.folders:
            path = folder / "checkpoints" / f"step-{step:08d}" / name
            if path.is_file() and (sha256 := self._noted(folder, step, name)):
                return Checkpoint(path, sha256, self.home / "run.json" if self.home else path.with_name("sha256.json"))
        return None

    def checkpoint(self, step: int) -> Checkpoint | None:
        """Weights of a step: the committed file, else the local one; None when neither is there (or its writing did not end)."""
        path = self.base_weights / base_name(self.run_id, step) if self.base_weights else None
        if path is not None and path.is_file():
            manifest = path.with_name("manifest.json")
            entry = read_manifest(manifest)["files"].get(path.name, {"sha256": None})
            return Checkpoint(path, entry["sha256"], manifest)
        return self._kept(step, WEIGHTS)

    def optimiser_state(self, step: int) -> Checkpoint | None:
        """Masters and moments of a step; None when they were not kept."""
        return self._kept(step, STATE)

    def checkpoint_steps(self) -> list[int]:
        """Steps whose weights are here, sorted."""
        local = (path.parent.name for folder in self.folders for path in folder.glob(f"checkpoints/step-*/{WEIGHTS}"))
        base = (path.stem for path in self.base_weights.glob(f"{self.run_id}-step-*.safetensors")) if self.base_weights else ()
        steps = {int(name.rpartition("-")[2]) for name in (*local, *base)}
        return sorted(step for step in steps if self.checkpoint(step))


def sample_key(sample: dict) -> tuple:
    """What makes two samples the same one."""
    return tuple(sample[name] for name in SAMPLE_KEY)


def base_name(run_id: str, step: int) -> str:
    """Name of a committed file of weights."""
    return f"{run_id}-step-{step:08d}.safetensors"


def read_manifest(path: Path) -> dict:
    """The manifest of committed weights; an empty one when there is none."""
    manifest = read_json(path, "the manifest of the committed weights") if path.exists() else {"format": 1, "files": {}}
    if not isinstance(manifest, dict) or manifest.get("format") != 1 or not isinstance(manifest.get("files"), dict):
        raise StoreError(f"{path} is not a manifest of format 1: restore it from git")
    return manifest


def proof(record: dict) -> str:
    """What a note that local files are of the same weights as ``record`` has to say."""
    return digest(record["checkpoints"])


def agrees(committed: View, local: Path, even_empty: bool = True) -> bool:
    """Whether what lies in ``local`` belongs to the committed record: hashes say so. An empty folder does, too, if ``even_empty``."""
    if (local / OTHER).exists():
        return False
    if (local / "run.json").exists():
        other = View(committed.run_id, (local,), "local").record
        shared = set(other["checkpoints"]) & set(committed.record["checkpoints"])
        if other["status"] == "done":
            return bool(shared) and all(other["checkpoints"][s]["sha256"] == committed.record["checkpoints"][s]["sha256"] for s in shared)
    if (local / PROOF).exists():
        return read_json(local / PROOF, "a proof")["of"] == proof(committed.record)
    return even_empty and not any((local / name).exists() for name in PARTS)
