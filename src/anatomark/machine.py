"""What this process may use of the machine: cores, memory."""

from __future__ import annotations

import os
import time
from pathlib import Path

_GROUP = Path("/sys/fs/cgroup")  # the limits of a container (version 2, then 1)


def usable_cores() -> int:
    """Cores that this process may use: those of the machine, less where a container or the scheduler allows fewer."""
    try:
        cores = len(os.sched_getaffinity(0))
    except AttributeError:  # not on macOS and Windows
        cores = os.cpu_count() or 1
    share = _share_of_time()
    return max(1, cores if share is None else min(cores, round(share)))


def free_cores() -> int:
    """The :func:`idle_cores`, but at least one: a program always gets its share."""
    return max(1, idle_cores())


def idle_cores(over_s: float = 0.3) -> int:
    """Of :func:`usable_cores` those that have nothing to do, watched for ``over_s`` seconds; all of them where the
    system does not say (macOS, Windows)."""
    before = _idle_time()
    time.sleep(over_s if before else 0.0)
    after = _idle_time()
    if before is None or after is None or after[1] <= before[1]:
        return usable_cores()
    idle = (after[0] - before[0]) / (after[1] - before[1]) * (os.cpu_count() or 1)
    return min(usable_cores(), round(idle))


def _idle_time() -> tuple[float, float] | None:
    """(idle, all) time of all cores since the start, in the system's own unit; None where it does not say."""
    try:
        first = Path("/proc/stat").read_text(encoding="ascii").splitlines()[0]
        times = [float(t) for t in first.split()[1:9]]  # user nice system idle iowait irq softirq steal
        return times[3] + times[4], sum(times)
    except (OSError, ValueError, IndexError):
        return None


def memory_gb() -> tuple[float | None, float | None]:
    """(all, free) memory in GB that this process may use; None where the system does not say."""
    try:
        total: float | None = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    except (AttributeError, ValueError, OSError):  # Windows
        total = None
    free = _available_gb()
    limits = (_number(_GROUP / name) for name in ("memory.max", "memory/memory.limit_in_bytes"))
    limit = next((v / 1e9 for v in limits if v is not None), None)
    if total is None or limit is None or limit >= total:
        return total, free
    used = next((v for n in ("memory.current", "memory/memory.usage_in_bytes") if (v := _number(_GROUP / n))), 0.0)
    left = max(0.0, limit - used / 1e9)
    return limit, left if free is None else min(free, left)


def _available_gb() -> float | None:
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        return next(float(line.split()[1]) * 1024 / 1e9 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration, ValueError, IndexError):
        return None


def _share_of_time() -> float | None:
    """Cores' worth of time that a container may use; None where nothing limits it."""
    try:
        quota, period = (_GROUP / "cpu.max").read_text(encoding="ascii").split()
        return float(quota) / float(period)
    except (OSError, ValueError, ZeroDivisionError):
        quota_us, period_us = (_number(_GROUP / "cpu" / f"cpu.cfs_{n}_us") for n in ("quota", "period"))
        return quota_us / period_us if quota_us and period_us and quota_us > 0 else None


def _number(file: Path) -> float | None:
    try:
        return float(file.read_text(encoding="ascii"))
    except (OSError, ValueError):  # not there, or "max"
        return None
