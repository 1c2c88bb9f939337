"""What goes into the database, and how it leaves as subtitles."""

import time
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onlooker.core.events import Alert
from onlooker.server.clips import AFTER_S, LONGEST_S, Clips, Cut
from onlooker.server.database import Attached, Database, Record, Retention
from onlooker.server.stream import Event, Stream

if TYPE_CHECKING:
    from onlooker.server.settings import ServerSettings

CUE_S = 4.0
"""Longest that a cue of an exported subtitle file is shown."""


class History:
    """The database of a server, told what happens. Sessions of clients are kept only if the operator said so."""

    def __init__(
        self,
        folder: Path | None,
        retention: Retention,
        sessions: bool,
        cut: Cut = lambda name, since: None,
        url: str | None = None,
    ) -> None:
        """`cut` gives what a stream sent since a time of day; `url` is the address of a database, for none in a
        folder."""
        self.database = Database(folder, retention, url=url)
        self.sessions = sessions
        self.clips = Clips(cut, lambda event, clip: self.database.add(Attached(event, clip)))

    @classmethod
    def of(cls, settings: "ServerSettings", cut: Cut) -> "History":
        """As a server is set up."""
        return cls(settings.state, settings.retention, settings.keep_sessions, cut, settings.database)

    @property
    def keep_s(self) -> float:
        """Seconds of a camera's stream that must be kept for clips to be cut from; 0 for none."""
        clip_s = self.database.retention.clip_s
        return clip_s and clip_s + LONGEST_S + 2 * AFTER_S

    def close(self) -> None:
        """Write what waits, and end."""
        self.clips.close()
        self.database.close()

    def note(self, stream: Stream, event: Event) -> None:
        """Something happened on a stream; any thread. What is not for keeping is left out."""
        facts = event.facts
        if event.kind == "answer":
            self._add(stream, "answer", f"{facts['question']}\n{facts['text']}", facts, facts["time_s"])
        elif event.kind == "note":
            self._add(stream, "note", facts["text"], facts, facts["time_s"])
        elif event.kind == "quality":
            self._add(
                stream, "quality", "; ".join(facts["texts"]) or "the picture is good again", facts, facts["time_s"]
            )
        elif event.kind == "source":
            self._add(stream, "source", " ".join(filter(None, (facts["state"], facts["why"]))), facts)
        elif event.kind == "closed":
            self._add(stream, "source", f"{facts['state']} {facts['why']}", facts)

    def alerted(self, stream: Stream, alert: Alert, facts: dict[str, Any]) -> None:
        """A rule spoke; any thread. Its picture is made when it is written."""
        frame, nearest = alert.evidence, stream.album.nearest(alert.evidence_s)
        picture: Callable[[], bytes] | None = None
        if frame is not None:
            picture = lambda: frame.jpeg(960)  # noqa: E731
        elif nearest is not None:
            picture = lambda: nearest[1]  # noqa: E731
        words = " ".join(filter(None, (alert.rule, alert.prompt, alert.text)))
        self._add(stream, "alert", words, facts, alert.time_s, picture, self._clipped(stream, alert))

    def _clipped(self, stream: Stream, alert: Alert) -> Callable[[int], None] | None:
        """Has the clip of an alert cut when it is written and its last seconds have come."""
        clip_s, now = self.database.retention.clip_s, time.time()
        if not clip_s or stream.owner is not None:
            return None
        seen = stream.wall_of(alert.evidence_s)
        since = max(now - LONGEST_S, now if seen is None else seen) - clip_s
        return lambda number: self.clips.add(number, stream.id, since, now + AFTER_S)

    def rules(self, stream: Stream) -> None:
        """The rules of a stream were changed."""
        rules = [] if stream.watch is None else [rule.as_dict() for rule in stream.watch.rules]
        words = "; ".join(f"{rule['name']}: {rule['prompt']}" for rule in rules)
        self._add(stream, "rules", words, {"rules": rules})

    def _add(
        self,
        stream: Stream,
        kind: str,
        text: str,
        facts: dict[str, Any],
        time_s: float | None = None,
        picture: Callable[[], bytes] | None = None,
        on_written: Callable[[int], None] | None = None,
    ) -> None:
        if stream.owner is not None and not self.sessions:
            return
        time_s = stream.last_time_s if time_s is None else time_s
        seen = None if time_s is None else stream.wall_of(time_s)
        record = Record(kind, stream.id, stream.owner, text, facts, time_s, seen, picture, on_written=on_written)
        self.database.add(record)


def as_vtt(events: Iterable[dict[str, Any]]) -> Iterator[str]:
    """Answers and alerts of one stream as WebVTT, in seconds since the first of them; a note gives its time of day."""
    yield "WEBVTT\n"
    start_s: float | None = None
    held: tuple[float, str] | None = None
    for event in events:
        if event["kind"] not in ("answer", "alert"):
            continue
        moment = event["seen_wall"] or event["wall"]
        if start_s is None:
            start_s = moment
            yield f"\nNOTE begins at {datetime.fromtimestamp(moment, UTC).isoformat(timespec='milliseconds')}\n"
        at_s = max(0.0, moment - start_s)
        if held is not None:
            yield _cue(held, at_s)
        facts = event["facts"]
        words = f"{facts['question']} {facts['text']}" if event["kind"] == "answer" else f"Alert: {facts['prompt']}"
        held = (at_s, words)
    if held is not None:
        yield _cue(held, held[0] + CUE_S)


def _cue(cue: tuple[float, str], next_s: float) -> str:
    begin_s, words = cue
    end_s = min(begin_s + CUE_S, next_s) if next_s > begin_s else begin_s + CUE_S
    text = " ".join(words.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").split())
    return f"\n{_stamp(begin_s)} --> {_stamp(end_s)}\n{text}\n"


def _stamp(seconds: float) -> str:
    whole = round(1000 * seconds)
    return f"{whole // 3_600_000:02d}:{whole // 60_000 % 60:02d}:{whole // 1000 % 60:02d}.{whole % 1000:03d}"
