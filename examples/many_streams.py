"""Four streams stepped together on one model: every step encodes and reads one frame of each in one batch.

Run it with `python examples/many_streams.py`.
"""

import time

import onlooker
from onlooker.world import make_episode


def main() -> None:
    """Watch four clips side by side, then put one question to each."""
    engine = onlooker.Engine.from_pretrained("pocket-aware")
    clips = [make_episode(seed, "test", duration_s=8.0).frames(fps=1.0) for seed in range(4)]
    sessions = [engine.open() for _ in clips]
    began = time.perf_counter()
    for frames in zip(*clips, strict=True):
        engine.step(list(zip(sessions, frames, strict=True)))
    spent = time.perf_counter() - began
    watched = sum(session.frames for session in sessions)
    print(f"{watched} frames of {len(sessions)} streams in {spent:.1f} s: {watched / spent:.1f} frames a second")

    asked = [session.submit("which shape is the newest?") for session in sessions]
    while waiting := [question for question in asked if not question.done]:
        engine.step_requests(waiting)  # one pass of the language model for all that still write
    for number, question in enumerate(asked):
        print(f"stream {number}: {question.answer().text}")


if __name__ == "__main__":
    main()
