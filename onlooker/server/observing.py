"""What is told of a worker's work: to whoever observes it, and as figures of each stream."""

from typing import Any

from onlooker.core.events import Alert, Answer
from onlooker.engine.stream_queue import QueuedFrame, Taken
from onlooker.server.question import Question
from onlooker.server.stream import Stream


class Observer:
    """What a worker tells of its work, on its own thread; here nobody listens."""

    def stepped(self, num_frames: int, num_questions: int, seconds: float) -> None:
        """A step was made."""

    def took(self, stream: Stream, queued: QueuedFrame, taken: Taken) -> None:
        """A frame came into memory."""

    def answered(self, question: Question, answer: Answer) -> None:
        """A question was answered."""

    def alerted(self, alert: Alert) -> None:
        """A rule spoke."""

    def failed(self, what: str) -> None:
        """A frame, a question, a session or the engine failed."""

    def refused(self, reason: str) -> None:
        """Work was refused."""


def figures_of(stream: Stream) -> dict[str, Any]:
    """The numbers of a stream's engine session; on the worker's thread."""
    session = stream.session
    assert session is not None, "a stream is open before anyone asks for its numbers"
    stats = session.stats()
    return {
        "time_s": session.time_s,
        "frames": stats.frames,
        "frames_skipped": stats.frames_skipped,
        "frames_shrunk": stats.frames_shrunk,
        "frames_unprepared": stats.frames_unprepared,
        "frames_unsaid": stats.frames_unsaid,
        "refreshed_frames": stats.refreshed_frames,
        "tokens_seen": stats.tokens_seen,
        "tokens_kept": stats.tokens_kept,
        "answers": stats.answers,
        "blocks_parked": stats.blocks_parked,
        "blocks_forgotten": stats.blocks_forgotten,
        "stage_s": {name: round(seconds, 4) for name, seconds in stats.stage_s.items()},
        "memory_bytes": stats.memory_bytes,
    }
