"""The last seconds of an encoded stream, kept as they came, and cut into a file without decoding or encoding."""

import io
import threading
from collections import deque
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from av.packet import Packet

MOST_BYTES = 32 * 2**20
_MP4 = {"h264", "hevc", "av1", "vp9", "mpeg4"}
"""Codecs whose clips are MP4 files, which browsers play; those of all others are Matroska files."""


@dataclass(frozen=True, slots=True)
class Clip:
    """A short video file."""

    data: bytes
    media_type: str
    """`video/mp4` or `video/x-matroska`."""


@dataclass(frozen=True, slots=True)
class _Kept:
    data: bytes
    pts: int | None
    dts: int
    duration: int
    is_keyframe: bool
    wall: float


class PacketRing:
    """Packets of one video stream, from a key frame on: the newest `keep_s` seconds of them, in `most_bytes` at most.

    Whole groups of pictures go, oldest first, so that what is left can always be played from its beginning. `add`
    belongs to the thread that reads the stream, `cut` to any other.
    """

    def __init__(self, stream: Any, keep_s: float, most_bytes: int = MOST_BYTES) -> None:
        self._stream, self._keep_s, self._most_bytes = stream, keep_s, most_bytes
        self._groups: deque[list[_Kept]] = deque()
        self._num_bytes = 0
        self._lock = threading.Lock()

    def add(self, packet: "Packet", wall: float) -> None:
        """Keep a packet that came at this time of day (seconds since the epoch)."""
        dts = packet.dts if packet.dts is not None else packet.pts
        if dts is None or packet.is_corrupt:
            return
        one = _Kept(bytes(packet), packet.pts, dts, packet.duration or 0, packet.is_keyframe, wall)
        with self._lock:
            if self._groups and dts <= self._groups[-1][-1].dts:  # its stamps began anew: what was before is no part
                self._groups.clear()
                self._num_bytes = 0
            if one.is_keyframe:
                self._groups.append([])
            elif not self._groups:
                return  # nothing to refer to
            self._groups[-1].append(one)
            self._num_bytes += len(one.data)
            while len(self._groups) > 1 and (
                self._groups[1][0].wall < wall - self._keep_s or self._num_bytes > self._most_bytes
            ):
                self._let_go()
            if self._num_bytes > self._most_bytes:  # one group is too large alone
                self._let_go()

    def _let_go(self) -> None:
        self._num_bytes -= sum(len(one.data) for one in self._groups.popleft())

    def cut(self, since_wall: float) -> Clip | None:
        """What came since a time of day, from the key frame before it on; None when nothing is kept."""
        with self._lock:
            groups = list(self._groups)
            later = [n for n, group in enumerate(groups) if group[0].wall <= since_wall]
            packets = [one for group in groups[later[-1] if later else 0 :] for one in group]
        return _written(self._stream, packets) if packets else None


def _written(stream: Any, packets: list[_Kept]) -> Clip:
    import av
    from av.packet import Packet

    is_mp4 = stream.codec_context.codec.canonical_name in _MP4
    file = io.BytesIO()
    time_base: Fraction = stream.time_base
    with av.open(file, "w", format="mp4" if is_mp4 else "matroska") as out:
        track = out.add_stream_from_template(stream)
        first = packets[0].dts
        for one in packets:
            packet = Packet(one.data)
            packet.stream, packet.time_base = track, time_base
            packet.dts, packet.duration = one.dts - first, one.duration
            packet.pts = (one.dts if one.pts is None else one.pts) - first
            packet.is_keyframe = one.is_keyframe
            out.mux(packet)
    return Clip(file.getvalue(), "video/mp4" if is_mp4 else "video/x-matroska")
