"""An answer is written piece by piece while frames keep coming: one step moves both.

Run it with `python examples/answer_while_watching.py`.
"""

import onlooker
from onlooker.world import make_episode


def main() -> None:
    """Put a question every six seconds and go on watching while it is answered."""
    engine = onlooker.Engine.from_pretrained("pocket-aware")
    request = None
    with engine.open() as session:
        for frame in make_episode(3, "test", duration_s=24.0).frames(fps=2.0):
            if frame.time_s in (5, 11, 17):
                request = session.submit("which shape is at the top now?")
                print(f"[{request.time_s:.1f} s] {request.question}")
            flying = [request] if request and not request.done else []
            engine.step([(session, frame)], flying)
            if flying and request and request.done:
                # It saw the stream as it was when it was put, whatever came since.
                print(f"[{frame.time_s:.1f} s] {request.answer().text}, for {request.answer().time_s:.1f} s")


if __name__ == "__main__":
    main()
