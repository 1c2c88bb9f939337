"""How many CPU cores this process may use, and how many threads each of several processes should have."""

import os
from pathlib import Path

QUOTA = Path("/sys/fs/cgroup/cpu.max")
"""Where a container says how much of a machine it has: microseconds of work in so many, or "max"."""


def cores(quota: Path = QUOTA) -> int:
    """Cores that this process may use: those it may run on, and no more than its container's share of them."""
    there = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        work, _, of = quota.read_text(encoding="utf-8").partition(" ")
        return there if work == "max" else max(1, min(there, int(work) // int(of)))
    except (OSError, ValueError):  # no container, or one that says it elsewhere
        return there


def threads_each(processes: int) -> int:
    """Threads of each of so many processes side by side: those of `OMP_NUM_THREADS` where it says so, or their share of
    the cores, 1 at least."""
    said = os.environ.get("OMP_NUM_THREADS", "")
    return int(said) if said.isdigit() and int(said) else max(1, cores() // processes)
