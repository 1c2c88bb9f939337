"""The promises of thinkers."""

import dataclasses
import typing
from typing import Any

from contract_base import Opener, Stream, only_needed, run
from contract_streams import (
    moment,
)

from onlooker.core.contracts import Moment, Thought
from onlooker.core.events import Noted


class ThinkStream(Stream):
    """Moments of a quiet stream with bursts, after each of which a thought may be due; it says what it is about."""

    num_long = 1600

    def __init__(self, method: Any, seed: int = 0) -> None:
        super().__init__(method, seed)
        self.notes: list[Noted] = []

    def input(self, number: int) -> Moment:
        return dataclasses.replace(only_needed(moment(self.seed, number), self.method.needs), time_s=number * 5.0)

    def push_input(self, given: Moment) -> Thought | None:
        thought = self.method.think(given, self.notes[-64:], self.state)
        if thought is not None:
            note = Noted(given.time_s, self.method.write(thought, f"{given.kept_ratio:.3f}", self.state), "thought")
            self.notes.append(note)
            if self.method.hidden:
                self.method.keep(note, self.state)
        return thought

    def fork(self) -> "ThinkStream":
        twin = typing.cast(ThinkStream, super().fork())
        twin.notes = list(self.notes)
        return twin


def thoughts_are_whole(method: Any, opened: Opener) -> None:
    """A thought has words, a length, and is about no later time than its moment; a note of it has words, too."""
    stream = typing.cast(ThinkStream, opened(method))
    for number in range(stream.num_long):
        thought = stream.push(number)
        if thought is None:
            continue
        assert isinstance(thought, Thought) and thought.prompt.strip() and thought.longest >= 1, (
            f"no thought: {thought!r}"
        )
        assert 0 <= thought.since_s <= thought.until_s <= number * 5.0, f"not about the past: {thought!r}"
        assert "said" in method.write(thought, "said", stream.state.fork())


def think_engagement(method: Any, opened: Opener) -> None:
    """On a long stream something is written down, but not at every frame."""
    stream = opened(method)
    assert len({stream.push(number) is None for number in range(stream.num_long)}) == 2


def hidden_notes_are_kept(method: Any, opened: Opener) -> None:
    """What frames shall not see is kept for questions, the newest of it last; all else is the memory's."""
    stream = typing.cast(ThinkStream, opened(method))
    run(stream, range(stream.num_long))
    kept = list(method.kept(stream.state))
    if not method.hidden:
        assert not kept, "what the memory has is kept twice"
    else:
        assert kept and kept == stream.notes[-len(kept) :], "the newest notes were not kept"


THINK = (thoughts_are_whole, think_engagement, hidden_notes_are_kept)
