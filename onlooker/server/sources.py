"""Sources the server reads by itself: one thread each, which ends with its stream."""

import contextlib
import itertools
import logging
import tempfile
import threading
import time
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future
from contextlib import AbstractContextManager, closing, contextmanager
from dataclasses import replace
from typing import IO, TYPE_CHECKING, Any, Literal
from urllib.parse import urlsplit

from onlooker.core.errors import OnlookerError, SourceError
from onlooker.core.frame import Frame
from onlooker.server.addresses import Allowed, check_web, checked_address, fetch
from onlooker.server.logs import redact
from onlooker.server.pictures import thumbnail_of
from onlooker.server.refusals import Refusal
from onlooker.server.settings import Limits
from onlooker.server.stream import Arrived, Event, Stream

if TYPE_CHECKING:
    from onlooker.video import LiveEvent, LiveSource
    from onlooker.video.clip import Clip

LOG = logging.getLogger("onlooker.server")
Pace = Literal["real", "max", "live"]
LIVE_SCHEMES = ("rtsp", "rtsps", "rtmp", "rtmps")
"""Of live addresses, those a client may name, where the operator allowed the host."""
FeedFrames = Callable[[], AbstractContextManager[Iterator[Frame]]]


class Feeder:
    """Reads frames from a source and hands them to a stream until either ends.

    `open_frames` is called on the feeder's thread and gives a context manager over frames. With pace `real` a frame is
    handed in when its time has come; with `max`, as soon as there is room for it; with `live`, when it comes.
    """

    def __init__(
        self,
        stream: Stream,
        name: str,
        open_frames: FeedFrames,
        pace: Pace = "real",
        most_frames: int | None = None,
    ) -> None:
        self._stream, self._open, self._pace, self._most = stream, open_frames, pace, most_frames
        self._name = redact(name)
        self._newest: Arrived | None = None
        self._live: LiveSource | None = None
        self.is_endless = pace == "live"
        """Whether it goes on for ever, as a camera does; a film does not."""
        self.was_cut = False
        """Did the source have more frames than were wanted?"""
        self.done: Future[None] = Future()
        """Done when every frame was taken in; holds the error that ended it early."""
        self.done.set_running_or_notify_cancel()
        self.tell("connecting")
        self._thread = threading.Thread(target=self._run, name="onlooker-source", daemon=True)

    @classmethod
    def of_live(cls, stream: Stream, url: str, fps: float, keep_s: float = 0.0) -> "Feeder":
        """A feeder that follows a live address through losses and reconnections, until the stream ends."""
        feeder = cls(stream, url, lambda: feeder._followed(url, fps, keep_s), pace="live")
        return feeder

    @classmethod
    def of_web(cls, stream: Stream, url: str, fps: float, keep_s: float = 0.0) -> "Feeder":
        """A feeder of what is behind an http address: a film, or a camera, which is also what is not up yet."""
        from onlooker.video import open_video

        @contextmanager
        def read() -> Generator[Iterator[Frame]]:
            with contextlib.ExitStack() as opened:
                source = None
                with contextlib.suppress(SourceError):
                    source = opened.enter_context(open_video(url, fps=fps, codec=hears_codec(stream)))
                if source is not None and not source.info.live:
                    yield iter(source)
                    return
                opened.close()
                feeder._pace, feeder.is_endless = "live", True
                yield opened.enter_context(feeder._followed(url, fps, keep_s))

        feeder = cls(stream, url, read)
        return feeder

    @contextmanager
    def _followed(self, url: str, fps: float, keep_s: float) -> Generator[Iterator[Frame]]:
        from onlooker.video import LiveSettings, open_live

        def told(event: "LiveEvent") -> None:
            self.tell(event.state, event.why)

        settings = LiveSettings(fps=fps, keep_s=keep_s, codec=hears_codec(self._stream))
        with open_live(url, settings, on_event=told) as source:
            self._live = source
            # Reading waits for the next picture, however long: the end of the stream must end it.
            self._stream.at_end(lambda: threading.Thread(target=source.close, daemon=True).start())
            yield iter(source)

    def clip(self, since_wall: float) -> "Future[Clip | None] | None":
        """The encoded stream since a time of day, as a file; None where there is none to cut from. Any thread."""
        return None if self._live is None else self._live.clip(since_wall)

    def start(self) -> None:
        """Begin to read."""
        self._thread.start()

    def _run(self) -> None:
        try:
            with self._open() as frames:
                self._feed(frames)
            if self._newest is not None:
                self._newest.taken.result()
        except Exception as error:
            self.tell("ended" if self._stream.state != "live" else "lost", self._reason(error))
            self.done.set_exception(error)
        else:
            self.tell("ended")
            self.done.set_result(None)

    def _reason(self, error: Exception) -> str:
        if isinstance(error, Refusal):
            return error.message
        if isinstance(error, OnlookerError):
            return redact(str(error))
        LOG.error("source %s failed", self._name, exc_info=error)
        return "it failed; the server's log tells more"

    def _feed(self, frames: Iterator[Frame]) -> None:
        began, offset_s = time.monotonic(), 0.0
        for number, frame in enumerate(frames):
            if number == self._most:
                self.was_cut = True
                return
            if number == 0:
                offset_s = self._stream.offset_s
                if self._pace != "live":  # a live source tells its states itself
                    self.tell("live")
            if self._pace == "real":
                self._sleep_until(began + frame.time_s)
            elif self._pace == "max":
                while not self._stream.wait_for_room(1.0):
                    self._stream.check_live()
            if offset_s:
                frame = replace(frame, time_s=frame.time_s + offset_s)
            offered = self._stream.submit(frame, thumbnail_of(frame.image))
            self._newest = offered.arrived or self._newest

    def _sleep_until(self, moment: float) -> None:
        while (left := moment - time.monotonic()) > 0:
            self._stream.check_live()
            time.sleep(min(left, 0.5))

    def tell(self, state: str, why: str | None = None) -> None:
        """Tell in what state the source is; from any thread."""
        facts: dict[str, Any] = {"name": self._name, "state": state, "why": why}
        before = self._stream.source
        self._stream.connections += state == "live" and (before is None or before["state"] not in ("live", "stale"))
        self._stream.source = facts
        self._stream.events.add(Event("source", facts))


def hears_codec(stream: Stream) -> bool:
    """Whether a method of the stream looks at what the video's encoder said. Files and cameras say it; pushed pictures
    do not, and count as `frames_unsaid`."""
    return stream.session is not None and stream.session.hears_codec


def feeder_of(stream: Stream, url: str, fps: float, keep_s: float = 0.0) -> Feeder:
    """The feeder of an address the operator named: live, a file, http(s), or `synthetic[:SEED]`, which never ends.

    Of cameras `keep_s` seconds of the encoded stream are kept, to cut clips from.
    """
    from onlooker.video import is_live, is_web, open_video

    if is_live(url):
        return Feeder.of_live(stream, url, fps, keep_s)
    if is_web(url):
        return Feeder.of_web(stream, url, fps, keep_s)
    if url == "synthetic" or url.startswith("synthetic:"):
        feeder = Feeder(stream, url, lambda: closing(_synthetic(int(url.partition(":")[2] or 0), fps)))
        feeder.is_endless = True
        return feeder
    return Feeder(stream, url, lambda: open_video(url, fps=fps, codec=hears_codec(stream)))


async def client_source(url: str, fps: float, allowed: Allowed, limits: Limits) -> Callable[[Stream], Feeder]:
    """What makes the feeder of an address that a client named.

    A web address is fetched first, by ourselves, and cannot lead anywhere else. Everything that a decoder opens by
    itself (cameras, playlists) may lead to other hosts, so its host must be one that the operator allowed. Raises
    `Refusal`.
    """
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        raise Refusal(422, "invalid_address", "this is not an address", param="source.url") from None
    if parts.scheme in LIVE_SCHEMES or (parts.scheme in ("http", "https") and parts.path.endswith(".m3u8")):
        if host is None:
            raise Refusal(422, "invalid_address", "the address has no host", param="source.url")
        allowed.check_named(host, await checked_address(host, port or 554, allowed))
        return lambda stream: Feeder.of_live(stream, url, fps)
    check_web(url)
    file = tempfile.TemporaryFile(prefix="onlooker-")  # noqa: SIM115 - closed when the frames are read
    try:
        await fetch(url, file, limits.video_bytes, allowed)
    except BaseException:
        file.close()
        raise
    file.seek(0)
    return lambda stream: Feeder(stream, url, lambda: video_of(file, fps, limits.frame_pixels, hears_codec(stream)))


@contextmanager
def video_of(file: IO[bytes], fps: float, most_pixels: int, codec: bool = False) -> Generator[Iterator[Frame]]:
    """Frames of an open file, which is closed at the end; nothing beside it can be reached from it."""
    from onlooker.video import open_video

    with file, open_video(file, fps=fps, codec=codec) as video:  # pyright: ignore[reportArgumentType] - any readable file will do
        size = video.info.size
        if size is not None and size[0] * size[1] > most_pixels:
            raise Refusal(413, "too_many_pixels", f"a video has at most {most_pixels} pixels a frame")
        yield iter(video)


def _synthetic(seed: int, fps: float) -> Generator[Frame]:
    """Pocket World, episode after episode."""
    from onlooker.world import make_episode

    start_s = 0.0
    for number in itertools.count(seed):
        episode = make_episode(number, "test", duration_s=60.0)
        for frame in episode.frames(fps=fps):
            yield Frame(frame.image, start_s + frame.time_s)
        start_s += 60.0
