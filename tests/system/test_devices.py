"""system.devices: device, precision, number of workers."""

import os

import pytest
import torch

from system import devices
from system.messages import UserError

CPU, CUDA, MPS = torch.device("cpu"), torch.device("cuda", 0), torch.device("mps")


def test_gpu_without_a_gpu_is_a_users_error():
    if torch.cuda.is_available() or torch.backends.mps.is_available():
        pytest.skip("this machine has a GPU")
    with pytest.raises(UserError, match="^--device gpu: .*use --device cpu$"):
        devices.select_device("gpu")


@pytest.mark.parametrize(
    ("device_type", "size", "count"),
    [("cpu", 224, 4), ("cpu", 1024, 1), ("cpu", 112, 16), ("cuda", 448, 32)],
)
def test_a_batch_has_about_equally_many_pixels_at_any_image_size(device_type, size, count):
    assert devices.default_batch_size(device_type, size) == count


@pytest.mark.parametrize(("local_rank", "index"), [(None, 0), ("5", 1)])
def test_each_process_takes_the_gpu_of_its_local_rank(monkeypatch, local_rank, index):
    """On a machine with 4 GPUs."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    if local_rank:
        monkeypatch.setenv("LOCAL_RANK", local_rank)
    assert devices.select_device("gpu") == torch.device("cuda", index)


def test_precision_is_the_one_that_is_named():
    assert devices.PRECISIONS == ("auto", "float32", "bfloat16", "float16", "int8")
    for name in devices.PRECISIONS[1:]:
        assert devices.select_precision(CUDA, name) == getattr(torch, name)


@pytest.mark.parametrize(
    ("capability", "precision"),
    [((7, 5), torch.float32), ((8, 0), torch.bfloat16)],
)
def test_the_precision_of_a_gpu_follows_from_its_capability(monkeypatch, capability, precision):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert devices.select_precision(CUDA) == precision


@pytest.mark.parametrize(
    ("capabilities", "without_int8", "with_int8"),
    [
        ([], torch.float32, torch.float32),
        (["avx2"], torch.float32, torch.int8),
        (["avx2", "avx512_bf16"], torch.bfloat16, torch.int8),
        (["avx2", "avx512_bf16", "amx_bf16"], torch.bfloat16, torch.bfloat16),
    ],
)
def test_the_precision_of_a_processor_follows_from_its_capabilities(
    monkeypatch, capabilities, without_int8, with_int8
):
    capabilities = dict.fromkeys(capabilities, True)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
    assert devices.select_precision(CPU) == without_int8
    assert devices.select_precision(CPU, has_int8=True) == with_int8
    assert devices.select_precision(MPS, has_int8=True) == torch.float32


@pytest.mark.parametrize(
    ("cores", "with_cpu", "with_gpu"), [(1, 1, 1), (3, 1, 3), (8, 4, 8), (64, 16, 16)]
)
def test_workers_follow_from_the_cores_that_the_process_may_use(
    monkeypatch, cores, with_cpu, with_gpu
):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(cores)), raising=False)
    assert devices.default_workers("cpu") == with_cpu
    assert devices.default_workers("cuda") == devices.default_workers("mps") == with_gpu


@pytest.mark.parametrize(("cores", "workers"), [(8, 4), (None, 1)])
def test_workers_of_a_system_without_affinity(monkeypatch, cores, workers):
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: cores)
    assert devices.default_workers("cpu") == workers


CGROUPS = {
    "version 2": ("0::/\n", {"cpu.max": "150000 100000\n"}, 2),
    "version 2, own group": ("0::/a/b\n", {"a/b/cpu.max": "100000 100000\n"}, 1),
    "version 2, no limit": ("0::/\n", {"cpu.max": "max 100000\n"}, 8),
    "version 1": (
        "3:cpuset:/\n2:cpu,cpuacct:/x\n",
        {"cpu/x/cpu.cfs_quota_us": "50000\n", "cpu/x/cpu.cfs_period_us": "100000\n"},
        1,
    ),
    "version 1, no limit": (
        "2:cpu:/\n",
        {"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"},
        8,
    ),
    "none": ("", {}, 8),
}


@pytest.mark.parametrize("case", CGROUPS)
def test_the_limit_of_a_cgroup_counts_like_an_affinity(monkeypatch, tmp_path, case):
    groups, contents, cores = CGROUPS[case]
    (tmp_path / "cgroup").write_text(groups)
    for name, content in contents.items():
        (tmp_path / "files" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "files" / name).write_text(content)
    monkeypatch.setattr(devices, "CGROUPS", tmp_path / "cgroup")
    monkeypatch.setattr(devices, "CGROUP_FILES", tmp_path / "files")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    assert devices.available_cores() == cores
