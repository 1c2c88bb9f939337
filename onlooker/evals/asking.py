"""When each question is put, and in which words: once, at test points, again and again, or as part of a dialogue."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

from onlooker.core.records import QueryRecord
from onlooker.evals import matching


@dataclass(frozen=True)
class Due:
    """One time at which a question is put.

    A query's `meta` may hold `prompt` (the words of the question), `poll` (the words of a poll), `poll_every_s` and
    `poll_until_s` (a standing request), `until_yes` (the polls end with the first yes, as the published one has it).
    """

    query: QueryRecord
    time_s: float
    kind: Literal["answer", "poll", "unprompted"] = "answer"
    thread: str = ""
    """Dues of one thread are put one after the other, because later words hang on earlier replies."""

    @property
    def since_s(self) -> float:
        """The earliest time the answer may use; a negative start counts back from the question."""
        start = self.query.context[0]
        return max(0.0, self.time_s + start) if start < 0 else start


def schedule(queries: Iterable[QueryRecord]) -> list[Due]:
    """All times at which these questions are put, in order."""
    return sorted((due for query in queries for due in _dues(query)), key=lambda due: due.time_s)


def _dues(query: QueryRecord) -> list[Due]:
    times = {round(float(point["t"]), 3) for point in query.test_points}
    every_s, thread = query.meta.get("poll_every_s"), ""
    if every_s:
        thread = query.id if "until_yes" in _flags(query) else ""
        step, until_s = 1, float(query.meta["poll_until_s"])
        while query.ask_time + step * every_s <= until_s + 1e-9:
            times.add(round(query.ask_time + step * every_s, 3))
            step += 1
    if times:
        return [Due(query, time_s, "poll", thread) for time_s in sorted(times)]
    return [Due(query, query.ask_time, "answer", query.group if query.history == "own" else "")]


def _flags(query: QueryRecord) -> tuple[str, ...]:
    return tuple(query.meta.get("flags", ()))


@dataclass
class History:
    """What has been said on one video, as far as later questions hang on it."""

    turns: dict[str, list[tuple[str, str]]] = field(default_factory=dict)
    done: set[str] = field(default_factory=set)

    def is_over(self, due: Due) -> bool:
        """Whether the polls of this question have ended."""
        return due.kind == "poll" and due.query.id in self.done

    def words(self, due: Due) -> str:
        """What the system is asked: the prompt, after its own dialogue where the protocol shows that."""
        query = due.query
        text = str(query.meta.get("poll" if due.kind == "poll" else "prompt") or query.question)
        if query.history != "own":
            return text
        before = "".join(f"Question: {asked}\nAnswer: {said}\n" for asked, said in self.turns.get(query.group, ()))
        return f"{before}Question: {text}\nAnswer:" if before else text

    def heard(self, due: Due, text: str) -> Due | None:
        """Note a reply; the question that follows from it, if one does."""
        query = due.query
        if query.history == "own":
            self.turns.setdefault(query.group, []).append((query.question, text))
        # The published test: "yes" anywhere in the reply. The strict scorer reads the polls again by its own rule.
        if due.kind == "poll" and "until_yes" in _flags(query) and "yes" in text.lower():
            self.done.add(query.id)
            return Due(query, due.time_s, "unprompted", query.id)
        return None


def says_yes(text: str) -> bool:
    """Strictly: the first yes or no of a reply is a yes."""
    return matching.yes_or_no(text) == "yes"
