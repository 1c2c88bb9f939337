"""One video stream, packet by packet: whatever can be decoded comes out, whatever cannot is counted."""

import itertools
import time
from collections import deque
from collections.abc import Iterator
from fractions import Fraction
from typing import TYPE_CHECKING, Any

from onlooker.core.errors import SourceError
from onlooker.video.clip import PacketRing
from onlooker.video.codec_trail import CodecTrail
from onlooker.video.place import Place
from onlooker.video.source import SourceReport
from onlooker.video.track import MAX_PIXELS, Pictures, Track, choose_stream, describe, exact_seconds

if TYPE_CHECKING:
    from av.packet import Packet
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream

MAX_READ_ERRORS = 16
# FFmpeg plays any text file as a 1990s terminal recording, which is never what was meant.
_TEXT_FORMATS = {"tty", "bin", "xbin", "adf", "idf"}
# Its index names every picture to come; elsewhere it is built while reading, and declared numbers are rough.
_INDEXED = "mov,mp4"
# A photograph may hold a preview and a second exposure.
STILL_PACKETS = 4
_TRY = "check that the file is complete and is a video"


def _reason(error: Exception) -> str:
    # Never the whole message: FFmpeg's carries the address, and with it a password.
    return getattr(error, "strerror", None) or type(error).__name__


class Decoder(Pictures):
    """The pictures of one video stream of a container, in the order shown.

    Raises `SourceError` when the container cannot be opened or has no video. Pictures of more than 134 million pixels
    are refused by the decoder. `threads` is the number of decoder threads, 0 for automatic. `timeout_s` is the longest
    wait for a remote place to open (None: for ever), `read_timeout_s` for its next packet (None: as long). `number` is
    the video stream to read (None: the best), `rate` the pictures a second of a stream that has no times (None: what
    its headers say). With `codec` the encoder's motion vectors are followed, in `trail`; with `keep_s` so many seconds
    of the encoded stream are kept, in `ring`.
    """

    def __init__(
        self,
        place: Place,
        report: SourceReport,
        *,
        threads: int = 0,
        timeout_s: float | None = 20.0,
        read_timeout_s: float | None = None,
        number: int | None = None,
        rate: float | None = None,
        codec: bool = False,
        keep_s: float = 0.0,
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
        self._number, self._rate, self._wants_codec, self._keep_s = number, rate, codec, keep_s
        self._open()

    def _open(self) -> None:
        self._container: Any = _open_container(self.place, self._timeouts_s)
        self._is_whole = True
        self._num_pictures = self._num_unwanted = 0
        self._end_pts = 0
        self._others_end_s = Fraction(0)
        try:
            self._stream: VideoStream = choose_stream(self._container, self.place, self._report, self._number)
            self._stream.thread_type = "AUTO"
            self._stream.codec_context.thread_count = self._threads
            vectors = {"flags2": "+export_mvs"} if self._wants_codec else {}
            self._stream.codec_context.options = {"max_pixels": str(MAX_PIXELS)} | vectors
            self._ahead = self._first_packets()
            is_still = self._container.format.name == "image2" or len(self._ahead) in range(1, STILL_PACKETS)
            self.track: Track = describe(self._container, self._stream, self._report, self._rate, is_still)
            self.trail = CodecTrail(self._report, self.track.codec) if self._wants_codec else None
            self.ring = PacketRing(self._stream, self._keep_s) if self._keep_s else None
            self._num_promised = len(self._stream.index_entries) if _INDEXED in self._container.format.name else 0
            self._packets: Iterator[Packet] = self._demux()
        except BaseException:
            self._container.close()
            raise

    def _first_packets(self) -> "deque[Packet]":
        """Some packets of what may be one picture or a film of bare pictures: both begin alike. Else none."""
        if not self._container.format.name.endswith("_pipe"):
            return deque()
        try:
            packets = itertools.islice(self._container.demux(self._stream), STILL_PACKETS)
            return deque(packet for packet in packets if packet.size)
        except self._av_error:
            return deque()

    def _demux(self) -> "Iterator[Packet]":
        """Packets of the stream; of sound too, where only it tells how long the stream should be."""
        from av.stream import Discard

        is_own = self.track.is_duration_own
        for other in self._container.streams:
            if other.index != self._stream.index:
                other.discard = Discard.all if is_own or other.type == "video" else Discard.default
        return self._container.demux(self._stream) if is_own else self._container.demux()

    def read(self) -> "VideoFrame | None":
        while not self._waiting and not self._has_ended:
            self._waiting.extend(self._decode(self._next_packet()))
        if not self._waiting:
            return None
        frame = self._waiting.popleft()
        self._num_pictures += 1
        if self.trail is not None:
            self.trail.picture(frame)
        if not self.track.has_times:
            frame.pts = None
        if frame.is_corrupt:
            self._report.num_corrupt_frames += 1
            self._report.note_damage("some pictures were decoded from damaged data")
        return frame

    def key_times(self) -> list[float]:
        entries = self._stream.index_entries if self._num_promised else ()
        start, base = self.track.start or Fraction(0), self._stream.time_base or Fraction(0)
        return [float(entry.timestamp * base - start) for entry in entries if entry.is_keyframe]

    @property
    def skips_to_keys(self) -> bool:
        return self._stream.codec_context.skip_frame == "NONKEY"

    @skips_to_keys.setter
    def skips_to_keys(self, value: bool) -> None:
        self._stream.codec_context.skip_frame = "NONKEY" if value else "DEFAULT"
        self._is_whole = self._is_whole and not value

    def seek(self, pts: int) -> bool:
        try:
            self._container.seek(pts, stream=self._stream, backward=True)
        except (self._av_error, OSError, ValueError, OverflowError):
            return False
        self._waiting.clear()
        self._ahead.clear()
        self._has_ended = self._is_whole = False
        self._packets = self._demux()
        if self.trail is not None:
            self.trail = CodecTrail(self._report, self.track.codec)
        return True

    def rewind(self) -> None:
        # By opening the source again: a seek cannot promise it everywhere.
        self.close()
        if self.place.is_object:
            try:
                self.place.target.seek(0)
            except Exception as error:  # a caller's file object may raise anything at all
                raise SourceError("this file object cannot go back", given=self.place.name, do="start_s=0.0") from error
        self._has_ended = False
        self._open()

    def close(self) -> None:
        self._has_ended = True
        self._waiting.clear()
        self._ahead.clear()
        self._packets = iter(())
        self._container.close()

    def shortfall(self, smallest_s: Fraction) -> str | None:
        track = self.track
        if track.duration_s is not None and (track.is_duration_own or track.is_length_stored):
            end_s = exact_seconds(self._end_pts, self._stream.time_base) or Fraction(0)
            if track.is_duration_own:
                end_s -= exact_seconds(self._stream.start_time, self._stream.time_base) or 0
            else:
                end_s = max(end_s, self._others_end_s) - Fraction(self._container.start_time or 0, 1_000_000)
            if track.duration_s - end_s > smallest_s:
                return f"the video ends at {float(end_s):.2f} s of a declared {track.duration_s:.2f} s"
        num_missing = self._num_promised - self._num_pictures - self._num_unwanted
        if self._is_whole and num_missing > 0:
            return f"{num_missing} of {self._num_promised} pictures did not come"
        return None

    def _next_packet(self) -> "Packet | None":
        while True:
            try:
                packet = self._ahead.popleft() if self._ahead else next(self._packets)
            except StopIteration:
                self._has_ended = True
                if fault := self.place.fault():
                    self._report.note_damage(f"reading failed: {fault}")
                return None
            except Exception as error:  # a caller's file object may raise anything at all
                if not self._survives(error):
                    self._has_ended = True
                    return None
                self._packets = self._demux()
                continue
            if packet.stream_index != self._stream.index:
                self._others_end_s = max(self._others_end_s, _end_of(packet))
                continue
            if packet.size:
                self._account(packet)
            return packet

    def _survives(self, error: Exception) -> bool:
        from av.error import InvalidDataError

        if self._container.format.name == "mpjpeg" and isinstance(error, InvalidDataError):
            return False  # how FFmpeg says that the parts have ended
        self._report.note_damage(f"reading failed: {_reason(error)}")
        self._num_read_errors += 1
        return isinstance(error, InvalidDataError) and self._num_read_errors < MAX_READ_ERRORS

    def _account(self, packet: "Packet") -> None:
        if packet.pts is not None:
            self._end_pts = max(self._end_pts, packet.pts + (packet.duration or 0))
        self._num_unwanted += packet.is_discard
        if self.trail is not None:
            self.trail.packet(packet.pts, packet.size)
        if self.ring is not None:
            self.ring.add(packet, time.time())
        if packet.is_corrupt:
            self._report.num_corrupt_packets += 1
            self._report.note_damage("some packets are marked as damaged")

    def _decode(self, packet: "Packet | None") -> "list[VideoFrame]":
        try:
            return self._stream.codec_context.decode(packet)
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
        reason = place.fault() or _reason(error)
        problem = SourceError(f"this cannot be opened as a video ({reason})", given=place.name, do=_TRY)
        # The cause of a remote failure repeats the address with its secrets.
        raise problem from (None if place.is_remote else error)
    if container.format.name in _TEXT_FORMATS:
        container.close()
        raise SourceError("this is a text file, not a video", given=place.name, do="give a video file")
    return container


def _end_of(packet: "Packet") -> Fraction:
    """Where a packet of another stream ends, in seconds of the container; 0 where it does not say."""
    return exact_seconds((packet.pts or 0) + (packet.duration or 0), packet.time_base) or Fraction(0)
