"""Does thinking hold up frames: lag of frames in memory while notes are decoded beside them, and without.

    python -m benchmarks.thinking_streams --model pocket --streams 4 --fps 2 --seconds 60

Every stream pushes a frame at its rate into one scheduler; in the second arm a note of up to `--longest` tokens is due
every `--every` seconds, on all streams at once. Both arms run in turn, `--rounds` times, in one process; the lag of a
frame is from being submitted to being in memory, as the scheduler reports it.
"""

import argparse
import json
import time

import numpy as np

from onlooker.core.frame import Frame
from onlooker.engine import SLO, Engine, Scheduler
from onlooker.world import make_episode


def lags(model, think: str, streams: int, fps: float, seconds: float) -> tuple[list[float], dict]:
    """Lags of all frames in seconds, and what was written and dropped."""
    engine = Engine(model, think=think)
    scheduler = Scheduler(engine, SLO(most_load=1000.0, patience_s=1e6, background_s=1e6))
    pictures = [frame.image for frame in make_episode(1, "test", duration_s=24.0).frames(fps=1.0)]
    queues = [scheduler.open(fps=None) for _ in range(streams)]
    found: list[float] = []
    began, sent = time.monotonic(), 0
    while (now := time.monotonic() - began) < seconds:
        while sent / fps <= now:
            for queue in queues:
                queue.submit(Frame(pictures[sent % len(pictures)], sent / fps))
            sent += 1
        report = scheduler.step()
        found += report.lags_s
        if report.idle:
            scheduler.wait(max(0.0, sent / fps - (time.monotonic() - began)))
    totals = [queue.session.stats() for queue in queues]
    counts = {"frames": len(found), "thoughts": sum(one.thoughts for one in totals)}
    stats = scheduler.stats()
    counts |= {"thoughts_dropped": sum(one.thoughts_dropped for one in totals)}
    counts |= {"background_dropped": stats.background_dropped, "background_deferred": stats.background_deferred}
    scheduler.close()
    return found, counts


def main() -> None:
    """Run both arms and print a row of each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="pocket")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--streams", type=int, default=4)
    parser.add_argument("--fps", type=float, default=2.0)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--every", type=float, default=10.0)
    parser.add_argument("--longest", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    from onlooker import models

    model = models.load(given.model, device=given.device)
    thinking = f"segment_notes:every_s={given.every:g},longest={given.longest}"
    arms: dict[str, tuple[list[float], list[dict]]] = {"none": ([], []), thinking: ([], [])}
    for _ in range(given.rounds):
        for think, (found, counts) in arms.items():
            more, count = lags(model, think, given.streams, given.fps, given.seconds)
            found += more
            counts.append(count)
    for think, (found, counts) in arms.items():
        figures = {
            f"lag_p{percent}_ms": round(1000 * float(np.percentile(found, percent)), 2) for percent in (50, 95, 99)
        }
        print(json.dumps({"think": think} | figures | {"rounds": counts}), flush=True)


if __name__ == "__main__":
    main()
