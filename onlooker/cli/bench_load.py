"""onlooker bench soak: whether time and memory stay flat for many hours."""

import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from onlooker.cli import options
from onlooker.cli.bench import bench, load_for_timing
from onlooker.cli.loads import frame_of, pictures, show_card
from onlooker.cli.output import emit, note, show_table, size_text
from onlooker.cli.progress import Working
from onlooker.cli.timing import machine_card
from onlooker.core.errors import InputError

if TYPE_CHECKING:
    from onlooker.core.contracts import VideoModel


@bench.command()
@options.takes_methods(memory="sliding_window:window_tokens=256")
def soak(
    model: Annotated[
        str, typer.Option("--model", "-m", help="As for the other benches, or tiny: a model of almost no work.")
    ] = "tiny",
    methods: Any = None,
    frames: Annotated[int, typer.Option(help="Frames of the stream, one a second.", min=100)] = 100_000,
    early: Annotated[int, typer.Option(help="The frame whose step time is compared with the last's.", min=50)] = 1000,
    seconds: Annotated[
        float | None, typer.Option(help="End after so many seconds, with the frames seen by then.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Also write the JSON to this file, at every mark.")] = None,
    device: options.Device = "auto",
    dtype: options.Dtype = "auto",
    as_json: options.Json = False,
    progress: options.Progress = "auto",
) -> None:
    """Watch one stream for many hours, without its pauses: do step time and memory stay flat? A question now and then.

    Example: onlooker bench soak --frames 5000 --out soak.json
    """
    if frames <= 2 * early:
        raise InputError("a soak is longer than its beginning", given=f"{frames} frames, compared with {early}")
    options.engine_settings(methods)
    working = Working(progress, as_json)
    with working.loading(model):
        loaded, weights = _tiny(dtype, device) if model == "tiny" else load_for_timing(model, dtype, device)
    from onlooker.engine import Engine

    engine = Engine(loaded, **methods)
    # Resized before, as a scheduler does it in threads of its own: a step is what is timed.
    shown = [engine.resize(picture) for picture in pictures(24)]
    if loaded.spec.device.type == "cuda":
        engine.prepare(most_frames=1, most_tokens=256, picture=(shown[0].shape[0], shown[0].shape[1]))
    marks = {early, *(mark for part in range(1, 11) if (mark := frames * part // 10) > early)}
    card = machine_card(loaded, weights) | methods
    rows: list[dict[str, Any]] = []

    def on_row(row: dict[str, Any]) -> None:
        rows.append(row)
        if out is not None:
            out.write_text(
                json.dumps({"bench": "soak"} | card | {"rows": rows} | _verdict(rows)) + "\n", encoding="utf-8"
            )

    with working.counting("watching", "frames", frames) as step, engine.open() as session:
        _watch(engine, session, shown, frames, marks, early // 2, seconds, step, on_row)
    if len(rows) < 2:
        raise InputError(
            "the time ended before two marks", given=f"{seconds} s, {len(rows)} marks", do="more --seconds"
        )
    verdict = _verdict(rows)
    if as_json:
        emit({"bench": "soak"} | card | {"rows": rows} | verdict)
        return
    show_card(card)
    sizes = ("device_bytes", "host_bytes", "allocated_bytes", "process_bytes")
    cells = [
        [f"{r['frame']:,}", f"{r['step_ms']:.3f}", f"{r['cpu_ms']:.3f}", *(size_text(r[name]) for name in sizes)]
        for r in rows
    ]
    show_table(["frame", "step ms", "CPU ms", "device", "host", "allocated", "process"], cells, numbers=True)
    print(f"step time at frame {rows[-1]['frame']:,}: {verdict['step_time_ratio']:.3f} of that at frame {early:,}")
    note("medians; CPU time is the thread's own, for machines with other work; allocated is PyTorch's on the device")


def _watch(
    engine: Any, session: Any, shown: list[Any], frames: int, marks: set[int], width: int, seconds: float | None,
    step: Any, on_row: Callable[[dict[str, Any]], None],
) -> None:  # fmt: skip
    """Push frames until all are seen or the time is over; a row at every mark, and at the end."""
    began_all, spent, worked = time.perf_counter(), [], []
    for number in range(frames):
        frame = frame_of(shown[number % len(shown)], float(number))
        began, busy = time.perf_counter(), time.thread_time()
        session.push(frame)
        engine.wait()
        spent.append(time.perf_counter() - began)
        worked.append(time.thread_time() - busy)
        del spent[: -2 * width], worked[: -2 * width]
        if number % 500 == 499:
            session.ask("What is happening now?", max_new_tokens=4)
            step.to(number)
        over = seconds is not None and time.perf_counter() - began_all > seconds
        if number + 1 in marks or over:
            times = {"step_ms": 1000 * statistics.median(spent), "cpu_ms": 1000 * statistics.median(worked)}
            on_row({"frame": number + 1} | times | _held(session))
        if over:
            return


def _verdict(rows: list[dict[str, Any]]) -> dict[str, float]:
    """The last mark against the first."""
    first, last = rows[0], rows[-1]
    return {
        "step_time_ratio": last["step_ms"] / first["step_ms"],
        "cpu_time_ratio": last["cpu_ms"] / first["cpu_ms"],
        "device_bytes_grown": last["device_bytes"] - first["device_bytes"],
        "host_bytes_grown": last["host_bytes"] - first["host_bytes"],
        "process_bytes_grown": last["process_bytes"] - first["process_bytes"],
    }


def _held(session: Any) -> dict[str, int]:
    """Bytes of the session by tier, of PyTorch's allocator on CUDA, and of the process."""
    import torch

    held = session.stats().memory_bytes
    on_gpu = session.model.spec.device.type == "cuda"
    host = sum(size for name, size in held.items() if name.startswith("host"))
    resident = Path("/proc/self/statm")
    pages = int(resident.read_text().split()[1]) if resident.exists() else 0
    return {
        "device_bytes": sum(held.values()) - host,
        "host_bytes": host,
        "allocated_bytes": torch.cuda.memory_allocated() if on_gpu else 0,
        "process_bytes": pages * 4096,
    }


def _tiny(dtype: str, device: str) -> tuple["VideoModel", str]:
    from onlooker.models import Shape, random_model

    # Heads of 16, the least that the kernels of a GPU know.
    shape = Shape("tiny", 56, 14, 2, 64, 64, 4, 2, 64, 128, 4, 2, 640)
    return random_model(shape, dtype=dtype, device=device), "random"
