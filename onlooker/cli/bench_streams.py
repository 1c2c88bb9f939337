"""onlooker bench streams: how many live streams one device holds, what keeps more from holding, and what they cost."""

import dataclasses
import gc
import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from onlooker.cli import options, placed
from onlooker.cli.bench import BenchModel, bench, load_for_timing
from onlooker.cli.loads import floors, frame_of, pictures, show_card
from onlooker.cli.output import emit, note, show_table, size_text, sound
from onlooker.cli.progress import Step, Working
from onlooker.cli.timing import machine_card
from onlooker.core.kinds import defaults, telling

if TYPE_CHECKING:
    from onlooker.cli.crowd import Crowd
    from onlooker.cli.trial import Cost, Demand, Trial
    from onlooker.core.contracts import VideoModel
    from onlooker.engine import Engine

MOST_FILLING = 2000
BAR = 40
CLIPS = 8
"""Clips that the streams show, one after the other, each stream at a place of its own."""
LONG_S = 0.25
"""A step of more seconds than that is told of: half of what a first token may take."""
HEADROOM = 2.0
"""So many times the streams that memory is counted to hold are tried: the limit is where they really do not fit, and
the count leaves a tenth of the memory free and gives each stream a tenth more than it holds."""


@bench.command()
@options.takes_methods(scheduled=True, memory="sliding_window:window_tokens=5000")
def streams(
    context: typer.Context,
    model: BenchModel = "pocket-aware",
    methods: Any = None,
    kv: options.KV = "",
    arithmetic: options.Arithmetic = "model",
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
    picture: Annotated[Path | None, typer.Option(help="Draw lag and cost against streams (PNG; eval extra).")] = None,
    dense: Annotated[
        bool, typer.Option(help="Also encoder=full, compressor=identity: with as many tokens, and as many seconds.")
    ] = True,
    stock: Annotated[bool, typer.Option(help="Also Transformers' own generate over the dense window.")] = False,
    devices: Annotated[
        str | None, typer.Option(metavar="LIST", help="Search on several at once, and add up: 0,1 or cpu,cpu.")
    ] = None,
    device: options.Device = "auto",
    dtype: options.Dtype = "auto",
    as_json: options.Json = False,
    progress: options.Progress = "auto",
) -> None:
    """Find the most live streams whose frames and answers come in time. Arrivals are simulated, all work is real.

    Example: onlooker bench streams --memory sliding_window:window_tokens=1000 --seconds 20
    """
    from onlooker.cli.curve import check_can_draw
    from onlooker.cli.trial import Demand

    demand = Demand(fps, frame_lag, first_token, questions, answer_tokens, most_frames, trial)
    options.engine_settings(methods, kv=kv)  # a typing error costs no loading
    if picture is not None:
        check_can_draw()
    if devices is not None:
        placed.report(placed.run_on_each(placed.listed(devices), context), out, picture, as_json)
        return
    working = Working(progress, as_json)
    with working.loading(model):
        loaded, weights = load_for_timing(model, dtype, device)
    how: dict[str, str] = {"kv": kv, "arithmetic": arithmetic}
    card = machine_card(loaded, weights) | floors(model, loaded) | {"demand": dataclasses.asdict(demand)} | how
    if not as_json:
        show_card(card)
    results: dict[str, Any] = {}
    found = {"bench": "streams"} | card | {"pipelines": results}
    for name, settings in _pipelines(loaded, methods, demand, dense):
        with working.counting("preparing", "trials", None) as step:
            tell = None if working.draws else _tell
            results[name] = _search(loaded, settings, how, demand, first, most, seconds, step, tell) | settings
        if not as_json:
            print(f"\n{name}: {' '.join(f'{kind}={text}' for kind, text in telling(settings).items())}")
            show_search(results[name], demand)
        if out is not None:
            out.write_text(json.dumps(sound(found)) + "\n", encoding="utf-8")
    if stock:
        found["stock"] = _stock(loaded, model, dtype, results, demand, as_json)
        if out is not None:
            out.write_text(json.dumps(sound(found)) + "\n", encoding="utf-8")
    if picture is not None:
        from onlooker.cli.curve import draw

        picture.write_bytes(draw(results, demand))
    if as_json:
        emit(found)


def _stock(
    loaded: "VideoModel", name: str, dtype: str, results: dict[str, Any], demand: "Demand", as_json: bool
) -> dict[str, Any]:
    """Transformers' own model at a question about as many tokens as the streams hold."""
    from onlooker.cli.stock import stock_question

    context = max(one["context_tokens"] for one in results.values())
    told = stock_question(loaded, name, dtype, context, demand.answer_tokens)
    if not as_json:
        print(
            f"Transformers' generate over {told['frames']} frames, {told['context_tokens']:,} tokens: "
            f"{told['first_token_ms']:.0f} ms to the first token, {told['answer_ms']:.0f} ms to the last of "
            f"{told['answer_tokens']}"
        )
    return told


def _pipelines(
    model: "VideoModel", methods: dict[str, str], demand: "Demand", dense: bool
) -> list[tuple[str, dict[str, str]]]:
    """What is compared: the methods, and dense ones, with the same tokens of history and with the same seconds."""
    plain = {**methods, "encoder": "full", "compressor": "identity"}
    pipelines = [("saving", methods)] + ([("dense", plain)] if dense else [])
    if dense and (wider := _as_many_seconds(model, methods, plain)) is not None:
        pipelines.append(("dense, equal seconds", {**plain, "memory": wider}))
    return pipelines


def _as_many_seconds(model: "VideoModel", methods: dict[str, str], plain: dict[str, str]) -> str | None:
    """The memory, with a window that holds as many frames of the dense pipeline as it does of the other; None: it has
    no window in tokens, or frames of both have as many."""
    from onlooker.core import registry
    from onlooker.engine import Engine

    memory = registry.make("memory", methods["memory"])
    window = getattr(memory, "window_tokens", None)
    sizes = []
    for settings in (methods, plain):
        chosen: Any = _of_engine(settings) | {"memory": "full"}
        with Engine(model, **chosen).open() as probe:
            for number, image in enumerate(pictures(6)):
                probe.push(frame_of(image, float(number)))
            sizes.append(sum(span.num_tokens for span in probe.store.spans if span.kind == "vision"))
    if window is None or not all(sizes) or sizes[0] == sizes[1]:
        return None
    wider = dataclasses.replace(memory, window_tokens=math.ceil(window * sizes[1] / sizes[0]))  # pyright: ignore[reportCallIssue]
    return registry.describe(wider)


def _of_engine(settings: dict[str, str]) -> dict[str, Any]:
    """The methods that an engine has; the others are a scheduler's."""
    return {kind: settings[kind] for kind in defaults()}


def _tell(trial: "Trial") -> None:
    verdict = "hold" if trial.holds else f"do not hold ({', '.join(trial.broke)})"
    note(f"{trial.streams} streams {verdict}: lag p95 {trial.frame_lag_p95_s:.3f} s, busy {trial.busy:.0%}")


def _search(
    model: "VideoModel", settings: dict[str, str], how: dict[str, str], demand: "Demand", first: int, most: int,
    seconds: float, step: Step, tell: "Callable[[Trial], None] | None",
) -> dict[str, Any]:  # fmt: skip
    from onlooker.cli.crowd import Crowd
    from onlooker.cli.verdict import by_cost, find_most, judge
    from onlooker.engine import Engine
    from onlooker.engine.preparing import prepare

    chosen: Any = _of_engine(settings) | how
    engine = Engine(model, **chosen)
    began, shown = time.perf_counter(), pictures(24, CLIPS)
    prepare(engine, demand.most_frames, shown[0], lambda name: step.to(step.done, name))  # as a server does
    prepared_s = time.perf_counter() - began
    crowd = Crowd(engine, demand, shown, MOST_FILLING, settings["schedule"])
    room = _streams_that_fit(engine, crowd.stream_bytes)
    step.to(step.done, "trials")

    def on_trial(trial: "Trial") -> None:
        step.advance()
        if tell is not None:
            tell(trial)

    tried = most if room is None else min(most, math.ceil(HEADROOM * room))
    best, trials = find_most(crowd, first, tried, seconds, on_trial)
    # Not beside the streams of a trial that did not hold, for which there may be no memory.
    costs = _costs(crowd, best, demand) if best and crowd.gather(best.streams) else []
    share = max(0.0, best.busy - _frames_share(best, costs, demand)) if best else 0.0
    found = {
        "streams": best.streams if best else 0,
        "verdict": judge(best, trials, tried).as_row(),
        "context_tokens": crowd.context_tokens,
        "history_s": crowd.history_s,
        "stream_bytes": crowd.stream_bytes,
        "bytes_by_kind": crowd.bytes_by_kind,
        "streams_that_fit": room,
        "prepared_s": prepared_s,
        "at_the_limit": dataclasses.asdict(best) if best else None,
        "costs": [dataclasses.asdict(cost) for cost in costs],
        "question_alone": crowd.question_alone() if best else {},
        "by_cost": by_cost(costs, demand, share),
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


def _costs(crowd: "Crowd", best: "Trial", demand: "Demand") -> "list[Cost]":
    """Of steps of one frame, of as many as a step had at the limit, and of full ones."""
    sizes = {1, max(1, round(best.frames_a_step)), min(demand.most_frames, best.streams)}
    return [cost for size in sorted(sizes) if (cost := crowd.cost(size)) is not None]


def _frames_share(best: "Trial", costs: "list[Cost]", demand: "Demand") -> float:
    """Share of the time that frames alone took at the limit: the rest of it was for questions."""
    size = max(1, round(best.frames_a_step))
    here = next((cost.frame_ms for cost in costs if cost.frames == size), 0.0)
    return best.streams * demand.fps * here / 1000


def _streams_that_fit(engine: "Engine", stream_bytes: int) -> int | None:
    """How many streams the device's free memory holds, with a tenth left over; None on a CPU, where nobody counts."""
    if engine.device.type != "cuda":
        return None
    import torch

    torch.cuda.empty_cache()
    free, _ = torch.cuda.mem_get_info(engine.device)
    return max(1, int(0.9 * free / stream_bytes))


def stall_lines(trials: Sequence[Mapping[str, Any]]) -> list[str]:
    """A line for every trial in which a step lasted long, or much waited for pictures: when, and of what."""
    lines = []
    for trial in trials:
        longest, who = trial["longest"], f"{trial['streams']} streams"
        if longest is not None and longest["seconds"] > LONG_S:
            took = f"a step took {longest['seconds']:.2f} s at {longest['at_s']:.1f} s"
            with_what = f"with {longest['frames']} frames and {longest['questions']} questions"
            lines.append(f"{who}: {took}, {with_what} ({longest['why'] or 'no known cause'})")
        if trial["unready_s"] > LONG_S:
            lines.append(f"{who}: {trial['unready_s']:.2f} s in which all frames that waited were being resized")
    return lines


def show_search(found: dict[str, Any], demand: "Demand") -> None:
    """Print what a search found: the curve, the verdict, and the cost of a frame."""
    headers = ["streams", "holds", "lag p50 s", "lag p95 s", "token p50 s", "token p95 s", "dropped", "a step"]
    rows = []
    for t in sorted(found["trials"], key=lambda trial: trial["streams"]):
        firsts = ["-" if t[f"first_token_p{p}_s"] is None else f"{t[f'first_token_p{p}_s']:.3f}" for p in (50, 95)]
        lags = [f"{t[f'frame_lag_p{p}_s']:.3f}" for p in (50, 95)]
        cells = [str(t["dropped"]), f"{t['frames_a_step']:.1f}", f"{t['step_ms_a_frame']:.2f}", f"{t['busy']:.0%}"]
        holds = "yes" if t["holds"] else ", ".join(t["broke"])
        rows.append([str(t["streams"]), holds, *lags, *firsts, *cells])
    show_table([*headers, "ms a frame", "busy"], rows, numbers=True)
    for line in stall_lines(found["trials"]):
        note(line)
    print(found["verdict"]["told"])
    size, context = size_text(found["stream_bytes"]), f"{found['context_tokens']:,} tokens"
    fits = (
        "" if found["streams_that_fit"] is None else f"; {found['streams_that_fit']} fit into free memory, as counted"
    )
    print(f"a stream holds {size}: {context}, {found['history_s']:.0f} s of history{fits}")
    for cost in found["costs"]:
        print(f"a step of {cost['frames']}: {cost['step_ms']:.2f} ms, {cost['frame_ms']:.2f} ms a frame")
    if found["costs"]:
        stages = found["costs"][-1]["stage_ms"]
        for stage, ms in stages.items():
            print(f"  {stage:10} {ms:8.3f} ms a frame {'#' * round(BAR * ms / max(stages.values()))}")
        note("stages are timed in steps of their own, which wait for each: together they are more than a step")
    if alone := found["question_alone"]:
        decode = f", then {alone['decode_ms']:.1f} ms a token" if "decode_ms" in alone else ""
        print(f"a question alone: {alone['first_token_ms']:.1f} ms to its first token{decode}")
    if cost := found["by_cost"]:
        note(
            f"in steps of {cost['frames_a_step']:.0f} frames, beside questions as at the limit, frames would use up "
            f"the time at {cost['streams']:.0f} streams (counted, not tried)"
        )
