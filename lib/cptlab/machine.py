"""What this machine is good at, measured: how fast it multiplies matrices, and in which type."""

import time
from functools import cache


@cache
def matmul_rate(kind: str, device: str = "cpu", size: int | None = None) -> float:
    """FLOPs a second of a square matrix product in ``kind`` (``bf16``, ``fp32`` or ``fp16``) on this process's threads.

    The best of ten tries, of fewer where they take more than a second; measured once a process.
    """
    import torch

    dtype = {"bf16": torch.bfloat16, "fp32": torch.float32, "fp16": torch.float16}[kind]
    size = size or (1024 if device == "cpu" else 8192)
    generator = torch.Generator().manual_seed(0)  # its own: measuring must not move the process's random numbers
    a, b = (torch.randn(size, size, generator=generator).to(device, dtype) for _ in range(2))

    def once() -> float:
        started = time.perf_counter()
        a @ b
        if device != "cpu":
            torch.cuda.synchronize()
        return time.perf_counter() - started

    once()
    seconds = [once()]
    while len(seconds) < 10 and sum(seconds) < 1:
        seconds.append(once())
    return 2.0 * size**3 / min(seconds)


def bf16_is_faster(device: str = "cpu") -> bool:
    """Whether ``device`` multiplies matrices faster in bf16 than in fp32.

    On a CPU measured on one thread, for two that contend with others for the cores tell nothing, and on small matrices: a processor
    without AVX-512 takes three seconds for a single bf16 product of 1,024 rows, and its ratio of the types is much the same at 256.
    """
    if not device.startswith("cpu"):
        return matmul_rate("bf16", device, 4096) > matmul_rate("fp32", device, 4096)
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return matmul_rate("bf16", device, 256) > matmul_rate("fp32", device, 256)
    finally:
        torch.set_num_threads(threads)
