"""Live streams: cameras, screens and networks, followed for ever. `open_live` is the way in."""

import sys
from collections.abc import Callable
from concurrent.futures import Future

from onlooker.core.errors import SourceError
from onlooker.core.frame import Frame
from onlooker.video.clip import Clip
from onlooker.video.live_keeper import Keeper
from onlooker.video.live_place import LivePlace, locate_live
from onlooker.video.live_state import LiveEvent, LiveSettings, LiveStatus, State
from onlooker.video.place import redact
from onlooker.video.source import Source, SourceInfo, SourceReport


def open_live(
    address: str,
    settings: LiveSettings | None = None,
    *,
    on_event: Callable[[LiveEvent], None] | None = None,
    wait: bool = False,
) -> "LiveSource":
    """Follow a live stream, and go on following it until it is closed; returns at once, while it connects.

    `address`: rtsp://, rtmp://, an http(s) playlist, udp:// and tcp:// (MPEG-TS), `webcam:0`, `screen:`, or
    `listen+rtsp://`, `listen+rtmp://`, `listen+tcp://` to be pushed to. `on_event` is called at every change of state,
    on a thread of the source's own. With `wait` it returns when the first picture is there, and the first attempt must
    succeed. Raises `InputError` or `SourceError` for an address that cannot be one.
    """
    settings = settings or LiveSettings()
    if sys.platform == "win32":
        raise SourceError("live streams need Linux or macOS", given=redact(address), do="push frames: PushSource")
    place = locate_live(address, settings.transport, settings.fps)
    source = LiveSource(place, settings, on_event, must_start=wait)
    if wait:
        try:
            source.wait_for_first()
        except BaseException:
            source.close()
            raise
    return source


class LiveSource(Source):
    """A live stream being followed; made by `open_live`, and by `open_video` for live addresses.

    Reading waits for the next picture through losses and reconnections; it ends when the stream is closed, or has a
    declared end and reaches it. Pictures that nobody read in time are counted in `report.num_dropped`.
    """

    def __init__(
        self,
        place: LivePlace,
        settings: LiveSettings,
        on_event: Callable[[LiveEvent], None] | None = None,
        must_start: bool = False,
    ) -> None:
        # The thread knows the keeper only, so that a source nobody holds any more can be closed by `__del__`.
        self._keeper = Keeper(place, settings, on_event, must_start)
        self._keeper.start()

    @property
    def info(self) -> SourceInfo:
        """Facts about the stream; all but the name are known from the first picture on, and may change later."""
        return self._keeper.info

    @property
    def report(self) -> SourceReport:
        return self._keeper.report

    @property
    def state(self) -> State:
        """What the stream is doing right now."""
        return self._keeper.state

    def status(self) -> LiveStatus:
        """The state with its reason, and figures."""
        return self._keeper.status()

    def wait_for_first(self) -> None:
        """Wait until a connection shows a picture. Raises `SourceError` when the stream ends instead."""
        self._keeper.wait_for_first()

    def __next__(self) -> Frame:
        frame = self._keeper.take()
        assert frame is not None, "it waits for ever"
        return frame

    def next_within(self, timeout_s: float | None) -> Frame | None:
        """The next picture, or None when none came in so many seconds; raises `StopIteration` at the end."""
        return self._keeper.take(timeout_s)

    def clip(self, since_wall: float) -> "Future[Clip | None]":
        """The encoded stream since a time of day (seconds since the epoch), from the key frame before it on, as a file.

        None when nothing is kept: without `LiveSettings.keep_s`, while the stream is lost, of single pictures. Fails
        with `SourceError` when what is kept cannot be cut, with the reason.
        """
        return self._keeper.clip(since_wall)

    def close(self) -> None:
        self._keeper.close()

    def __del__(self) -> None:
        if keeper := getattr(self, "_keeper", None):
            keeper.stop()
