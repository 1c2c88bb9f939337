"""Commentary without end: what is seen now, in a few words, into a memory of bounded size."""

from typing import TYPE_CHECKING

from onlooker.core.contracts import ResponsePolicy
from onlooker.core.events import FrameTaken
from onlooker.core.frame import Frame
from onlooker.core.subtitles import Cue
from onlooker.engine.watching import Watch
from onlooker.respond import Clock, Rule

if TYPE_CHECKING:
    from onlooker.engine.engine import Engine
    from onlooker.engine.session import Session

PROMPT = "Say in a few words what happens now."
SHOWN_S = 4.0
"""Seconds for which a text is shown at most."""


class Narration:
    """The commentary of one session, made by `Session.narrate`. Feed it every frame that the session took in.

    A text goes into the memory (kind caption), where the next one sees it: with a memory that keeps text long and video
    short (`streaming_vlm`) this is StreamingVLM's commentary (arXiv 2510.09608), and step time and bytes stay flat. The
    policy says when there is something to say: each second (`clock`), at a trained model's word (`silence`,
    VideoLLM-online), when the last text no longer fits (`sved`, LiveStar). The same text is not told twice in a row,
    nor one that begins with `silence`.
    """

    def __init__(
        self,
        engine: "Engine",
        session: "Session",
        prompt: str = PROMPT,
        policy: ResponsePolicy | None = None,
        *,
        longest: int = 20,
        silence: str = "...",
        remember: bool = True,
    ) -> None:
        """`longest` is the most tokens of a text; `remember` writes texts into the memory. Raises as `Watch` does."""
        policy = policy or Clock(period_s=1.0, first_s=0.0)
        rule = Rule("narration", prompt, policy, 0.0, "note" if remember else "answer", longest, silence)
        self._watch = Watch(engine, session, [rule])
        self._told: tuple[float, str] | None = None

    def look(self, frame: Frame, taken: FrameTaken) -> list[Cue]:
        """Let it speak, if it wants to, after a frame that the session took in; the texts whose time is over."""
        before = self._watch.status()[0].alerts
        self._watch.look(frame, taken)
        (now,) = self._watch.status()
        if now.alerts == before or now.said_s is None:
            return []
        over, self._told = self._over(now.said_s), (now.said_s, now.said)
        return over

    @property
    def newest(self) -> tuple[float, str] | None:
        """The stream time and the text of what was said last."""
        return self._told

    def end(self, now_s: float) -> list[Cue]:
        """The last text, when the stream is over."""
        over, self._told = self._over(now_s), None
        return over

    def _over(self, next_s: float) -> list[Cue]:
        if self._told is None:
            return []
        start_s, text = self._told
        return [Cue(start_s, max(start_s + 0.5, min(start_s + SHOWN_S, next_s)), text)]
