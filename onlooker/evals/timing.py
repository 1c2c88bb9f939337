"""When a system speaks by itself: windows hit, delay, and false alarms per quiet hour."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from onlooker.core.records import QueryRecord, ReplyRecord, Span, VideoRecord
from onlooker.evals.asking import says_yes
from onlooker.evals.replay import Outcome


@dataclass(frozen=True)
class Timing:
    """How well the moments of speech fit. Publish `f1` beside the alarms: recall alone rewards chatter."""

    precision: float
    recall: float
    f1: float
    delay_s: float | None
    """Mean time from the start of a window to the speech that hit it."""
    quiet_hours: float
    alarms_per_quiet_hour: float | None
    spoken: int


def speech_times(replies: Sequence[ReplyRecord]) -> list[float]:
    """Times at which a polled system would have spoken: a poll says yes and the one before did not."""
    polls = sorted((reply for reply in replies if reply.kind == "poll"), key=lambda reply: reply.t)
    said = [says_yes(reply.text) for reply in polls]
    return [poll.t for place, poll in enumerate(polls) if said[place] and not (place and said[place - 1])]


def match(times: Sequence[float], windows: Sequence[Span], early_s: float = 0.0, late_s: float = 0.0) -> list[float]:
    """Delays of one-to-one matches in time order: each window takes the first unused time that falls into it."""
    used: set[int] = set()
    delays = []
    for start, end in windows:
        for place, at in enumerate(times):
            if place not in used and start - early_s <= at <= end + late_s:
                used.add(place)
                delays.append(at - start)
                break
    return delays


def timing(outcomes: Sequence[Outcome], videos: Mapping[str, VideoRecord]) -> Timing | None:
    """Of all standing requests together; None where there are none.

    Quiet time is the part of a video's quiet spans in which a request was open and its window was not.
    """
    spoken = hits = windows = alarms = 0
    delays: list[float] = []
    quiet_s = 0.0
    polled = [o for o in outcomes if o.query.answer_type == "proactive" and not o.failure and o.replies]
    for outcome in polled:
        query, times = outcome.query, speech_times(outcome.replies)
        found = match(times, query.windows)
        spans = open_quiet(query, outcome.replies, videos[query.video].quiet if query.video in videos else ())
        spoken, hits, windows = spoken + len(times), hits + len(found), windows + len(query.windows)
        delays += found
        quiet_s += sum(end - start for start, end in spans)
        alarms += sum(any(start <= at <= end for start, end in spans) for at in times)
    if not polled:
        return None
    precision, recall = hits / spoken if spoken else 0.0, hits / windows if windows else 0.0
    f1 = 2 * precision * recall / (precision + recall) if hits else 0.0
    per_hour = alarms / (quiet_s / 3600) if quiet_s else None
    delay_s = sum(delays) / len(delays) if delays else None
    return Timing(precision, recall, f1, delay_s, quiet_s / 3600, per_hour, spoken)


def open_quiet(query: QueryRecord, replies: Sequence[ReplyRecord], quiet: Sequence[Span]) -> list[Span]:
    """The quiet spans, cut to the time in which the request was polled and without its own windows."""
    until_s = max(reply.t for reply in replies)
    spans = [(max(a, query.ask_time), min(b, until_s)) for a, b in quiet]
    for start, end in query.windows:
        spans = [part for a, b in spans for part in ((a, min(b, start)), (max(a, end), b))]
    return sorted({(a, b) for a, b in spans if b > a})
