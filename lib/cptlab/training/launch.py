"""What each rank runs under DeepSpeed's launcher: ``deepspeed --module cptlab.training.launch TASK``."""

import argparse
import os
import pickle
import socket
import threading
import time
from pathlib import Path

import psutil


def main() -> None:
    parser = argparse.ArgumentParser(description="Train one run on all ranks; started by cptlab, not by hand.")
    parser.add_argument("--local_rank", type=int, default=int(os.environ.get("LOCAL_RANK", 0)))
    parser.add_argument("task", type=Path, help="file that the parent process wrote for its own ranks")
    arguments = parser.parse_args()
    request, root, execution, (host, worker) = pickle.loads(arguments.task.read_bytes())
    if host == socket.gethostname():
        threading.Thread(target=_end_with, args=(worker,), daemon=True).start()

    from cptlab.runs.worker import initialise

    initialise(execution.threads)
    from cptlab.runs.store import Store
    from cptlab.training.trainer import perform

    perform(request, Store(root), execution)


def _end_with(worker: int) -> None:
    """End this rank, and so all of them, when the process that holds the run's lock is gone."""
    while psutil.pid_exists(worker):
        time.sleep(1)
    os._exit(1)


if __name__ == "__main__":
    main()
