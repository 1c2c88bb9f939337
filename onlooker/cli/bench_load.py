"""onlooker bench streams and soak: how many live streams one machine holds, and whether time and memory stay flat."""

import dataclasses
import gc
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from onlooker.cli import options
from onlooker.cli.bench import BenchModel, bench, load_for_timing
from onlooker.cli.output import emit, note, show_table, size_text, sound
from onlooker.cli.progress import Step, Working
from onlooker.cli.timing import machine_card, numbers_of
from onlooker.core.errors import InputError
from onlooker.core.kinds import defaults, telling

if TYPE_CHECKING:
    from onlooker.cli.crowd import Demand, Trial
    from onlooker.core.contracts import VideoModel
    from onlooker.engine import Engine

MOST_FILLING = 2000
BAR = 40


@bench.command()
@options.takes_methods(scheduled=True, memory="sliding_window:window_tokens=5000")
def streams(
    model: BenchModel = "pocket-aware",
    methods: Any = None,
    fps: options.Fps = 1.0,
    frame_lag: Annotated[float, typer.Option(help="Seconds in which 95% of the frames are in memory.")] = 1.0,
    first_token: Annotated[float, typer.Option(help="Seconds to the first token of 95% of the answers.")] = 0.5,
    questions: Annotated[float, typer.Option(help="Questions a minute on every stream.")] = 1.0,
    answer_tokens: Annotated[int, typer.Option(help="Tokens of an answer.", min=1, max=4096)] = 32,
    most_frames: Annotated[int, typer.Option(help="Frames in one step.", min=1, max=256)] = 16,
    first: Annotated[int, typer.Option(help="Streams of the first trial.", min=1)] = 4,
    most: Annotated[int, typer.Option(help="Most streams that are tried.", min=1)] = 512,
    trial: Annotated[float, typer.Option(help="Seconds that count in a trial.")] = 6.0,
    seconds: Annotated[float, typer.Option(help="Seconds of search for each pipeline.")] = 60.0,
    out: Annotated[Path | None, typer.Option(help="Also write the JSON to this file, as far as it is known.")] = None,
    dense: Annotated[bool, typer.Option(help="Also the same engine with encoder=full, compressor=identity.")] = True,
    device: options.Device = "auto",
    dtype: options.Dtype = "auto",
    as_json: options.Json = False,
    progress: options.Progress = "auto",
) -> None:
    """Find the most live streams whose frames and answers come in time. Arrivals are simulated, all work is real.

    Example: onlooker bench streams --memory sliding_window:window_tokens=1000 --seconds 20
    """
    from onlooker.cli.crowd import Demand

    demand = Demand(fps, frame_lag, first_token, questions, answer_tokens, most_frames, trial)
    pipelines = {"saving": methods} | (
        {"dense": {**methods, "encoder": "full", "compressor": "identity"}} if dense else {}
    )
    for chosen in pipelines.values():
        options.engine_settings(chosen)  # a typing error costs no loading
    working = Working(progress, as_json)
    with working.loading(model):
        loaded, weights = load_for_timing(model, dtype, device)
    card = machine_card(loaded, weights) | _floors(model, loaded) | {"demand": dataclasses.asdict(demand)}
    if not as_json:
        _show_card(card)
    results = {}
    for name, settings in pipelines.items():
        with working.counting("preparing", "trials", None) as step:
            tell = None if working.draws else _tell
            results[name] = _search(loaded, settings, demand, first, most, seconds, step, tell) | settings
        if not as_json:
            print(f"\n{name}: {' '.join(f'{kind}={text}' for kind, text in telling(settings).items())}")
            _show_search(results[name])
        if out is not None:
            found = sound({"bench": "streams"} | card | {"pipelines": results})
            out.write_text(json.dumps(found) + "\n", encoding="utf-8")
    if as_json:
        emit({"bench": "streams"} | card | {"pipelines": results})


def _tell(trial: "Trial") -> None:
    verdict = "hold" if trial.holds else "do not hold"
    note(f"{trial.streams} streams {verdict}: lag p95 {trial.frame_lag_p95_s:.3f} s, busy {trial.busy:.0%}")


def _search(
    model: "VideoModel", settings: dict[str, str], demand: "Demand", first: int, most: int, seconds: float,
    step: Step, tell: "Callable[[Trial], None] | None",
) -> dict[str, Any]:  # fmt: skip
    from onlooker.cli.crowd import Crowd, find_most
    from onlooker.engine import Engine

    schedule = settings["schedule"]
    methods: Any = {kind: settings[kind] for kind in defaults()}
    engine = Engine(model, **methods)
    began = time.perf_counter()
    pictures = _pictures(24)
    if model.spec.device.type == "cuda":
        with engine.open() as probe:
            taken = probe.push(_frame_of(pictures[0])).tokens_kept + 16
        most_tokens = demand.most_frames * taken + 128
        size = pictures[0].shape
        engine.prepare(
            most_frames=demand.most_frames,
            most_tokens=most_tokens,
            picture=(size[0], size[1]),
            on_step=lambda name: step.to(step.done, name),
        )
    prepared_s = time.perf_counter() - began
    crowd = Crowd(engine, demand, pictures, MOST_FILLING, schedule)
    room = _streams_that_fit(engine, crowd.stream_bytes)
    step.to(step.done, "trials")

    def on_trial(trial: "Trial") -> None:
        step.advance()
        if tell is not None:
            tell(trial)

    best, trials = find_most(crowd, first, min(most, room), seconds, on_trial)
    # At the limit once more, stage by stage: waiting for each costs time, so this trial judges nothing.
    staged = crowd.trial(best.streams, by_stage=True) if best else None
    found = {
        "streams": best.streams if best else 0,
        "limit": _limit(best, trials, most, room),
        "context_tokens": crowd.context_tokens,
        "stream_bytes": crowd.stream_bytes,
        "bytes_by_kind": crowd.bytes_by_kind,
        "streams_that_fit": room,
        "prepared_s": prepared_s,
        "at_the_limit": dataclasses.asdict(best) if best else None,
        "stage_ms_a_frame": staged.stage_ms if staged else {},
        "for_twice_as_many": _for_twice(staged, demand, crowd.stream_bytes) if staged else {},
        "trials": [dataclasses.asdict(trial) for trial in trials],
        "passes": dataclasses.asdict(engine.passes.counts),
    }
    crowd.close()
    del crowd, engine
    gc.collect()
    if model.spec.device.type == "cuda":
        import torch

        torch.cuda.empty_cache()
    return found


def _limit(best: "Trial | None", trials: "list[Trial]", most: int, room: int) -> str:
    """What kept more streams from holding."""
    streams = best.streams if best else 0
    broken = min((trial for trial in trials if not trial.holds), key=lambda trial: trial.streams, default=None)
    if streams >= room or (broken and broken.failed):
        return "memory"
    return "asked for no more" if streams >= most else "time"


def _for_twice(staged: "Trial", demand: "Demand", stream_bytes: int) -> dict[str, float]:
    """What twice as many streams would need, if a frame of theirs cost as much: share of the time (above 1: so many
    such devices, or so many times faster), and bytes of memory."""
    streams = 2 * staged.streams
    frame_s = sum(staged.stage_ms.values()) / 1000
    return {"streams": streams, "busy": streams * demand.fps * frame_s, "device_bytes": streams * stream_bytes}


def _streams_that_fit(engine: "Engine", stream_bytes: int) -> int:
    """How many streams the device's free memory holds, with a tenth left over; as good as endless on a CPU."""
    if engine.device.type != "cuda":
        return 1_000_000
    import torch

    torch.cuda.empty_cache()
    free, _ = torch.cuda.mem_get_info(engine.device)
    return max(1, int(0.9 * free / stream_bytes))


def _show_search(found: dict[str, Any]) -> None:
    headers = ["streams", "holds", "lag p50 s", "lag p95 s", "token p50 s", "token p95 s", "dropped", "a step", "busy"]
    rows = []
    for t in found["trials"]:
        firsts = ["-" if t[f"first_token_p{p}_s"] is None else f"{t[f'first_token_p{p}_s']:.3f}" for p in (50, 95)]
        lags = [f"{t[f'frame_lag_p{p}_s']:.3f}" for p in (50, 95)]
        cells = [str(t["dropped"]), f"{t['frames_a_step']:.1f}", f"{t['busy']:.0%}"]
        rows.append([str(t["streams"]), "yes" if t["holds"] else "no", *lags, *firsts, *cells])
    show_table(headers, rows, numbers=True)
    stages = found["stage_ms_a_frame"]
    print(f"{found['streams']} streams hold; limit: {found['limit']}; {size_text(found['stream_bytes'])} a stream")
    for stage, ms in stages.items():
        print(f"  {stage:10} {ms:8.3f} ms a frame {'#' * round(BAR * ms / max(stages.values()))}")
    if twice := found["for_twice_as_many"]:
        note(f"stages are timed one by one in a trial of their own; together {sum(stages.values()):.2f} ms a frame, so")
        note(
            f"{twice['streams']} streams would take {twice['busy']:.0%} of the time and "
            f"{size_text(twice['device_bytes'])} of memory"
        )


@bench.command()
@options.takes_methods(memory="sliding_window:window_tokens=256")
def soak(
    model: Annotated[
        str, typer.Option("--model", "-m", help="As for the other benches, or tiny: a model of almost no work.")
    ] = "tiny",
    methods: Any = None,
    frames: Annotated[int, typer.Option(help="Frames of the stream, one a second.", min=100)] = 100_000,
    early: Annotated[int, typer.Option(help="The frame whose step time is compared with the last's.", min=50)] = 1000,
    device: options.Device = "auto",
    dtype: options.Dtype = "auto",
    as_json: options.Json = False,
    progress: options.Progress = "auto",
) -> None:
    """Watch one stream for many hours, without its pauses: do step time and memory stay flat? A question now and then.

    Example: onlooker bench soak --frames 5000
    """
    if frames <= 2 * early:
        raise InputError("a soak is longer than its beginning", given=f"{frames} frames, compared with {early}")
    options.engine_settings(methods)
    working = Working(progress, as_json)
    with working.loading(model):
        loaded, weights = _tiny(dtype, device) if model == "tiny" else load_for_timing(model, dtype, device)
    from onlooker.engine import Engine

    engine = Engine(loaded, **methods)
    pictures = _pictures(24)
    if loaded.spec.device.type == "cuda":
        engine.prepare(most_frames=1, most_tokens=256, picture=(pictures[0].shape[0], pictures[0].shape[1]))
    marks = sorted({early, *numbers_of(",".join(str(frames * part // 4) for part in (1, 2, 3, 4)))})
    width, rows, spent, worked = early // 2, [], [], []
    with working.counting("watching", "frames", frames) as step, engine.open() as session:
        for number in range(frames):
            frame = _frame_of(pictures[number % len(pictures)], float(number))
            began, busy = time.perf_counter(), time.thread_time()
            session.push(frame)
            engine.wait()
            spent.append(time.perf_counter() - began)
            worked.append(time.thread_time() - busy)
            del spent[: -2 * width], worked[: -2 * width]
            if number % 500 == 499:
                session.ask("What is happening now?", max_new_tokens=4)
                step.to(number)
            if number + 1 in marks:
                times = {"step_ms": 1000 * statistics.median(spent), "cpu_ms": 1000 * statistics.median(worked)}
                rows.append({"frame": number + 1} | times | _held(session))
    first, last = rows[0], rows[-1]
    verdict = {
        "step_time_ratio": last["step_ms"] / first["step_ms"],
        "cpu_time_ratio": last["cpu_ms"] / first["cpu_ms"],
        "device_bytes_grown": last["device_bytes"] - first["device_bytes"],
        "host_bytes_grown": last["host_bytes"] - first["host_bytes"],
        "process_bytes_grown": last["process_bytes"] - first["process_bytes"],
    }
    card = machine_card(loaded, weights) | methods
    if as_json:
        emit({"bench": "soak"} | card | {"rows": rows} | verdict)
        return
    _show_card(card)
    sizes = ("device_bytes", "host_bytes", "allocated_bytes", "process_bytes")
    cells = [
        [f"{r['frame']:,}", f"{r['step_ms']:.3f}", f"{r['cpu_ms']:.3f}", *(size_text(r[name]) for name in sizes)]
        for r in rows
    ]
    show_table(["frame", "step ms", "CPU ms", "device", "host", "allocated", "process"], cells, numbers=True)
    print(f"step time at frame {frames:,}: {verdict['step_time_ratio']:.3f} of that at frame {early:,}")
    note("medians; CPU time is the thread's own, for machines with other work; allocated is PyTorch's on the device")


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


def _floors(name: str, model: "VideoModel") -> dict[str, Any]:
    """What the model's sizes alone say: parameters, bytes, arithmetic of a frame."""
    from onlooker.models import shape_of

    shape = shape_of(name)
    size = 2 if "16" in str(model.spec.dtype) else 4
    vision = shape.vision_layers * (4 * shape.vision_dim**2 + 2 * shape.vision_dim * shape.vision_mlp)
    text = shape.text_layers * (
        shape.text_dim * shape.head_dim * (2 * shape.query_heads + 2 * shape.kv_heads)
        + 3 * shape.text_dim * shape.text_mlp
    )
    scores = 4 * shape.vision_layers * shape.patches**2 * shape.vision_dim
    return {
        "parameters": shape.parameters,
        "weight_bytes": size * shape.parameters,
        "language_weight_bytes": size * text,
        "frame_tokens": shape.frame_tokens,
        "dense_encode_gflop": (2 * vision * shape.patches + scores) / 1e9,
        "read_gflop_per_token": 2 * text / 1e9,
    }


def _show_card(card: dict[str, Any]) -> None:
    for key, value in card.items():
        if isinstance(value, dict):
            value = ", ".join(f"{name.replace('_', ' ')} {number:g}" for name, number in value.items())
        elif "bytes" in key:
            value = size_text(value)
        elif isinstance(value, int | float):
            value = f"{value:,.4g}" if isinstance(value, float) else f"{value:,}"
        print(f"{key.replace('_', ' ')}: {value}")
    print()


def _pictures(count: int) -> list[Any]:
    """Moving Pocket World pictures."""
    from onlooker.world import make_episode

    return [frame.image for frame in make_episode(3, "test", count).frames(fps=1.0)]


def _frame_of(image: Any, time_s: float = 0.0) -> Any:
    from onlooker.core.frame import Frame

    return Frame(image, time_s)
