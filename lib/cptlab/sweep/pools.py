"""The worker processes of a sweep on one machine."""

import multiprocessing
import os
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


def stop(pool: ProcessPoolExecutor) -> None:
    """End the workers at once; their runs resume from the last saved state."""
    for process in list((pool._processes or {}).values()):
        process.kill()
    pool.shutdown(wait=False, cancel_futures=True)
