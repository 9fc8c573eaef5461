"""One run on several ranks: both ends of DeepSpeed's launcher, which runs ``deepspeed --module cptlab.sweep.ranks TASK``."""

import argparse
import contextlib
import os
import pickle
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import psutil

from cptlab.errors import TrainingError
from cptlab.runs.lacking import lacking
from cptlab.runs.record import failed_record
from cptlab.runs.request import Request
from cptlab.runs.store import Store
from cptlab.sweep.process import initialise

CHECK_SECONDS = 5.0  # between two looks at the lock of a run whose ranks are other processes


def launch(request: Request, store: Store, execution, lock) -> str:
    """Train through DeepSpeed's launcher, one process a rank; the ranks never come from this process, and end with it."""
    before = store.record_time(request.id)
    with tempfile.TemporaryDirectory(prefix="cptlab-launch-", dir=_shared_folder(store)) as folder:
        task = Path(folder) / "task.pickle"
        task.write_bytes(pickle.dumps((request, store.resolved(), execution, (socket.gethostname(), os.getpid()))))
        output = Path(folder) / "output"
        with output.open("wb") as stream:
            command = [*_launcher(execution), "--module", "cptlab.sweep.ranks", str(task)]
            process = subprocess.Popen(command, stdout=stream, stderr=subprocess.STDOUT, start_new_session=True)
        try:
            while process.poll() is None:
                lock.check()  # the ranks have no lock of their own
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(CHECK_SECONDS)
        finally:
            if process.returncode is None:
                os.killpg(process.pid, signal.SIGTERM)
                process.wait()
        tail = output.read_text(errors="replace")[-3000:]
        # A failed record that was there before is another attempt's: what counts is whether the ranks wrote one now.
        wrote = store.record_time(request.id) not in (0, before)
    if not wrote and (process.returncode or lacking(store, request)):
        message = f"the launcher ended with code {process.returncode}: {tail}"
        if store.ended(request.id) == "done":  # only a measurement is lacking: the run itself has not failed
            raise TrainingError(message)
        store.write_record(request.id, failed_record(request, TrainingError.__name__, message, None))
    return store.ended(request.id)


def _launcher(execution) -> list[str]:
    """DeepSpeed's launcher: on this machine, or as the profile says."""
    here = ["--num_gpus", str(execution.ranks), "--master_port", str(_free_port())]
    return [sys.executable, "-m", "deepspeed.launcher.runner", *(shlex.split(execution.launcher) or here)]


def _shared_folder(store: Store) -> Path:
    """A folder that the ranks of all nodes see."""
    folder = store.root / "launch"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def main() -> None:
    parser = argparse.ArgumentParser(description="Train one run on all ranks; started by cptlab, not by hand.")
    parser.add_argument("--local_rank", type=int, default=int(os.environ.get("LOCAL_RANK", 0)))
    parser.add_argument("task", type=Path, help="file that the parent process wrote for its own ranks")
    arguments = parser.parse_args()
    request, store, execution, (host, worker) = pickle.loads(arguments.task.read_bytes())
    if host == socket.gethostname():
        threading.Thread(target=_end_with, args=(worker,), daemon=True).start()

    initialise(execution.threads)
    from cptlab.training.perform import train_or_evaluate

    train_or_evaluate(request, store, execution, lacking(store, request))


def _end_with(worker: int) -> None:
    """End this rank, and so all of them, when the process that holds the run's lock is gone."""
    while psutil.pid_exists(worker):
        time.sleep(1)
    os._exit(1)


if __name__ == "__main__":
    main()
