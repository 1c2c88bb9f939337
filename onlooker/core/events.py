"""What a session says: a frame was taken in, an answer was given, a rule spoke, something failed, the session ended."""

from dataclasses import dataclass, field
from typing import Literal

from onlooker.core.frame import Frame
from onlooker.core.spans import SpanKind

FinishReason = Literal["stop", "length", "cancelled"]
Then = Literal["alert", "answer", "note", "delegate"]
"""What comes of a rule that speaks: it is told; the model answers the rule's prompt, and that is told; the answer is
written into the memory and nobody is told; or the question is handed on, with its evidence, to somebody better."""


@dataclass(frozen=True, slots=True)
class Citation:
    """A span of the stream that an answer rests on."""

    start_s: float
    end_s: float
    share: float
    """Share of the answer's attention to frames and notes that fell on this span (0 to 1)."""
    recalled: float
    """Share of the language model's layers that could see this span when the answer was made (0 to 1)."""
    kind: SpanKind = "vision"
    """What is cited: frames, or a note of some kind."""


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens an answer took."""

    context_tokens: int
    """Tokens of the stream that the answer could see (mean over layers, rounded)."""
    prompt_tokens: int
    new_tokens: int


@dataclass(frozen=True, slots=True)
class AnswerTiming:
    """Seconds from the question to the first token and to the last."""

    first_token_s: float
    total_s: float


@dataclass(frozen=True, slots=True)
class Answer:
    """What the model said to a question asked at stream time `time_s` (seconds)."""

    text: str
    question: str
    time_s: float
    citations: tuple[Citation, ...]
    usage: Usage
    timing: AnswerTiming
    finish: FinishReason


@dataclass(frozen=True, slots=True)
class FrameTaken:
    """One frame was encoded, compressed and remembered; or it waits for those that are encoded with it."""

    time_s: float
    number: int
    """Number of the frame in its session, from 0."""
    tokens_seen: int
    """Visual tokens, before compression, of the frames that the compressor gave out when this one came: of this one, or
    of several."""
    tokens_kept: int
    """How many of them were kept and read."""
    refreshed: bool
    """Was the whole frame computed densely in the vision tower?"""
    recomputed_ratio: float | None
    """Share of the tower's work on tokens that was done anew; None unless the engine traces its work."""
    held: bool = False
    """It waits for a later frame, to be encoded with it or to be given out by the compressor; a question reads it at
    once, as if none came. Its tokens are counted with the frame at which they are given out."""
    skipped: bool = False
    """The gate did not have it encoded; the stream's time goes on."""


@dataclass(frozen=True, slots=True)
class Alert:
    """A rule's condition held long enough: the model said yes to its prompt."""

    rule: str
    """Name of the rule."""
    prompt: str
    time_s: float
    """Time of the frame on which the rule spoke."""
    probability: float | None
    """Probability of yes then; None for a policy that does not ask for it."""
    evidence_s: float
    """Time of the frame on which yes was surest since it last was less likely than no. What a rule waits for may be
    out of sight again when it speaks."""
    evidence: Frame | None = None
    """That frame; None among a session's events, which keep no pictures."""
    then: Then = "alert"
    """Is it told as it is (`alert`), with what the model said (`answer`), or to be answered by another (`delegate`)?"""
    text: str | None = None
    """What the model said."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a rule decided at one frame."""

    time_s: float
    outcome: str
    """silent, speak or delegate."""
    score: float | None
    """What its policy decided by."""
    threshold: float | None
    """Where that counted."""


@dataclass(frozen=True, slots=True)
class Noted:
    """A text was written into the memory."""

    time_s: float
    text: str
    kind: SpanKind


@dataclass(frozen=True, slots=True)
class Failed:
    """Something a session accepted could not be done; the stream goes on."""

    time_s: float
    error: Exception


@dataclass(frozen=True, slots=True)
class Closed:
    """The session ended; nothing comes after this."""

    time_s: float
    frames: int


Event = FrameTaken | Answer | Alert | Noted | Failed | Closed


@dataclass
class SessionStats:
    """Running totals of one session. The engine adds to them; read them through `Session.stats()`."""

    frames: int = 0
    frames_skipped: int = 0
    """Frames that the gate did not have encoded; they are among `frames`."""
    frames_shrunk: int = 0
    """Frames that the gate had encoded at a lower resolution."""
    frames_unprepared: int = 0
    """Frames of a prepared engine for which some tower had no step ready: a picture of another size, or a further tower
    without a packed form. They are encoded all the same, more slowly."""
    frames_unsaid: int = 0
    """Frames of which a method looks for what the video's encoder said (`Engine.hears_codec`) and nothing was said: it
    goes by the picture instead. The gate's skipped ones are not among them."""
    frames_together: int = 0
    """Frames that were read in one pass with others of their stream (`Session.push_many`)."""
    refreshed_frames: int = 0
    tokens_seen: int = 0
    tokens_kept: int = 0
    tokens_read: int = 0
    """Everything that was prefilled while watching: timestamps, kept visual tokens and notes."""
    answers: int = 0
    notes: int = 0
    """Texts written into the memory."""
    thoughts: int = 0
    """Thoughts that were written down while watching."""
    thoughts_dropped: int = 0
    """Thoughts that were due and not written: one was on its way, or there was too much to do."""
    dropped_events: int = 0
    blocks_parked: int = 0
    blocks_forgotten: int = 0
    frames_empty: int = 0
    """Frames of which the compressor kept nothing: they were not read."""
    frames_held: int = 0
    """Frames that waited for a later one, to be encoded with it or to be given out by the compressor."""
    held_s: float = 0.0
    """Stream time that they waited, in seconds, all together."""
    stage_s: dict[str, float] = field(default_factory=dict)
    """Seconds by stage: preprocess, encode, project, compress, prefill, memory. A frame of a batch counts its share."""
    memory_bytes: dict[str, int] = field(default_factory=dict)
    """Bytes held now, by tier and kind."""
