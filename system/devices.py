"""The machine: device, precision, number of workers.

torch is imported where it is needed: predict.py runs without it.
"""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from system.messages import UserError

if TYPE_CHECKING:
    import torch

PRECISIONS = ("auto", "float32", "bfloat16", "float16", "int8")
DEVICE_HELP = "gpu: one of NVIDIA (CUDA) or Apple (MPS)"
PRECISION_HELP = (
    "numbers in which the backbone computes; auto: bfloat16 on GPUs and on CPUs with AMX, int8 on "
    "other CPUs with AVX2 (only VGG16 of ImageNet), else float32; float16: for older GPUs"
)
MAX_WORKERS = 16
CGROUPS = Path("/proc/self/cgroup")
CGROUP_FILES = Path("/sys/fs/cgroup")
BATCH_SIZES = {"cpu": 4, "cuda": 128, "mps": 32}  # of 224 pixels; benchmarks/choices.py compares


def select_device(name: str) -> torch.device:
    """Return the device called "cpu" or "gpu" (CUDA, or Apple's MPS).

    Under torchrun, each process of a machine takes the GPU of its local rank.

    Raises:
        UserError: "gpu" is asked for and there is none.
    """
    import torch

    limit_threads()
    if name == "cpu":
        return torch.device("cpu")
    if torch.cuda.is_available():
        local_rank = int(os.environ.get("LOCAL_RANK", 0))
        return torch.device("cuda", local_rank % torch.cuda.device_count())
    if torch.backends.mps.is_available():
        return torch.device("mps")
    raise UserError("--device gpu: torch finds neither a CUDA nor an MPS GPU; use --device cpu")


def select_precision(
    device: torch.device, name: str = "auto", has_int8: bool = False
) -> torch.dtype:
    """Return the dtype called `name`; "auto" is the fastest one that costs no accuracy.

    On a GPU and on a processor with AMX, that is bfloat16 if they compute in it natively. On other
    processors with AVX2, it is int8, if there is a choice (docs/performance.md).

    Args:
        has_int8: the convolutions can compute in 8-bit integers.
    """
    import torch

    if name != "auto":
        return getattr(torch, name)
    if device.type == "cuda":
        is_native = torch.cuda.get_device_capability(device) >= (8, 0)
        return torch.bfloat16 if is_native else torch.float32
    if device.type == "cpu":
        capabilities: dict = getattr(torch.cpu, "get_capabilities", dict)()
        if capabilities.get("amx_bf16"):
            return torch.bfloat16
        if has_int8 and capabilities.get("avx2"):
            return torch.int8
        if capabilities.get("avx512_bf16"):
            return torch.bfloat16
    return torch.float32


def available_cores() -> int:
    """Return how many cores this process may use: its affinity, and the limit of its cgroup."""
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return max(1, math.ceil(min([affinity or 1, *_cgroup_limits()])))


def _cgroup_limits() -> Iterator[float]:
    """Yield the cores that Linux grants to this process's cgroup, of version 1 and 2, if limited.

    In a container, the own cgroup is the root of the file system.
    """
    try:
        groups = [line.split(":", 2) for line in CGROUPS.read_text().splitlines()]
    except OSError:
        return  # another system
    for _, controllers, path in groups:
        for own in (path.strip("/"), ""):
            with contextlib.suppress(OSError, ValueError):  # no such file; "max", without a limit
                if not controllers:
                    quota, period = (CGROUP_FILES / own / "cpu.max").read_text().split()
                elif "cpu" in controllers.split(","):
                    folder = CGROUP_FILES / "cpu" / own
                    quota = (folder / "cpu.cfs_quota_us").read_text()
                    period = (folder / "cpu.cfs_period_us").read_text()
                else:
                    continue
                if int(quota) > 0:
                    yield int(quota) / int(period)


def limit_threads() -> None:
    """Let torch use no more threads than there are cores: it does not know of cgroups."""
    import torch

    if torch.get_num_threads() > available_cores():
        torch.set_num_threads(available_cores())


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Let torch use one thread, for many small steps.

    Two threads that wait for each other in each step are hardly faster, and several times as slow
    where another program needs a core.
    """
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def default_batch_size(device_type: str, image_size: int) -> int:
    """Return how many images of `image_size` pixels, at least 1, a pass of the network takes.

    Args:
        device_type: "cpu", "cuda" or "mps".
    """
    return max(1, round(BATCH_SIZES[device_type] * (224 / image_size) ** 2))


def default_workers(device_type: str) -> int:
    """Return how many workers decode images: one a core with a GPU, else one for two cores."""
    cores = available_cores()
    return min(MAX_WORKERS, max(1, cores // 2 if device_type == "cpu" else cores))


@contextlib.contextmanager
def memory_for(flags: str) -> Iterator[None]:
    """Turn an error about too little memory into a UserError.

    Args:
        flags: what asks for the memory.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        raise UserError(f"not enough memory for {flags}") from error
