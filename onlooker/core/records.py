"""Evaluation records: a video, a question about it with its evidence, and a reply; one JSON line each."""

import dataclasses
import json
from dataclasses import dataclass, field
from typing import Any, Literal

from onlooker.core.errors import InputError

AnswerType = Literal["mcq", "yesno", "count", "span", "text", "proactive", "narration"]
Span = tuple[float, float]


@dataclass(frozen=True)
class VideoRecord:
    """One video. Times are seconds since its start; `quiet` spans are those in which nothing worth saying happens."""

    id: str
    path: str
    duration: float
    fps: float
    source: str = "synthetic"
    side: tuple[dict[str, Any], ...] = ()
    quiet: tuple[Span, ...] = ()
    type: Literal["video"] = "video"


@dataclass(frozen=True)
class QueryRecord:
    """One question about a video, asked at `ask_time` seconds.

    `context` is what may be used: `(a, None)` means from `a` to `ask_time`, a negative `a` counts back from it.
    `options` are the answers a scorer may match against, `answer` is the true one (its text), `evidence` are the
    spans that justify it, `windows` the spans in which an unprompted reply is right, `test_points` polled truth
    values (`{"t": seconds, "expect": value}`).
    """

    id: str
    video: str
    benchmark: str
    task: str
    family: str
    ask_time: float
    question: str
    answer: str
    answer_type: AnswerType = "mcq"
    options: tuple[str, ...] = ()
    context: tuple[float, float | None] = (0.0, None)
    evidence: tuple[Span, ...] = ()
    windows: tuple[Span, ...] = ()
    tolerance: float = 0.0
    test_points: tuple[dict[str, Any], ...] = ()
    group: str = ""
    order: int = 0
    links: tuple[str, ...] = ()
    history: Literal["none", "gold", "own"] = "none"
    meta: dict[str, Any] = field(default_factory=dict)
    type: Literal["query"] = "query"


@dataclass(frozen=True)
class ReplyRecord:
    """What a system said about a query at stream time `t` (seconds)."""

    query: str
    t: float
    text: str
    kind: Literal["answer", "unprompted", "note", "poll"] = "answer"
    score: float | None = None
    latency: dict[str, float] = field(default_factory=dict)
    protocol: str = ""
    meta: dict[str, Any] = field(default_factory=dict)
    type: Literal["reply"] = "reply"


Record = VideoRecord | QueryRecord | ReplyRecord
_KINDS: dict[str, type] = {"video": VideoRecord, "query": QueryRecord, "reply": ReplyRecord}


def to_json(record: Record) -> str:
    """One line of JSON."""
    return json.dumps(dataclasses.asdict(record), ensure_ascii=False, sort_keys=True)


def from_json(line: str) -> Record:
    """The record a JSON line holds. Raises `InputError` for another type, unknown or missing fields."""
    try:
        row = json.loads(line)
        kind = _KINDS[row["type"]]
        known = {f.name for f in dataclasses.fields(kind)}
        if unknown := sorted(set(row) - known):
            raise InputError(
                "a record has unknown fields", given=", ".join(unknown), do=f"use {', '.join(sorted(known))}"
            )
        return kind(**{key: _frozen(value) for key, value in row.items()})
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise InputError("a line is no record", given=line[:120], do="see core/records.py for the fields") from error


def _frozen(value: Any) -> Any:
    return tuple(_frozen(item) for item in value) if isinstance(value, list) else value
