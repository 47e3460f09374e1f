"""The machine: device, precision, number of workers."""

from __future__ import annotations

import os

import torch

from support.arguments import UserError

PRECISIONS = ("auto", "float32", "bfloat16", "float16")
MAX_WORKERS = 16
BATCH_SIZES = {"cpu": 4, "cuda": 128, "mps": 32}  # images; benchmarks/choices.py compares them


def select_device(name: str) -> torch.device:
    """Return the device called "cpu" or "gpu" (CUDA, or Apple's MPS).

    Under torchrun, each process of a machine takes the GPU of its local rank.

    Raises:
        UserError: "gpu" is asked for and there is none.
    """
    if name == "cpu":
        return torch.device("cpu")
    if torch.cuda.is_available():
        local_rank = int(os.environ.get("LOCAL_RANK", 0))
        return torch.device("cuda", local_rank % torch.cuda.device_count())
    if torch.backends.mps.is_available():
        return torch.device("mps")
    raise UserError("--device gpu: torch finds neither a CUDA nor an MPS GPU; use --device cpu")


def select_precision(device: torch.device, name: str = "auto") -> torch.dtype:
    """Return the dtype called `name`; "auto" is the fastest one that costs no accuracy.

    That is bfloat16 where the processor or GPU computes in it natively, else float32.
    """
    if name != "auto":
        return getattr(torch, name)
    if device.type == "cuda":
        native = torch.cuda.get_device_capability(device) >= (8, 0)
    elif device.type == "cpu":
        capabilities: dict = getattr(torch.cpu, "get_capabilities", dict)()
        native = bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))
    else:
        native = False
    return torch.bfloat16 if native else torch.float32


def default_workers(device: torch.device) -> int:
    """Return how many workers decode images: one a core with a GPU, else one for two cores."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    cores = cores or 1
    return min(MAX_WORKERS, max(1, cores // 2 if device.type == "cpu" else cores))
