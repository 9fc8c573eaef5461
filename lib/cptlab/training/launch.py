"""What each rank runs under DeepSpeed's launcher: ``deepspeed --module cptlab.training.launch TASK``."""

import argparse
import os
import pickle
from pathlib import Path


def main() -> None:
    parser = argparse.ArgumentParser(description="Train one run on all ranks; started by cptlab, not by hand.")
    parser.add_argument("--local_rank", type=int, default=int(os.environ.get("LOCAL_RANK", 0)))
    parser.add_argument("task", type=Path, help="file that the parent process wrote for its own ranks")
    arguments = parser.parse_args()
    request, root, execution = pickle.loads(arguments.task.read_bytes())

    from cptlab.runs.worker import initialise

    initialise(execution.threads)
    from cptlab.runs.store import Store
    from cptlab.training.trainer import perform

    perform(request, Store(root), execution)


if __name__ == "__main__":
    main()
