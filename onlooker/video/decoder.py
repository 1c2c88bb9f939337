"""One video stream, packet by packet: whatever can be decoded comes out, whatever cannot is counted."""

from collections import deque
from collections.abc import Iterator
from fractions import Fraction
from typing import TYPE_CHECKING, Any

from onlooker.core.errors import SourceError
from onlooker.video.place import Place
from onlooker.video.source import SourceReport

if TYPE_CHECKING:
    from av.packet import Packet
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream

MAX_PIXELS = 16384 * 8192
MAX_READ_ERRORS = 16
# FFmpeg plays any text file as a 1990s terminal recording, which is never what was meant.
_TEXT_FORMATS = {"tty", "bin", "xbin", "adf", "idf"}
_TRY = "check that the file is complete and is a video"


def _reason(error: Exception) -> str:
    # Never the whole message: FFmpeg's carries the address, and with it a password.
    return getattr(error, "strerror", None) or type(error).__name__


class Decoder:
    """The pictures of the first video stream of a container, in the order shown.

    Raises `SourceError` when the container cannot be opened or has no video. Pictures of more than 134 million pixels
    are refused by the decoder. `threads` is the number of decoder threads, 0 for automatic. `timeout_s` is the longest
    wait for a remote place to open (None: for ever), `read_timeout_s` for its next packet (None: as long).
    """

    def __init__(
        self,
        place: Place,
        report: SourceReport,
        *,
        threads: int = 0,
        timeout_s: float | None = 20.0,
        read_timeout_s: float | None = None,
    ) -> None:
        from av.error import FFmpegError

        self.place = place
        self._report = report
        self._av_error = FFmpegError
        self._waiting: deque[VideoFrame] = deque()
        self._num_read_errors = 0
        self._has_ended = False
        self._threads = threads
        self._timeouts_s = (timeout_s, timeout_s if read_timeout_s is None else read_timeout_s)
        self.end_pts = 0
        self._open()

    def _open(self) -> None:
        self._container: Any = _open_container(self.place, self._timeouts_s)
        try:
            self.stream: VideoStream = _video_stream(self._container, self.place)
            self.stream.thread_type = "AUTO"
            self.stream.codec_context.thread_count = self._threads
            self.stream.codec_context.options = {"max_pixels": str(MAX_PIXELS)}
            self._packets: Iterator[Packet] = self._container.demux(self.stream)
        except BaseException:
            self._container.close()
            raise

    @property
    def format_name(self) -> str:
        """The container's name in FFmpeg's words, such as "mpegts"."""
        return self._container.format.name

    @property
    def duration_s(self) -> float | None:
        """The stream's declared length in seconds, from the best witness there is."""
        if self.stream.duration and self.stream.time_base:
            return float(self.stream.duration * self.stream.time_base)
        tag = self.stream.metadata.get("DURATION", "")
        try:
            hours, minutes, seconds = tag.split(":")
            return float(hours) * 3600 + float(minutes) * 60 + float(seconds)
        except ValueError:
            pass
        # The container's length is the longest stream's: with sound it may say nothing about the picture.
        return self._container.duration / 1e6 if self._container.duration and self._container.duration > 0 else None

    @property
    def is_duration_certain(self) -> bool:
        """Whether `duration_s` speaks of the picture, not of another stream."""
        own = bool(self.stream.duration) or "DURATION" in self.stream.metadata
        return own or len(self._container.streams) == 1

    def read(self) -> "VideoFrame | None":
        """Return the next picture, or None at the end. Damage is counted in the report, never raised."""
        while not self._waiting and not self._has_ended:
            self._waiting.extend(self._decode(self._next_packet()))
        if not self._waiting:
            return None
        frame = self._waiting.popleft()
        if frame.is_corrupt:
            self._report.num_corrupt_frames += 1
            self._report.note_damage("some pictures were decoded from damaged data")
        return frame

    @property
    def skips_to_keys(self) -> bool:
        """Whether all but key frames are left out, undecoded: the quick way forward for who has fallen behind."""
        return self.stream.codec_context.skip_frame == "NONKEY"

    @skips_to_keys.setter
    def skips_to_keys(self, value: bool) -> None:
        self.stream.codec_context.skip_frame = "NONKEY" if value else "DEFAULT"

    def seek(self, pts: int) -> bool:
        """Go to the key frame at or before `pts` (in the stream's time base); False where the source cannot."""
        try:
            self._container.seek(pts, stream=self.stream, backward=True)
        except (self._av_error, OSError, ValueError, OverflowError):
            return False
        self._waiting.clear()
        self._has_ended = False
        self._packets = self._container.demux(self.stream)
        return True

    def rewind(self) -> None:
        """Go back to the very first picture by opening the source again: what a seek cannot promise everywhere."""
        self.close()
        if self.place.is_object:
            try:
                self.place.target.seek(0)
            except Exception as error:  # a caller's file object may raise anything at all
                raise SourceError("this file object cannot go back", given=self.place.name, do="start_s=0.0") from error
        self._has_ended = False
        self._open()

    def close(self) -> None:
        """Close the container and let go of decoder threads."""
        self._has_ended = True
        self._waiting.clear()
        self._packets = iter(())
        self._container.close()

    def _next_packet(self) -> "Packet | None":
        while True:
            try:
                packet = next(self._packets)
            except StopIteration:
                self._has_ended = True
                return None
            except Exception as error:  # a caller's file object may raise anything at all
                if not self._survives(error):
                    self._has_ended = True
                    return None
                self._packets = self._container.demux(self.stream)
                continue
            if packet.size:
                self._account(packet)
            return packet

    def _survives(self, error: Exception) -> bool:
        from av.error import InvalidDataError

        self._report.note_damage(f"reading failed: {_reason(error)}")
        self._num_read_errors += 1
        return isinstance(error, InvalidDataError) and self._num_read_errors < MAX_READ_ERRORS

    def _account(self, packet: "Packet") -> None:
        if packet.pts is not None:
            self.end_pts = max(self.end_pts, packet.pts + (packet.duration or 0))
        if packet.is_corrupt:
            self._report.num_corrupt_packets += 1
            self._report.note_damage("some packets are marked as damaged")

    def _decode(self, packet: "Packet | None") -> "list[VideoFrame]":
        try:
            return self.stream.codec_context.decode(packet)
        except EOFError:
            return []  # the decoder was flushed before
        except self._av_error as error:
            if packet is None or not packet.is_corrupt:
                self._report.num_corrupt_packets += 1
            self._report.note_damage(f"some packets could not be decoded: {_reason(error)}")
            return []


def _open_container(place: Place, timeouts_s: tuple[float | None, float | None]) -> Any:
    import av

    options = {"pattern_type": "none", "protocol_whitelist": place.protocols, **place.options}
    try:
        container = av.open(
            place.target,
            format=place.container,
            # Not `options`: PyAV before 18 writes past its array when a container finds its streams late (FLV).
            container_options=options,
            metadata_errors="replace",
            timeout=timeouts_s if place.is_remote else None,
        )
    except Exception as error:  # a caller's file object may raise anything at all
        problem = SourceError(f"this cannot be opened as a video ({_reason(error)})", given=place.name, do=_TRY)
        # The cause of a remote failure repeats the address with its secrets.
        raise problem from (None if place.is_remote else error)
    if container.format.name in _TEXT_FORMATS:
        container.close()
        raise SourceError("this is a text file, not a video", given=place.name, do="give a video file")
    return container


def _video_stream(container: Any, place: Place) -> "VideoStream":
    for stream in container.streams.video:
        # The cover of a song is a video stream to FFmpeg; to us it is no video.
        if not stream.disposition & type(stream.disposition).attached_pic:
            if stream.codec_context is None:
                raise SourceError("no decoder for this video", given=place.name, do="convert it to H.264")
            if stream.codec_context.width * stream.codec_context.height > MAX_PIXELS:
                size = f"{stream.codec_context.height} x {stream.codec_context.width}"
                raise SourceError(f"pictures of {size} are too large", given=place.name, do="scale it down first")
            return stream
    kinds = sorted({stream.type for stream in container.streams}) or ["nothing"]
    raise SourceError(f"this holds no video, only {', '.join(kinds)}", given=place.name, do="give a file with pictures")


def exact_seconds(pts: int | None, time_base: Fraction | None) -> Fraction | None:
    """Return `pts` in exact seconds, None where either is missing."""
    return None if pts is None or not time_base else pts * time_base
