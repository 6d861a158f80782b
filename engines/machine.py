"""Describe this machine: cores, processor features, GPUs. Nothing is cached."""

from __future__ import annotations

import ctypes
import os
import platform
import sys
import threading
import weakref
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # see engines/engine.py
    from numpy.typing import NDArray

BEHIND = 5  # nice levels; each is a factor of 1.25 in what a thread gets of a core
MAX_AUTO_THREADS = 16  # for one instance: a ResNet's layers are too small for more
# Processor features that decide which arithmetic is fast, or right, as Linux spells them.
ARITHMETIC = (
    "avx2", "fma", "avx512f", "avx_vnni", "avx512_vnni", "avx512_bf16", "avx512_fp16",
    "amx_tile", "amx_int8", "amx_bf16", "amx_fp16", "asimd", "asimddp", "i8mm", "bf16", "sve",
)  # fmt: skip


def num_cores() -> int:
    """Return how many cores this process may use: its affinity, limited by the quota of its cgroup."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text(encoding="ascii").split()
        return max(1, min(cores, int(quota) // int(period)))
    except (OSError, ValueError):  # no cgroup v2, or "max", which is no quota
        return cores


def num_memory_bytes() -> int:
    """Return how much memory this process may use: the machine's, limited by that of its cgroup."""
    most = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        return min(most, int(Path("/sys/fs/cgroup/memory.max").read_text(encoding="ascii")))
    except (OSError, ValueError):  # no cgroup v2, or "max", which is no limit
        return most


def auto_threads(workers: int = 1) -> int:
    """Return the cores of one of `workers` processes that share this machine equally, at least one."""
    return max(1, num_cores() // workers)


def cpu_name() -> str:
    """Return the processor's model, family and stepping, as far as the system reports them."""
    info = _cpuinfo()
    parts = [info.get(key, "") for key in ("model name", "cpu family", "model", "stepping")]
    return " ".join(part for part in parts if part) or platform.processor() or platform.machine()


def describe_machine() -> str:
    """Return a line for people, such as `AMD EPYC, 2 cores, avx2 fma`."""
    name = _cpuinfo().get("model name") or platform.processor() or platform.machine()
    return f"{name}, {num_cores()} cores, {' '.join(cpu_features())}"


def cpu_features() -> tuple[str, ...]:
    """Return the features of `ARITHMETIC` that the processor has; none if the system does not report them."""
    info = _cpuinfo()
    flags = set((info.get("flags") or info.get("Features") or "").split())
    return tuple(name for name in ARITHMETIC if name in flags)


def go_behind_the_loop(levels: int = BEHIND) -> None:
    """Give the thread, and those that it starts, a lower priority than the event loop's thread has.

    The loop needs little time, but soon: while it waits for a core, requests wait unseen, and what can no
    longer be answered in time is not refused.
    """
    if sys.platform != "linux" or threading.current_thread() is threading.main_thread():
        return  # elsewhere a priority is that of a whole process
    with suppress(OSError):
        nice = os.getpriority(os.PRIO_PROCESS, os.getpid()) + levels
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), nice)


def name_this_thread(name: str) -> None:
    """Name the thread, in 15 letters at most, for `top -H` and other tools; where possible.

    A thread that a library starts later has the name of the thread that starts it.
    """
    with suppress(OSError):
        Path(f"/proc/self/task/{threading.get_native_id()}/comm").write_text(name, encoding="ascii")


def num_gpus() -> int:
    """Return how many GPUs the CUDA driver sees; 0 without a driver."""
    driver = _cuda()
    return _count(driver) if driver is not None else 0


def gpu_name() -> str | None:
    """Return the first GPU's name, compute capability and driver version; None without a GPU."""
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
    """Page-lock an array's memory as long as the array exists, for fast copies to the first GPU.

    Return False if that is not possible. Copies are still correct then, through a buffer of the driver.
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
    """Return the CUDA driver's library, or None if there is no driver that starts."""
    try:
        driver = ctypes.CDLL("nvcuda.dll" if os.name == "nt" else "libcuda.so.1")
    except OSError:
        return None
    return driver if driver.cuInit(0) == 0 else None


def _count(driver: ctypes.CDLL) -> int:
    count = ctypes.c_int(0)
    return count.value if driver.cuDeviceGetCount(ctypes.byref(count)) == 0 else 0


def _cpuinfo() -> dict[str, str]:
    """Return the first processor's lines of /proc/cpuinfo; {} on a system without it."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return {}
    lines = (line.partition(":") for line in text.split("\n\n")[0].splitlines())
    return {key.strip(): value.strip() for key, _, value in lines}
