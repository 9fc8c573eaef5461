"""Set-up of a process that trains: its threads, its caches, its end."""

import os
import signal
import sys
import threading
import time

from cptlab.paths import cache_dir
from cptlab.training import stopping


def initialise(threads: int, parent: int | None = None) -> None:
    """Set up the process before torch is imported: its threads, its kernel cache, and an end with its parent."""
    os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = str(threads)
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache_dir() / "inductor"))
    os.environ.setdefault("TORCH_EXTENSIONS_DIR", str(cache_dir() / "torch-extensions"))
    os.environ.setdefault("TRITON_CACHE_DIR", str(cache_dir() / "triton"))
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    if parent is not None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides what an interrupt means
        stopping.listen()
        threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    with quiet():
        import torch

        torch.set_num_threads(threads)
        import cptlab.training.perform  # noqa: F401  the imports are the fixed cost that a long-lived worker pays once


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


class quiet:
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
