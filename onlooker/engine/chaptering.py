"""Chapters of a stream: where something new begins, and what each is about."""

from typing import TYPE_CHECKING

from onlooker.core.checks import number
from onlooker.core.contracts import ResponsePolicy
from onlooker.core.events import FrameTaken
from onlooker.core.frame import Frame
from onlooker.core.subtitles import Cue
from onlooker.engine.watching import Watch
from onlooker.respond import Rule, Surprise

if TYPE_CHECKING:
    from onlooker.engine.engine import Engine
    from onlooker.engine.session import Session

TITLE = "Say in a few words what happened."


class Chapters:
    """The chapters of one session of an engine. Feed it every frame that the session took in.

    A policy says when something new begins (by default a frame that is unlike what was seen); the chapter before it is
    given a title then: what the model answers about that stretch alone, so that a memory that has forgotten its
    beginning answers from what is left of it. A chapter is at least `least_s` long. Asking leaves no mark on the
    stream. Raises as `Watch` does.
    """

    def __init__(
        self,
        engine: "Engine",
        session: "Session",
        prompt: str = TITLE,
        policy: ResponsePolicy | None = None,
        *,
        least_s: float = 15.0,
        longest: int = 16,
    ) -> None:
        number("least_s", least_s, least=0.0, unit="seconds", do="use 15")
        self._session, self._prompt, self._least_s, self._longest = session, prompt, least_s, longest
        policy = policy or Surprise(quiet_s=least_s)
        self._watch = Watch(engine, session, [Rule("chapter", prompt, policy, 0.0)])
        self._since_s: float | None = None
        self._newest_s = 0.0

    def look(self, frame: Frame, taken: FrameTaken) -> list[Cue]:
        """The chapter that is over with this frame, if one is."""
        begins = bool(self._watch.look(frame, taken))
        over: list[Cue] = []
        if self._since_s is None:
            self._since_s = taken.time_s
        elif begins and taken.time_s - self._since_s >= self._least_s:
            over = [self._titled(self._since_s, self._newest_s, taken.time_s)]
            self._since_s = taken.time_s
        self._newest_s = taken.time_s
        return over

    def end(self, now_s: float) -> list[Cue]:
        """The last chapter, when the stream is over; nothing if no frame came."""
        if self._since_s is None:
            return []
        last, self._since_s = self._titled(self._since_s, self._newest_s, now_s), None
        return [last]

    def _titled(self, since_s: float, newest_s: float, end_s: float) -> Cue:
        answer = self._session.ask(self._prompt, since=since_s, at=newest_s, max_new_tokens=self._longest)
        return Cue(since_s, end_s, " ".join(answer.text.split()) or "...")
