"""How fast this machine multiplies matrices, measured in a process of its own: this one stays without torch and keeps its threads."""

import contextlib
import json
import os
import socket
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from importlib import metadata

from cptlab.files import atomic_json
from cptlab.paths import cache_dir
from cptlab.runs.provenance import here

DAY = 86400.0  # that a measurement serves
LIMIT = 120.0  # seconds
CODE = """
import json, sys, torch
threads, compute = int(sys.argv[1]), sys.argv[2]
torch.set_num_threads(threads)
from cptlab.machine import bf16_is_faster, matmul_rate
compute = ("bf16" if bf16_is_faster() else "fp32") if compute == "auto" else compute
print(json.dumps({"compute": compute, "rate": matmul_rate(compute)}))
"""


@dataclass(frozen=True)
class Calibration:
    """``rate``: FLOPs a second of a matrix product in ``compute`` on the threads of one worker; ``time``: when it was measured."""

    compute: str
    rate: float
    time: float


def calibration(threads: int, compute: str, measure: bool = True) -> Calibration | None:
    """The rate of one worker of ``threads``. It is kept in the cache for a day. None where torch is missing, or nothing was measured
    yet and ``measure`` is False."""
    try:
        torch = metadata.version("torch")
    except metadata.PackageNotFoundError:
        return None
    path = cache_dir() / "calibration.json"
    key = json.dumps([socket.gethostname(), here(), threads, compute, torch], sort_keys=True)
    try:
        known = json.loads(path.read_text(encoding="utf-8"))
        found = Calibration(**known[key])
        if time.time() - found.time < DAY:
            return found
    except (OSError, ValueError, KeyError, TypeError):
        known = {}
    if not measure:
        return None
    environment = os.environ | {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))
    try:
        command = [sys.executable, "-c", CODE, str(threads), compute]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=LIMIT, check=True)
        found = Calibration(**json.loads(done.stdout.splitlines()[-1]), time=time.time())
    except (OSError, subprocess.SubprocessError, ValueError, IndexError, TypeError):
        return None
    with contextlib.suppress(OSError):  # a cache that cannot be written to: it is measured again the next time
        atomic_json(path, (known if isinstance(known, dict) else {}) | {key: asdict(found)})
    return found
