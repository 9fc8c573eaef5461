"""A worker process of a sweep: it lives for many runs, so that imports and compiled kernels are paid for once."""

import contextlib
import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from cptlab.paths import cache_dir
from cptlab.runs.request import Request, missing
from cptlab.runs.store import Store

HEARTBEAT_SECONDS = 5.0  # of a run whose ranks are other processes


def initialise(threads: int, parent: int | None = None) -> None:
    """Set up the process before torch is imported: its threads, its kernel cache, and an end with its parent."""
    os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = str(threads)
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache_dir() / "inductor"))
    os.environ.setdefault("TORCH_EXTENSIONS_DIR", str(cache_dir() / "torch-extensions"))
    os.environ.setdefault("TRITON_CACHE_DIR", str(cache_dir() / "triton"))
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    if parent is not None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides what an interrupt means
        threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    with _quiet():
        import torch

        torch.set_num_threads(threads)
        import cptlab.training.trainer  # noqa: F401  the imports are the fixed cost that a long-lived worker pays once


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


class _quiet:
    """Send what native libraries print on import and set-up to nowhere, warnings apart: a sweep shows one progress line."""

    def __enter__(self):
        sys.stdout.flush()
        self.saved = os.dup(1)
        self.nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(self.nowhere, 1)

    def __exit__(self, *_):
        sys.stdout.flush()
        os.dup2(self.saved, 1)
        os.close(self.saved)
        os.close(self.nowhere)


def work(request: Request, root: Path, execution) -> str:
    """Do what the store lacks of ``request``; returns the run's status. Waits when another process is at the same run, then serves it."""
    store = Store(root)
    with store.lock(request.id) as lock:
        if not missing(store, request):
            return _ended(store, request.id)
        if execution.ranks > 1:
            return launch(request, store, execution, lock)
        from cptlab.training.trainer import perform

        with _quiet():
            return perform(request, store, execution, lock)


def launch(request: Request, store: Store, execution, lock) -> str:
    """Train through DeepSpeed's launcher, one process a rank; the ranks never come from this process, and end with it."""
    import pickle

    from cptlab.errors import TrainingError
    from cptlab.training.trainer import failed_record

    before = _record_time(store, request.id)
    with tempfile.TemporaryDirectory(prefix="cptlab-launch-", dir=_shared_folder(store)) as folder:
        task = Path(folder) / "task.pickle"
        task.write_bytes(pickle.dumps((request, store.root.resolve(), execution, (socket.gethostname(), os.getpid()))))
        output = Path(folder) / "output"
        with output.open("wb") as stream:
            command = [*_launcher(execution), "--module", "cptlab.training.launch", str(task)]
            process = subprocess.Popen(command, stdout=stream, stderr=subprocess.STDOUT, start_new_session=True)
        try:
            while process.poll() is None:
                lock.heartbeat()  # the ranks have no lock of their own
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(HEARTBEAT_SECONDS)
        finally:
            if process.returncode is None:
                os.killpg(process.pid, signal.SIGTERM)
                process.wait()
        tail = output.read_text(errors="replace")[-3000:]
        # A failed record that was there before is another attempt's: what counts is whether the ranks wrote one now.
        wrote = _record_time(store, request.id) != before
    if not wrote and (process.returncode or missing(store, request)):
        message = f"the launcher ended with code {process.returncode}: {tail}"
        if _ended(store, request.id) == "done":  # only a measurement is lacking: the run itself has not failed
            raise TrainingError(message)
        store.write_record(request.id, failed_record(request, TrainingError.__name__, message, None))
    return _ended(store, request.id)


def _launcher(execution) -> list[str]:
    """DeepSpeed's launcher: on this machine, or as the profile says."""
    here = ["--num_gpus", str(execution.ranks), "--master_port", str(_free_port())]
    return [sys.executable, "-m", "deepspeed.launcher.runner", *(shlex.split(execution.launcher) or here)]


def _record_time(store: Store, run_id: str) -> int:
    path = store.path(run_id) / "run.json"
    return path.stat().st_mtime_ns if path.exists() else 0


def _ended(store: Store, run_id: str) -> str:
    """How the run's record says it ended; ``missing`` without one. (Its status is ``running`` for as long as we hold the lock.)"""
    return store.record(run_id)["status"] if _record_time(store, run_id) else "missing"


def _shared_folder(store: Store) -> Path:
    """A folder that the ranks of all nodes see."""
    folder = store.root / "launch"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def describe(request: Request) -> str:
    """One line for people: the run's labels and id."""
    return f"{request.id} {json.dumps(request.labels, ensure_ascii=False)}"
