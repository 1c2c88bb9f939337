"""Controls: systems whose score is known beforehand, and systems that a sound harness must catch."""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable

import numpy as np

from onlooker.core.frame import Frame
from onlooker.core.records import QueryRecord
from onlooker.evals import matching
from onlooker.evals.item import Item
from onlooker.evals.systems import AskedQuestion, Said, System, Watcher


class _Scripted(Watcher):
    """A stream whose frames are only counted; a function says the answer."""

    def __init__(self, say: Callable[[AskedQuestion], str]) -> None:
        self.say, self.frames = say, 0

    def watch(self, frame: Frame) -> None:
        self.frames += 1

    def answer(self, question: AskedQuestion) -> Said:
        return Said(self.say(question), meta={"frames": self.frames})


def truth(question: AskedQuestion) -> str:
    """The right thing to say: the expected value at a test point, the right letter where options are lettered."""
    query = question.query
    if query.answer_type == "proactive" and "phrase" in query.meta:
        return _phrase_truth(question)
    for point in query.test_points:
        if abs(float(point["t"]) - question.time_s) < 1e-3:
            return str(point["expect"])
    if question.time_s != query.ask_time:  # a standing request: yes while its window is open
        return "yes" if any(start <= question.time_s <= end for start, end in query.windows) else "no"
    return matching.option_letter(query) if query.meta.get("lettered") else query.answer


def is_scored(question: AskedQuestion) -> bool:
    """Whether this answer gets a mark: polls between the test points only show when a system would speak."""
    points = question.query.test_points
    return not points or any(abs(float(point["t"]) - question.time_s) < 1e-3 for point in points)


def _phrase_truth(question: AskedQuestion) -> str:
    start, _ = question.query.windows[0]
    gold_s = start + question.query.tolerance
    asked_when = question.text == question.query.meta.get("poll")
    return ("yes" if question.time_s >= gold_s else "no") if asked_when else question.query.meta["phrase"]


class Oracle(System):
    """Knows every answer and gets every so many of the marked ones wrong, evenly and not by chance: of n marks exactly
    `floor(error_rate * n)`, so that it must score 1 - error rate."""

    def __init__(self, error_rate: float = 0.0) -> None:
        self.error_rate, self._said, self._wrong = error_rate, 0, 0

    def open(self, item: Item) -> Watcher:
        return _Scripted(self._say)

    def _say(self, question: AskedQuestion) -> str:
        if not is_scored(question):
            return truth(question)
        self._said += 1
        if int(self._said * self.error_rate + 1e-9) > self._wrong:
            self._wrong += 1
            return "wrong on purpose"
        return truth(question)


class Constant(System):
    """Says the same to everything: `always yes`, or any blind guess. It must score the share of that answer."""

    def __init__(self, text: str = "yes") -> None:
        self.text = text

    def open(self, item: Item) -> Watcher:
        return _Scripted(lambda question: self.text)


class BestConstant(System):
    """The best a player without eyes can do per category: its most frequent answer, counted on these very items.

    Counting on the test items themselves makes it an upper bound of blind play by constants.
    """

    def __init__(self, items: Iterable[Item]) -> None:
        counts: dict[str, Counter[str]] = defaultdict(Counter)
        for item in items:
            for query in item.queries:
                values = [str(point["expect"]) for point in query.test_points]
                lettered = query.meta.get("lettered")
                counts[query.task].update(values or [matching.option_letter(query) if lettered else query.answer])
        # Ties go to the answer that comes first in the alphabet, so that a rerun says the same.
        self.best = {task: min(c, key=lambda answer: (-c[answer], answer)) for task, c in counts.items()}

    def open(self, item: Item) -> Watcher:
        return _Scripted(lambda question: self.best.get(question.query.task, ""))


class BlindClock(System):
    """Says no to a standing request until `delay_s` after it was made, then yes: a clock, not a viewer."""

    def __init__(self, delay_s: float = 6.0) -> None:
        self.delay_s = delay_s

    def open(self, item: Item) -> Watcher:
        return _Scripted(self._say)

    def _say(self, question: AskedQuestion) -> str:
        query = question.query
        if "phrase" in query.meta and question.text != query.meta.get("poll"):
            return query.meta["phrase"]  # leaked by the question itself
        return "yes" if question.time_s - query.ask_time >= self.delay_s else "no"


class Wrapped(System):
    """A system around another one; its streams are plain, so every call goes through `Watcher`."""

    def __init__(self, inner: System) -> None:
        self.inner = inner

    def open(self, item: Item) -> Watcher:
        return self.inner.open(item)

    def watch_all(self, arrivals):
        return System.watch_all(self, arrivals)

    def answer_all(self, asked):
        return System.answer_all(self, asked)


class TextOnly(Wrapped):
    """The model without the video: one grey picture stands for all of it. What it scores needs no eyes."""

    def open(self, item: Item) -> Watcher:
        return _Grey(self.inner.open(item))


class _Grey(Watcher):
    def __init__(self, inner: Watcher) -> None:
        self.inner, self.seen = inner, False

    def watch(self, frame: Frame) -> None:
        if not self.seen:
            self.inner.watch(Frame(np.full_like(frame.image, 128), frame.time_s))
            self.seen = True

    def answer(self, question: AskedQuestion) -> Said:
        return self.inner.answer(AskedQuestion(question.text, question.time_s, 0.0, question.query))

    def stats(self) -> dict:
        return self.inner.stats()

    def close(self) -> None:
        self.inner.close()


class Peeking(Wrapped):
    """Looks `ahead_s` into the future before it answers. The harness must catch it (`causality.violations`)."""

    def __init__(self, inner: System, ahead_s: float = 5.0, fps: float = 1.0, honest_about_it: bool = False) -> None:
        super().__init__(inner)
        self.ahead_s, self.fps, self.honest_about_it = ahead_s, fps, honest_about_it

    def open(self, item: Item) -> Watcher:
        return _Peeker(self, item)


class _Peeker(Watcher):
    """Answers on a stream of its own that runs ahead of what it was shown."""

    def __init__(self, system: Peeking, item: Item) -> None:
        self.system, self.item = system, item

    def watch(self, frame: Frame) -> None:
        pass

    def answer(self, question: AskedQuestion) -> Said:
        stream, last_s = self.system.inner.open(self.item), 0.0
        for frame in self.item.open(self.system.fps):
            if frame.time_s > question.time_s + self.system.ahead_s:
                break
            stream.watch(frame)
            last_s = frame.time_s
        said = stream.answer(question)
        stream.close()
        return Said(said.text, said.latency, said.meta, last_s if self.system.honest_about_it else None)


class Crashing(Wrapped):
    """Crashes on every tenth answer; otherwise the system it is given. Coverage must fall, the score must not."""

    def __init__(self, inner: System, every: int = 10) -> None:
        super().__init__(inner)
        self.every, self._asked = every, 0

    def open(self, item: Item) -> Watcher:
        return _Crasher(self, self.inner.open(item))

    def trips(self) -> bool:
        """Count one answer, and say whether it is the one that crashes."""
        self._asked += 1
        return self._asked % self.every == 0


class _Crasher(Watcher):
    def __init__(self, system: Crashing, inner: Watcher) -> None:
        self.system, self.inner = system, inner

    def watch(self, frame: Frame) -> None:
        self.inner.watch(frame)

    def answer(self, question: AskedQuestion) -> Said:
        if self.system.trips():
            raise RuntimeError("crashed on purpose")
        return self.inner.answer(question)

    def stats(self) -> dict:
        return self.inner.stats()

    def close(self) -> None:
        self.inner.close()


def lot(query: QueryRecord, seed: int = 0) -> int:
    """A number that depends on the question's name and the seed only."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{query.id}".encode()).digest()[:8], "big")


class Guessing(System):
    """Draws one of the options of each question, the same one in every run with this seed."""

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed

    def open(self, item: Item) -> Watcher:
        return _Scripted(self._say)

    def _say(self, question: AskedQuestion) -> str:
        query = question.query
        options = query.options or ("yes", "no")
        place = lot(query, self.seed) % len(options)
        return chr(65 + place) if query.meta.get("lettered") else options[place]
