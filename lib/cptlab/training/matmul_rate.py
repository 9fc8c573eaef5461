"""How fast this machine multiplies matrices: the yardstick of utilisation."""

import time
from functools import cache

import torch


@cache
def matmul_rate(precision: str, device: str = "cpu", size: int = 1024) -> float:
    """FLOPs a second of a square matrix product in ``precision`` on this process's threads: best of some tries, measured once a process."""
    dtype = {"bf16": torch.bfloat16, "fp32": torch.float32, "fp16": torch.float16}[precision]
    size = size if device == "cpu" else 8192
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))

    def once() -> float:
        started = time.perf_counter()
        a @ b
        if device != "cpu":
            torch.cuda.synchronize()
        return time.perf_counter() - started

    once()
    return 2.0 * size**3 / min(once() for _ in range(10))
