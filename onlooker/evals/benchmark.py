"""What a benchmark brings: questions as records, how replies are marked, and how marks become its number."""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

from onlooker.core.records import QueryRecord, ReplyRecord
from onlooker.evals import matching
from onlooker.evals.item import Reading


@dataclass(frozen=True)
class Mark:
    """The worth of one thing that was marked, 0 to 1. A question with test points has several."""

    value: float
    what: str = ""
    """Which of several things this is: a test point, or a part of the answer."""
    counts: bool = True
    """False for marks that are reported beside the score and are no part of it."""


Marker = Callable[[QueryRecord, Sequence[ReplyRecord]], list[Mark]]
"""Marks of the replies to one question, in order of time. None of them: it cannot be marked (a judge is needed)."""
ByTask = Mapping[str, Sequence[float]]
Answered = tuple[QueryRecord, Sequence[ReplyRecord]]
"""A question and the replies to it."""


@dataclass(frozen=True)
class Benchmark:
    """One published benchmark (or a suite of our own)."""

    read: Callable[[Path, Path], Reading] | None
    """Annotation file (or folder) and folder of videos to questions."""
    strict: Marker
    """Our scorer."""
    official: Marker | None = None
    """The published scorer with its bugs; None when there is none that runs without a judge."""
    summary: Callable[[ByTask], dict[str, float]] = lambda tasks: {}
    """The benchmark's own averages, from the marks of each task."""
    formula: str = ""
    """The published score in one line."""

    realises: tuple[str, ...] = ()
    """Keys of the published systems (`onlooker/core/systems.toml`) that this benchmark stands for."""
    together: Callable[[Sequence[Answered]], dict[str, float]] = lambda answered: {}
    """Measures that no mark of a single question gives, such as a rank correlation, over all answered ones."""

    def headline(self, tasks: ByTask) -> tuple[str, float] | None:
        """The average that papers print, by its name: the last of `summary`. None where there is none."""
        found = self.summary(tasks)
        return (name := list(found)[-1], found[name]) if found else None


def benchmark(name: str) -> Benchmark:
    """The benchmark a query record names. Suites of our own are marked strictly, without further averages."""
    from onlooker.evals import readers

    if name in readers.names():
        return import_module(f"onlooker.evals.readers.{name}").BENCHMARK
    return OWN


def strict(query: QueryRecord, replies: Sequence[ReplyRecord]) -> list[Mark]:
    """Polled questions get one mark per test point; any other question one mark for its first answer."""
    if query.test_points:
        return test_points(query, replies, matching.yes_or_no if query.answer_type != "count" else _number_text)
    answers = [reply for reply in replies if reply.kind == "answer"]
    return [Mark(float(matching.is_right(query, answers[0].text)))] if answers else []


def test_points(query: QueryRecord, replies: Sequence[ReplyRecord], parse: Callable[[str], str | None]) -> list[Mark]:
    """One mark per test point: the poll at its time says what is expected there. A point without a poll is wrong."""
    polled = {round(reply.t, 3): reply.text for reply in replies if reply.kind == "poll"}
    marks = []
    for point in query.test_points:
        said = polled.get(round(float(point["t"]), 3))
        marks.append(Mark(float(said is not None and parse(said) == str(point["expect"])), f"at {point['t']} s"))
    return marks


def mean(values: Sequence[float]) -> float:
    """The plain mean; nan of nothing."""
    return sum(values) / len(values) if values else float("nan")


def group_means(tasks: ByTask, groups: Mapping[str, Sequence[str]]) -> dict[str, float]:
    """The mean of the task means of each group that has any, by group."""
    means = {name: [mean(tasks[task]) for task in members if tasks.get(task)] for name, members in groups.items()}
    return {name: mean(found) for name, found in means.items() if found}


def weighted(tasks: ByTask, groups: Mapping[str, Sequence[str]]) -> dict[str, float]:
    """The mean over all questions of each group that has any, by group."""
    pooled: dict[str, list[float]] = defaultdict(list)
    for name, members in groups.items():
        for task in members:
            pooled[name] += tasks.get(task, ())
    return {name: mean(values) for name, values in pooled.items() if values}


def _number_text(text: str) -> str | None:
    found = matching.number(text)
    return None if found is None else str(found)


OWN = Benchmark(read=None, strict=strict, formula="share of marks that are right; a mark per question or test point")
