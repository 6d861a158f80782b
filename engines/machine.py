"""What this machine has: cores, processor features, GPUs. Nothing is cached."""

from __future__ import annotations

import ctypes
import os
import platform
import weakref
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # see engines/engine.py
    from numpy.typing import NDArray

MAX_AUTO_THREADS = 16  # of one instance: a ResNet's layers are too small to feed more
# Features that decide which arithmetic is fast, or right, as Linux spells them.
ARITHMETIC = (
    "avx2", "fma", "avx512f", "avx_vnni", "avx512_vnni", "avx512_bf16", "avx512_fp16",
    "amx_tile", "amx_int8", "amx_bf16", "amx_fp16", "asimd", "asimddp", "i8mm", "bf16", "sve",
)  # fmt: skip


def num_cores() -> int:
    """Cores that this process may use: its affinity, cut by its cgroup's quota (`docker run --cpus`)."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text(encoding="ascii").split()
        return max(1, min(cores, int(quota) // int(period)))
    except (OSError, ValueError):  # no cgroup v2 here, or "max": no quota
        return cores


def auto_threads(workers: int = 1) -> int:
    """As many threads as one of so many processes has cores to itself."""
    return max(1, num_cores() // workers)


def cpu_name() -> str:
    """The processor's model, family and stepping, as far as the system tells."""
    info = _cpuinfo()
    parts = [info.get(key, "") for key in ("model name", "cpu family", "model", "stepping")]
    return " ".join(part for part in parts if part) or platform.processor() or platform.machine()


def describe_machine() -> str:
    """`AMD EPYC, 2 cores, avx2 fma`, for people."""
    name = _cpuinfo().get("model name") or platform.processor() or platform.machine()
    return f"{name}, {num_cores()} cores, {' '.join(cpu_features())}"


def cpu_features() -> tuple[str, ...]:
    """Those of `ARITHMETIC` that the processor has; nothing where the system does not tell."""
    info = _cpuinfo()
    flags = set((info.get("flags") or info.get("Features") or "").split())
    return tuple(name for name in ARITHMETIC if name in flags)


def num_gpus() -> int:
    """GPUs that the CUDA driver sees; 0 without a driver."""
    driver = _cuda()
    return _count(driver) if driver is not None else 0


def gpu_name() -> str | None:
    """The first GPU's name, compute capability and driver; None without one."""
    driver = _cuda()
    if driver is None or not _count(driver):
        return None
    device, version, major, minor = (ctypes.c_int(0) for _ in range(4))
    name = ctypes.create_string_buffer(256)
    driver.cuDeviceGet(ctypes.byref(device), 0)
    driver.cuDeviceGetName(name, len(name), device)
    driver.cuDeviceGetAttribute(ctypes.byref(major), 75, device)  # COMPUTE_CAPABILITY_MAJOR
    driver.cuDeviceGetAttribute(ctypes.byref(minor), 76, device)  # COMPUTE_CAPABILITY_MINOR
    driver.cuDriverGetVersion(ctypes.byref(version))
    return f"{name.value.decode(errors='replace')} sm_{major.value}{minor.value} CUDA {version.value}"


def pin_memory(array: NDArray[Any]) -> bool:
    """Page-lock an array's memory, for fast copies to the first GPU, while the array lives; False: it cannot.

    Memory that is not page-locked is copied just as rightly, by way of a buffer of the driver.
    """
    driver = _cuda()
    if driver is None or not _count(driver):
        return False
    device, context = ctypes.c_int(0), ctypes.c_void_p()
    pointer = ctypes.c_void_p(array.ctypes.data)
    if (
        driver.cuDeviceGet(ctypes.byref(device), 0)
        or driver.cuDevicePrimaryCtxRetain(ctypes.byref(context), device)
        or driver.cuCtxSetCurrent(context)
        or driver.cuMemHostRegister_v2(pointer, ctypes.c_size_t(array.nbytes), 0)
    ):
        return False
    weakref.finalize(array, driver.cuMemHostUnregister, pointer).atexit = False
    return True


def _cuda() -> ctypes.CDLL | None:
    try:
        driver = ctypes.CDLL("nvcuda.dll" if os.name == "nt" else "libcuda.so.1")
    except OSError:
        return None
    return driver if driver.cuInit(0) == 0 else None


def _count(driver: ctypes.CDLL) -> int:
    count = ctypes.c_int(0)
    return count.value if driver.cuDeviceGetCount(ctypes.byref(count)) == 0 else 0


def _cpuinfo() -> dict[str, str]:
    """The first processor's lines of /proc/cpuinfo; {} where there is none."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return {}
    lines = (line.partition(":") for line in text.split("\n\n")[0].splitlines())
    return {key.strip(): value.strip() for key, _, value in lines}
