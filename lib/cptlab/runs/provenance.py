"""What made a record: code, libraries, machine. Written beside the result, never part of a run's identity."""

import datetime
import functools
import hashlib
import importlib.metadata
import os
import platform
import shutil
import subprocess
import warnings
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import psutil

from cptlab.files import sha256_file
from cptlab.paths import root

LIBRARIES = ("torch", "deepspeed", "transformers", "tokenizers", "datasets", "numpy")
COMPARED = ("torch", "deepspeed", "transformers", "tokenizers", "numpy")  # these can change a run's numbers once its corpus is built
# Records and figures change while a sweep runs; they are results, not the code that made them.
CODE = (".", ":(exclude)runs", ":(exclude)figures")


class DriftWarning(UserWarning):
    """Records were made with other library versions or corpus shards than are here now."""


def _output(*command: str, cwd: Path | None = None) -> bytes | None:
    """What a command prints; None when it is absent, fails or hangs."""
    if shutil.which(command[0]) is None:
        return None
    environment = os.environ | {"GIT_OPTIONAL_LOCKS": "0"}  # looking must not get in the way of a git command of the user's
    try:
        return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, check=True, timeout=20).stdout
    except (OSError, subprocess.SubprocessError):
        return None


def _code(folder: Path) -> dict:
    """The commit, and the sha256 of what differs from it: changed tracked files and untracked ones; null when clean or without git."""
    commit = _output("git", "rev-parse", "--verify", "HEAD", cwd=folder)
    if commit is None:
        return {"commit": None, "dirty_diff_sha256": None}
    diff = _output("git", "diff", "--no-ext-diff", "--no-textconv", "--no-color", "--binary", "HEAD", "--", *CODE, cwd=folder) or b""
    untracked = _output("git", "ls-files", "-z", "--others", "--exclude-standard", "--", *CODE, cwd=folder) or b""
    digest = hashlib.sha256(diff)
    for name in sorted(filter(None, untracked.split(b"\0"))):
        path = folder / os.fsdecode(name)
        digest.update(name + b"\0" + (sha256_file(path) if path.is_file() else "").encode())
    return {"commit": commit.decode().strip(), "dirty_diff_sha256": digest.hexdigest() if diff or untracked else None}


def _cpu() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _accelerator() -> str | None:
    """Names of the NVIDIA cards as the driver tells them, or null; asking torch would import it and open the device."""
    names = _output("nvidia-smi", "--query-gpu=name", "--format=csv,noheader")
    counts = Counter(line.strip() for line in (names or b"").decode().splitlines() if line.strip())
    return ", ".join(f"{count} x {name}" for name, count in sorted(counts.items())) or None


def _machine() -> dict:
    libc = " ".join(platform.libc_ver()).strip()
    return {
        "platform": " ".join(filter(None, (platform.system(), platform.machine(), libc))),
        "cpu": _cpu(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "accelerator": _accelerator(),
    }


@functools.cache
def here() -> dict:
    """This machine, as records name theirs; looked up once. Not to be changed."""
    return _machine()


@functools.cache
def _versions() -> tuple[tuple[str, str | None], ...]:
    def version(name: str) -> str | None:
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            return None

    return (("python", platform.python_version()), *((name, version(name)) for name in LIBRARIES))


def versions() -> dict[str, str | None]:
    """Installed versions of python and the libraries that numbers depend on, without importing them; null for an absent one."""
    return dict(_versions())


@functools.cache
def _fixed(folder: Path) -> dict:
    lock = folder / "requirements.lock"
    return _code(folder) | {"lock_sha256": sha256_file(lock) if lock.is_file() else None, "machine": _machine()}


def collect() -> dict:
    """Provenance of what this process computes: code, lock, versions, machine, date (UTC, now); all but the date is looked up once."""
    fixed = _fixed(root())
    return fixed | {
        "machine": dict(fixed["machine"]),
        "versions": versions(),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def _public(version: str) -> str:
    """A version without its local tag: the build for CPU or CUDA is the machine's matter, which the record names."""
    return version.partition("+")[0]


def drift(record: dict, current: dict | None = None) -> dict[str, tuple[str, str]]:
    """What differs between a record's provenance and ``current``: field -> (recorded, now).

    Args:
        record: a ``run.json``; its ``provenance`` has ``versions`` and, if noted, ``corpus_shards`` (shard -> sha256).
        current: ``versions`` and, if known, ``corpus_shards``; default: the versions installed here.

    A field that either side lacks is no drift: records are served where torch is not installed.
    """
    recorded, current = record.get("provenance", {}), current or {"versions": versions()}
    pairs = {name: (recorded.get("versions", {}).get(name), current.get("versions", {}).get(name)) for name in COMPARED}
    found = {name: (old, new) for name, (old, new) in pairs.items() if old and new and _public(old) != _public(new)}
    old_shards, new_shards = recorded.get("corpus_shards") or {}, current.get("corpus_shards") or {}
    shared = sorted(set(old_shards) & set(new_shards))
    return found | {
        f"corpus_shards.{name}": (old_shards[name], new_shards[name]) for name in shared if old_shards[name] != new_shards[name]
    }


def warn_drift(records: Iterable[dict], current: dict | None = None) -> dict[str, Counter]:
    """Warn once (:class:`DriftWarning`) about all records that drifted, with the fields; returns field -> counts of (recorded, now)."""
    fields: dict[str, Counter] = {}
    runs = 0
    for record in records:
        differences = drift(record, current)
        runs += bool(differences)
        for name, pair in differences.items():
            fields.setdefault(name, Counter())[pair] += 1
    if fields:
        lines = [
            f"{name} {old:.16} -> {new:.16} ({count})" for name, pairs in fields.items() for (old, new), count in sorted(pairs.items())
        ]
        warnings.warn(
            f"{runs} of the runs shown were made with other versions than are installed here: {'; '.join(lines)}. They are served as "
            "recorded; `cptlab figures --fresh` trains them again here",
            DriftWarning,
            stacklevel=2,
        )
    return fields
