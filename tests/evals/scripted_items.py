"""Small made-up items for tests of the harness: pictures whose grey level is their second, and questions about it."""

from collections.abc import Iterator

import numpy as np

from onlooker.core.frame import Frame
from onlooker.core.records import QueryRecord, VideoRecord
from onlooker.evals.item import Item
from onlooker.evals.systems import AskedQuestion, Said, System, Watcher


def frames_of(seconds: int, fps: float, break_at: float | None = None) -> Iterator[Frame]:
    for k in range(int(seconds * fps)):
        if break_at is not None and k / fps >= break_at:
            raise OSError("the disk is gone")
        yield Frame(np.full((16, 16, 3), (7 * k + 20) % 200, np.uint8), k / fps)


def query(video: str, number: int, ask_s: float, answer: str = "yes", **more) -> QueryRecord:
    return QueryRecord(
        **({
            "id": f"{video}-{number}", "video": video, "benchmark": "pocketworld", "task": f"task{number % 2}",
            "family": "realtime", "ask_time": ask_s, "question": f"question {number}?", "answer": answer,
        } | more)
    )  # fmt: skip


def item(name: str, seconds: int = 10, asks=(2.5, 5.5), answers=("yes", "no"), break_at=None, queries=None) -> Item:
    asked = queries or [query(name, n, at, answer) for n, (at, answer) in enumerate(zip(asks, answers, strict=True))]
    return Item(VideoRecord(name, "", float(seconds), 1.0), tuple(asked), lambda fps: frames_of(seconds, fps, break_at))


def many(count: int = 20) -> list[Item]:
    """Videos with five questions each, of which three are answered yes."""
    asks, answers = (1.5, 3.5, 4.5, 6.5, 8.5), ("yes", "no", "yes", "no", "yes")
    return [item(f"v{n:02d}", 10, asks, answers) for n in range(count)]


class Honest(System):
    """Answers with the grey level of the newest picture and how many it has seen."""

    def open(self, item: Item) -> Watcher:
        return _Looker()


class _Looker(Watcher):
    def __init__(self):
        self.last, self.seen = None, 0

    def watch(self, frame):
        self.last, self.seen = frame, self.seen + 1

    def answer(self, question: AskedQuestion) -> Said:
        assert self.last is not None
        return Said(f"{self.last.image[0, 0, 0]} {self.seen}", latest_used_s=self.last.time_s)
