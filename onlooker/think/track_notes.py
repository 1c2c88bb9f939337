"""Notes of what came and of when it was gone: whatever a note names is looked for until it is no longer there.

A model that was taught to say what comes in a second says nothing of what leaves, and a list of all that is there,
compared with the one before, invents (`docs/log.md`). So there are two short questions: what comes now, where `when`
calls for it (a trained head, a change in the picture), and for each thing that has come how many there are now. When
the answer was `gone` for `sure` seconds in a row, a line is written: with the time of the last call that brought
nothing new, if there was one shortly before, else of the first such answer. Our own; it checks its own captions against
the frames, as LiveStar does by perplexity (arXiv 2511.05299), with questions that any model may be asked.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from onlooker.core.checks import number, whole
from onlooker.core.contracts import Moment, Thought
from onlooker.core.errors import InputError
from onlooker.core.events import Noted
from onlooker.think.clock_notes import ClockNotes, clock
from onlooker.think.segment_notes import Kept

CALLS_KEPT = 8
WORDS = 4
"""Words of a thing that a question may name; a shorter one has its last word in their place."""


@dataclass
class Tracked(Kept):
    """The notes, and what has not left yet."""

    there: dict[str, list[float]] = field(default_factory=dict)
    """Of each thing, the seconds in which it was gone, since it was there last."""
    waiting: deque[str] = field(default_factory=deque)
    """What is still to be asked about the newest moment."""
    calls: deque[float] = field(default_factory=deque)
    """When `when` called and nothing came."""


@dataclass(frozen=True)
class TrackNotes(ClockNotes):
    """What came, and when it left."""

    prompt: str = "say what comes now."
    """What the model is asked first; `pocket-notes` was taught to answer this one for a second."""
    still: str = "how many {0} shapes are visible now?"
    """Asks for a thing: `{}` is the thing, `{0}`, `{1}` are its words. The default is for `pocket-notes`."""
    gone: str = "0"
    """How the answer begins when the thing is not there."""
    came: str = "came"
    """What stands behind a thing in a line that says that it came."""
    left: str = "left"
    """What is written behind a thing that has gone."""
    sure: int = 2
    """Seconds in a row in which it must be gone: it may blink, and answers may be wrong."""
    back_s: float = 3.0
    """Seconds before the first such answer in which a call may have told that it left."""
    tracked: int = 8
    """Things that are asked for, at most; the one that came first is given up for a further one."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if "{" not in self.still:
            raise InputError("still names a thing", given=self.still[:80], do='"Is the {} still there? yes or no."')
        self.asks_for("red star")
        whole("sure", self.sure, least=1, most=60)
        number("back_s", self.back_s, least=0.0, unit="seconds", do="3")
        whole("tracked", self.tracked, least=1, most=64)

    def new_state(self) -> Tracked:
        return Tracked(calling=self._calling())

    def think(self, moment: Moment, notes: Sequence[Noted], state: Tracked) -> Thought | None:
        """What comes, where it is called for; then what is still there."""
        state.waiting = deque(state.there)
        new = super().think(moment, notes, state)
        if new is None:
            return self._next(moment.time_s, state)
        if self.when is not None:
            state.calls.append(moment.time_s)
            while len(state.calls) > CALLS_KEPT:
                state.calls.popleft()
        return new

    def further(self, thought: Thought, state: Tracked) -> Thought | None:
        """The next thing that has not been asked for."""
        return self._next(thought.until_s, state)

    def write(self, thought: Thought, said: str, state: Tracked) -> str:
        """What came, line by line; or that the thing it is about has left."""
        if thought.about:
            return self._left(thought, said, state)
        things = [part.strip(" .,") for line in said.splitlines() for part in line.split(self.came)[:-1]]
        if any(things) and thought.until_s in state.calls:  # it is told what the call was about
            state.calls.remove(thought.until_s)
        for thing in filter(None, things):
            state.there.pop(thing, None)
            state.there[thing] = []
        while len(state.there) > self.tracked:
            del state.there[next(iter(state.there))]
        return super().write(thought, said, state)

    def asks_for(self, thing: str) -> str:
        """The question. Raises `InputError` for braces that no thing has words for."""
        words = thing.split()
        try:
            return self.still.replace("{}", thing).format(*(words + words[-1:] * WORDS)[:WORDS])
        except (IndexError, KeyError, ValueError) as error:
            do = "{} for the thing, {0} for its first word"
            raise InputError("still has braces for a thing or its words", given=self.still[:80], do=do) from error

    def _next(self, time_s: float, state: Tracked) -> Thought | None:
        while state.waiting:
            thing = state.waiting.popleft()
            if thing in state.there:
                return Thought(self.asks_for(thing), 0.0, time_s, 4, self.place, alone=True, about=thing)
        return None

    def _left(self, thought: Thought, said: str, state: Tracked) -> str:
        missed = state.there.get(thought.about)
        if missed is None:  # given up for others
            return ""
        if not said.strip().casefold().startswith(self.gone.casefold()):
            missed.clear()
            return ""
        missed.append(thought.until_s)
        if len(missed) < self.sure:
            return ""
        del state.there[thought.about]
        called = [at for at in state.calls if missed[0] - self.back_s <= at <= missed[0]]
        return f"{clock(max(called, default=missed[0]))} {thought.about} {self.left}"
