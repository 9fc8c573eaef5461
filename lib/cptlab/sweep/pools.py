"""The worker processes of a sweep on one machine."""

import multiprocessing
import multiprocessing.connection
import os
import time
from concurrent.futures import ProcessPoolExecutor

from cptlab.runs.execution import Execution
from cptlab.sweep.process import initialise

# glibc gives large tensors back to the kernel at once and pays a fault a page for each new one: 10,000 faults a step at 0.7M
# parameters. Read at the start of a process; other C libraries ignore it.
KEEP_MEMORY = {"MALLOC_MMAP_THRESHOLD_": str(2**32), "MALLOC_TRIM_THRESHOLD_": str(2**33)}


def local_pool(execution: Execution) -> ProcessPoolExecutor:
    """Long-lived worker processes, spawned (a fork of a process that holds torch can hang) and ending with this one."""
    for name, value in KEEP_MEMORY.items():
        os.environ.setdefault(name, value)
    return ProcessPoolExecutor(
        execution.workers,
        mp_context=multiprocessing.get_context("spawn"),
        initializer=initialise,
        initargs=(execution.threads, os.getpid()),
    )


def stop(pool: ProcessPoolExecutor, seconds: float = 0.0) -> None:
    """End the workers: each is asked to save its run, and killed after ``seconds`` (0: at once), when the run resumes from the state
    saved before. A second interrupt meanwhile kills them, too."""
    processes = list((getattr(pool, "_processes", None) or {}).values())
    until = time.monotonic() + seconds
    try:
        if seconds:
            for process in processes:
                process.terminate()
        pool.shutdown(wait=False, cancel_futures=True)
        waiting = {process.sentinel for process in processes}
        while waiting and (left := until - time.monotonic()) > 0:
            waiting -= set(multiprocessing.connection.wait(list(waiting), left))
    finally:
        for process in processes:
            process.kill()
