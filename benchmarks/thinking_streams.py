"""Do words hold up frames: lag of frames in memory while notes or an answer are decoded beside them, and without.

    python -m benchmarks.thinking_streams --model pocket --streams 4 --fps 2 --seconds 60

Every stream pushes a frame at its rate into one scheduler. In the second arm a note of up to `--longest` tokens is due
every `--every` seconds, on all streams at once (small models end theirs sooner); in the third one stream is always
giving an answer of just `--longest` tokens, one after the other, that is not let end before. All arms run in turn,
`--rounds` times, in one process; the lag of a frame is from being submitted to being in memory, as the scheduler
reports it. `--arms` names others (a thinker, `none`, `answering`). With `--deciding dispider` a rule of that policy
looks at every frame of every stream, and the lag is until it has decided. `--prepare` makes the captured steps that a
server has (CUDA).
"""

import argparse
import json
import time

import numpy as np

from onlooker.core import provenance, registry
from onlooker.core.events import FrameTaken
from onlooker.core.frame import Frame
from onlooker.engine import SLO, Engine, Scheduler
from onlooker.engine.sampling import Decoding
from onlooker.respond import Rule
from onlooker.world import make_episode

ANSWERING = "answering"
QUESTION = "which shape came last?"
REQUEST = "tell me when a red star appears"


def lags(model, arm: str, given: argparse.Namespace) -> tuple[list[float], dict]:
    """Lags of all frames in seconds, and what was written and dropped."""
    streams, fps, seconds = given.streams, given.fps, given.seconds
    engine = Engine(model, think="none" if arm == ANSWERING else arm)
    if given.prepare:
        engine.prepare(most_frames=streams, most_tokens=256 * streams, picture=(128, 128))
    decoding = Decoding(given.longest, min_new_tokens=given.longest)
    answer, words = None, 0
    scheduler = Scheduler(engine, SLO(most_load=1000.0, patience_s=1e6, background_s=1e6))
    pictures = [frame.image for frame in make_episode(1, "test", duration_s=24.0).frames(fps=1.0)]
    queues = [scheduler.open(fps=None) for _ in range(streams)]
    rule = Rule("told", REQUEST, registry.make("response", given.deciding), 0.0) if given.deciding else None
    watches = {queue: queue.session.watch([rule] if rule else []) for queue in queues}
    found: list[float] = []
    began, sent = time.monotonic(), 0
    while (now := time.monotonic() - began) < seconds:
        while sent / fps <= now:
            for queue in queues:
                queue.submit(Frame(pictures[sent % len(pictures)], sent / fps))
            sent += 1
        if arm == ANSWERING and sent > 2 and (answer is None or answer.done):
            words += len(answer.said) if answer is not None else 0
            answer = scheduler.ask(queues[0], QUESTION, decoding=decoding)
        report = scheduler.step()
        ended = time.monotonic()
        for (queue, event), queued, lag in zip(report.events, report.frames_queued, report.lags_s, strict=True):
            assert isinstance(event, FrameTaken)
            if rule:
                assert not watches[queue].due(queued.frame, event), "a policy that asks beside the stream"
                watches[queue].take()
            found.append(lag + (time.monotonic() - ended if rule else 0.0))
        if report.idle:
            scheduler.wait(max(0.0, sent / fps - (time.monotonic() - began)))
    totals = [queue.session.stats() for queue in queues]
    counts = {"frames": len(found), "thoughts": sum(one.thoughts for one in totals)}
    stats = scheduler.stats()
    counts |= {"thoughts_dropped": sum(one.thoughts_dropped for one in totals)}
    words += len(answer.said) if answer is not None else 0
    counts |= {
        "words_of_answers": words,
        "background_dropped": stats.background_dropped,
        "background_deferred": stats.background_deferred,
    }
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
    parser.add_argument("--arms", nargs="+", metavar="ARM", help="none, answering or a thinker, in this order")
    parser.add_argument("--deciding", default="", metavar="POLICY", help="a rule of this policy looks at every frame")
    parser.add_argument("--prepare", action="store_true", help="captured steps, as a server makes them")
    given = parser.parse_args()
    from onlooker import models

    model = models.load(given.model, device=given.device)
    thinking = f"segment_notes:every_s={given.every:g},longest={given.longest}"
    named = given.arms or ["none", thinking, ANSWERING]
    arms: dict[str, tuple[list[float], list[dict]]] = {arm: ([], []) for arm in named}
    for _ in range(given.rounds):
        for think, (found, counts) in arms.items():
            more, count = lags(model, think, given)
            found += more
            counts.append(count)
    for think, (found, counts) in arms.items():
        figures = {
            f"lag_p{percent}_ms": round(1000 * float(np.percentile(found, percent)), 2) for percent in (50, 95, 99)
        }
        about = {"model": given.model, "streams": given.streams, "fps": given.fps, "device": str(model.spec.device)}
        about |= {"frames": len(found), "commit": provenance.commit(), "versions": provenance.versions()}
        about |= {"deciding": given.deciding}
        print(json.dumps({"arm": think} | figures | about | {"rounds": counts}), flush=True)


if __name__ == "__main__":
    main()
