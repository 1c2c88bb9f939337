"""Where the time of a call goes: the longest kernels and copies, when the device waits, and the host's functions."""

import cProfile
import pstats
from collections.abc import Callable
from typing import Any

import torch

SHOWN = 60


def functions(call: Callable[[], object], times: int = 10) -> None:
    """Print the Python functions of some calls by their own time, and by that of all they call."""
    profiler = cProfile.Profile()
    profiler.enable()
    for _ in range(times):
        call()
    profiler.disable()
    for order in ("tottime", "cumtime"):
        print(f"\n{times} calls by {order}", flush=True)
        pstats.Stats(profiler).strip_dirs().sort_stats(order).print_stats(SHOWN + 30)


def profiled(device: torch.device, call: Callable[[], object]) -> dict[str, Any]:
    """One call: device time by kernel, host time by operator. Prints them, and gives what belongs in a row."""
    gpu = device.type == "cuda"
    activities = [torch.profiler.ProfilerActivity.CPU]
    if gpu:
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=activities) as profiler:
        call()
    events = profiler.key_averages()
    if gpu:
        # Kernels and copies only: the operators that launched them are told the same time once more.
        on_device = [e for e in events if e.device_type == torch.autograd.DeviceType.CUDA]
        listed = [(e.key, e.self_device_time_total / 1000, e.count) for e in on_device if e.self_device_time_total]
    else:
        listed = [(e.key, e.self_cpu_time_total / 1000, e.count) for e in events]
    listed.sort(key=lambda kernel: -kernel[1])
    total, count = sum(ms for _, ms, _ in listed), sum(times for *_, times in listed)
    print(f"{'device' if gpu else 'host'} busy {total:.2f} ms in {count} {'kernels' if gpu else 'operators'}")
    for name, ms, times in listed[:SHOWN]:
        print(f"{ms:9.3f} ms {times:5d} x  {name[:100]}", flush=True)
    if gpu:
        asked = sorted(((e.key, e.self_cpu_time_total / 1000, e.count) for e in events), key=lambda e: -e[1])
        print("host, by operator:")
        for name, ms, times in asked[:SHOWN]:
            print(f"{ms:9.3f} ms {times:5d} x  {name[:100]}", flush=True)
    idle = gaps(profiler) if gpu else []
    copies = [(name, times) for name, _, times in listed if "emcpy" in name or "copy" in name.lower()]
    print("copies: " + "; ".join(f"{times} x {name[:60]}" for name, times in copies), flush=True)
    return {
        "busy_ms": round(total, 3),
        "kernels": count,
        "longest": [[name[:90], round(ms, 3), times] for name, ms, times in listed[:SHOWN]],
        "copies": copies,
        "idle": idle,
    }


def gaps(profiler: Any, shown: int = 12) -> list[Any]:
    """Where the device had nothing to do between the first kernel and the last: milliseconds, the kernels before and
    after, and when."""
    device = [e for e in profiler.events() if e.device_type == torch.autograd.DeviceType.CUDA]
    device.sort(key=lambda event: event.time_range.start)
    found, last = [], device[0]
    for event in device[1:]:
        if (wait := event.time_range.start - last.time_range.end) > 0:
            at = (event.time_range.start - device[0].time_range.start) / 1000
            found.append([round(wait / 1000, 3), last.name[:60], event.name[:60], round(at, 2)])
        last = max(last, event, key=lambda one: one.time_range.end)
    span = (last.time_range.end - device[0].time_range.start) / 1000
    print(f"from the first kernel to the last {span:.2f} ms, idle {sum(gap[0] for gap in found):.2f} ms of it:")
    found.sort(reverse=True)
    for wait, before, after, at in found[:shown]:
        print(f"{wait:9.3f} ms at {at:7.2f}  between {before} and {after}", flush=True)
    return found[:shown]
