"""Deadlines at four fifths of the load: steps of many frames against one frame a step in the order of arrival."""

import json
import random
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from moving_pictures import make_frames

from onlooker.core.events import FrameTaken
from onlooker.core.frame import Frame
from onlooker.engine import Engine
from onlooker.engine.scheduler import SLO, DegradeLevel, Scheduler

ROWS = Path(__file__).parents[2] / "benchmarks" / "results" / "bench_streams_h100_202611.json"
LOAD, MOST, WARM_S, SECONDS = 0.8, 16, 1.0, 3


class Clock:
    """A clock that moves when it is told to."""

    def __init__(self) -> None:
        self.time = 0.0

    def __call__(self) -> float:
        return self.time


def step_cost() -> tuple[float, float]:
    """Seconds of a step before its first frame, and of a frame: a line through what steps took on a card."""
    costs = json.loads(ROWS.read_text(encoding="utf-8"))["pipelines"]["saving"]["costs"]
    frame_s, base_s = np.polyfit([one["frames"] for one in costs], [one["step_ms"] / 1e3 for one in costs], 1)
    return float(base_s), float(frame_s)


def missed(engine: Engine, monkeypatch: pytest.MonkeyPatch, streams: int, most_frames: int) -> float:
    """The share of frames that were not in memory within a second, of so many streams of one frame a second each."""
    clock, (base_s, frame_s) = Clock(), step_cost()

    def costed(arrivals, requests, looking=None):
        clock.time += base_s + frame_s * len(arrivals)
        return [FrameTaken(frame.time_s, 0, 1, 1, False, None) for _, frame in arrivals], []

    monkeypatch.setattr(engine, "advance", costed)
    monkeypatch.setattr("onlooker.engine.scheduler.time", SimpleNamespace(perf_counter=clock, monotonic=clock))
    levels = [DegradeLevel("everything")]
    scheduler = Scheduler(engine, SLO(most_frames=most_frames, workers=0), levels=levels, now=clock)
    queues = [scheduler.adopt(engine.open()) for _ in range(streams)]
    rng, images = random.Random(0), [frame.image for frame in make_frames(5)]
    phases = [rng.random() for _ in queues]
    coming = sorted((second + phase, n) for n, phase in enumerate(phases) for second in range(SECONDS))
    submitted = in_time = 0
    while coming or any(queue.is_waiting for queue in queues):
        while coming and coming[0][0] <= clock.time:
            at, n = coming.pop(0)
            queues[n].submit(Frame(images[int(at)], at), arrived_s=at)
            submitted += at >= WARM_S
        report = scheduler.step()
        taken = zip(report.frames_queued, report.lags_s, strict=True)
        in_time += sum(queued.arrived_s >= WARM_S and lag <= 1.0 for queued, lag in taken)
        if report.idle and coming:
            clock.time = coming[0][0]
    scheduler.close()
    monkeypatch.undo()
    return 1 - in_time / submitted


@pytest.mark.proves("streamdiffusionv2", 1)
def test_steps_of_many_keep_deadlines_that_one_by_one_misses(tiny_model, monkeypatch):
    base_s, frame_s = step_cost()
    streams = int(LOAD * MOST / (base_s + frame_s * MOST))
    engine = Engine(tiny_model, memory="last_frames:frames=1", encoder="full", compressor="stc_pruner:keep=1")
    together = missed(engine, monkeypatch, streams, MOST)
    one_by_one = missed(engine, monkeypatch, streams, 1)
    assert together < 0.01 and one_by_one > 0.10, (streams, together, one_by_one)
