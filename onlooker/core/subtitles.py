"""Texts with times as subtitles: WebVTT and SubRip."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Cue:
    """What is shown from one stream time to another, in seconds."""

    start_s: float
    end_s: float
    text: str


def as_vtt(cues: Iterable[Cue]) -> Iterator[str]:
    """The parts of a WebVTT file."""
    yield "WEBVTT\n"
    for cue in cues:
        text = " ".join(cue.text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").split())
        yield f"\n{stamp(cue.start_s)} --> {stamp(cue.end_s)}\n{text}\n"


def as_srt(cues: Iterable[Cue]) -> Iterator[str]:
    """The parts of a SubRip file."""
    for number, cue in enumerate(cues, 1):
        text = " ".join(cue.text.split())
        yield f"{number}\n{stamp(cue.start_s, ',')} --> {stamp(cue.end_s, ',')}\n{text}\n\n"


def stamp(seconds: float, point: str = ".") -> str:
    """Hours, minutes, seconds and thousandths."""
    whole = round(1000 * seconds)
    hours, minutes, rest = whole // 3_600_000, whole // 60_000 % 60, whole % 60_000
    return f"{hours:02d}:{minutes:02d}:{rest // 1000:02d}{point}{rest % 1000:03d}"
