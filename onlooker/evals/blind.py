"""What can be had without looking: tables of wording and time, and the questions that the last frame answers."""

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from onlooker.core.records import QueryRecord

LAST_FRAME_TASKS = ("present", "attribute", "reading", "counting", "spatial", "glance", "proactive")
"""Tasks whose answer is on the last frame: what is there at the moment of asking, or of polling."""
_DELAYS_S = (1.0, 2.0, 3.0, 5.0, 8.0, 12.0, 20.0)
_TIMES_S = (8.0, 16.0, 24.0, 40.0, 80.0)


@dataclass(frozen=True)
class Guess:
    """One answer to guess: what is known without looking, and the answer in the two ways one may put it."""

    video: str
    form: str
    question: str
    time_s: float
    delay_s: float
    answer: str
    place: str
    """Which of the options it is; for options that differ from question to question."""


@dataclass(frozen=True)
class Table:
    """How often a table of what is known without looking is right, beside the best constant of each form."""

    name: str
    right: float
    constant: float
    num: int

    @property
    def gain(self) -> float:
        """Points (0 to 1) above the best constant."""
        return self.right - self.constant

    @property
    def noise(self) -> float:
        """Standard error of the gain, as if answers were independent."""
        return math.sqrt(0.5 / max(1, self.num))


def guesses(queries: Iterable[QueryRecord]) -> list[Guess]:
    """Every mark of these questions; answers in clock time are left out (no table gets them)."""
    out = []
    for query in queries:
        if query.answer_type == "text":
            continue
        form = str(query.meta.get("form", query.task))
        place = str(query.options.index(query.answer)) if query.answer in query.options else "-"
        points = [(float(p["t"]), str(p["expect"])) for p in query.test_points] or [(query.ask_time, query.answer)]
        for at, answer in points:
            spot = "-" if query.test_points else place
            out.append(Guess(query.video, form, query.question, query.ask_time, at - query.ask_time, answer, spot))
    return out


def _bucket(value: float, borders: Sequence[float]) -> int:
    return sum(value >= border for border in borders)


TABLES: dict[str, Callable[[Guess], tuple]] = {
    "wording": lambda g: (g.question,),
    "first words": lambda g: tuple(g.question.split()[:4]),
    "last words": lambda g: tuple(g.question.split()[-3:]),
    "time asked": lambda g: (_bucket(g.time_s, _TIMES_S),),
    "time since asking": lambda g: (_bucket(g.delay_s, _DELAYS_S),),
    "wording and time": lambda g: (g.question, _bucket(g.time_s, _TIMES_S), _bucket(g.delay_s, _DELAYS_S)),
}
"""What a blind player may look up, beside the form of the question."""


def blind_tables(marks: Sequence[Guess]) -> list[Table]:
    """Each table, learnt on one half of the videos and played on the other, both ways round."""
    videos = sorted({guess.video for guess in marks})
    half = set(videos[::2])
    parts = [[g for g in marks if g.video in half], [g for g in marks if g.video not in half]]
    out = []
    for name, known in TABLES.items():
        right = constant = 0
        for learnt, played in (parts, parts[::-1]):
            right += _play(learnt, played, known)
            constant += _play(learnt, played, lambda _: ())
        out.append(Table(name, right / max(1, len(marks)), constant / max(1, len(marks)), len(marks)))
    return out


def _play(learnt: Sequence[Guess], played: Sequence[Guess], known: Callable[[Guess], tuple]) -> int:
    """Right answers of a player that says what was most frequent: by form and what is known, else by form."""
    seen: dict[tuple, Counter[tuple[str, str]]] = defaultdict(Counter)
    for guess in learnt:
        for way, said in (("answer", guess.answer), ("place", guess.place)):
            seen[guess.form, *known(guess)][way, said] += 1
            seen[(guess.form,)][way, said] += 1 if known(guess) else 0
    right = 0
    for guess in played:
        found = seen.get((guess.form, *known(guess)))
        counts = found if found and sum(found.values()) >= 6 else seen.get((guess.form,)) or Counter()
        options = {key: num for key, num in counts.items() if key[1] != "-"}
        if options:
            way, said = min(options, key=lambda key: (-options[key], key))
            right += said == (guess.answer if way == "answer" else guess.place)
    return right


def last_frame_share(queries: Sequence[QueryRecord]) -> float:
    """Share of the questions that ground truth can answer from the last frame."""
    return sum(query.task in LAST_FRAME_TASKS for query in queries) / max(1, len(queries))
