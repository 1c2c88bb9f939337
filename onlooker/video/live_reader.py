"""The process that reads one connection of a live stream: it can hang or die without taking anything with it.

Started by `live_link`; not for people. The job comes as one line of JSON on the standard input, so that no process list
shows an address; the end of the input means that the parent is gone. To the standard output go messages: the length
of a JSON text (4 bytes, little endian), the text, and for a picture its bytes. Kinds, each with the counts so far:

- `ready`: the process has started and begins to connect.
- `opened`: what is known about the stream.
- `alive`: pictures come, though none of them was wanted just now.
- `late`: pictures come, but they are too old to be shown as now.
- `clip`: what was asked for with a line `clip NUMBER TIME_OF_DAY` on the standard input, as a file (`size`,
  `media_type`, null when there is none; `why`, where it could not be cut).
- `frame`: a picture (`shape`, `time_s`, `wall_time_s`, `lag_s`), and where that was asked for what its encoder said
  (`codec`: numbers, and of `blocks` [rows, cols] the motion and the known share, float32, behind the picture's bytes).
- `over`: the connection has ended, and why; `is_final` when nothing more will ever come.
"""

import contextlib
import dataclasses
import json
import os
import struct
import sys
import threading
import time
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np

from onlooker.core.codec import CodecRecord
from onlooker.core.errors import OnlookerError
from onlooker.video.clip import PacketRing
from onlooker.video.decoder import Decoder
from onlooker.video.frame_sampling import FrameSampler
from onlooker.video.live_clock import LiveClock, PictureTime
from onlooker.video.live_place import LivePlace, locate_live, opened_web
from onlooker.video.live_snapshots import Snapshots
from onlooker.video.picture import Aspect, PictureMaker, shown_size, turn_of
from onlooker.video.source import SourceReport
from onlooker.video.track import Pictures
from onlooker.video.web import ask

ALIVE_EVERY_S = 0.2
HEADER = struct.Struct("<I")


@dataclass(frozen=True)
class Job:
    """What a reader is to do; see `LiveSettings` for most of it."""

    address: str = dataclasses.field(repr=False)
    fps: float | None
    size: tuple[int, int] | None
    aspect: Aspect
    transport: str
    connect_s: float | None
    silence_s: float
    max_lag_s: float
    began_s: float | None
    last_s: float | None
    """Session time of the last picture that was passed on, over all connections."""
    keep_s: float = 0.0
    codec: bool = False


class LiveReader:
    """Reads pictures until the connection ends, and tells the parent."""

    def __init__(self, job: Job, out: BinaryIO) -> None:
        self._job, self._out = job, out
        self._report = SourceReport()
        self._told_s = 0.0
        self._turn = threading.Lock()
        self._ring: PacketRing | None = None

    def run(self) -> None:
        """Read to the end; whatever happens becomes an `over` message."""
        job = self._job
        self._tell("ready")
        try:
            place = locate_live(job.address, job.transport, job.fps)
            is_final = self._read(*self._open(place))
        except OnlookerError as error:
            self._tell("over", why=error.what, is_final=False)
        else:
            failed = [line for line in self._report.damage if line.startswith("reading failed")]
            why = failed[-1] if failed else "the stream ended"
            self._tell("over", why=why, is_final=is_final and not failed)

    def _open(self, place: LivePlace) -> tuple[Pictures, LivePlace]:
        job = self._job
        if place.is_web:
            answer = ask(job.address, job.connect_s)
            if answer.kind == "picture":
                answer.web.close()
                return Snapshots(job.address, job.connect_s, job.fps, self._report), place
            place = opened_web(place, answer)
        limit_s = None if place.listens else job.connect_s
        # Pictures without times are timed by their arrival: no rate is assumed.
        decoder = Decoder(
            place.place,
            self._report,
            threads=1,
            timeout_s=limit_s,
            read_timeout_s=job.silence_s,
            rate=1.0,
            keep_s=job.keep_s,
            codec=job.codec,
        )
        return decoder, place

    def _read(self, decoder: Pictures, place: LivePlace) -> bool:
        """Pass on the pictures; True when the stream had a declared end, and this was it."""
        job, self._ring = self._job, decoder.ring
        clock = LiveClock(
            self._report,
            began_s=job.began_s,
            last_s=job.last_s,
            max_lag_s=job.max_lag_s,
            is_paced=place.is_paced,
        )
        sampler = FrameSampler(job.fps)
        if job.last_s is not None:
            sampler.wants(job.last_s)
        maker = PictureMaker(job.size, job.aspect, decoder.track.aspect)
        while (picture := decoder.read()) is not None:
            moment = clock.see(picture.pts, picture.time_base or decoder.track.time_base)
            if self._report.num_decoded == 0:
                self._tell_opened(decoder, picture, clock)
            self._report.num_decoded += 1
            self._wait(moment.ahead_s)
            # Skipping ends with a key frame only: what lies between refers to pictures that were not decoded.
            decoder.skips_to_keys = moment.is_late
            if moment.is_late:
                self._report.num_dropped += 1
                self._tell_alive("late")
            elif sampler.wants(moment.time_s):
                self._tell_frame(maker.image(picture), moment, self._record(decoder, picture))
            else:
                self._report.num_skipped += 1
                self._tell_alive()
        return place.is_paced and decoder.track.duration_s is not None and decoder.track.is_length_stored

    def _wait(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            self._tell_alive()
            time.sleep(min(left, ALIVE_EVERY_S))

    def _tell_opened(self, decoder: Pictures, picture: Any, clock: LiveClock) -> None:
        track = decoder.track
        self._tell(
            "opened",
            began_s=clock.began_s,
            size=shown_size(picture, track.aspect),
            fps=float(track.rate) if track.rate and track.has_times else None,
            codec=track.codec,
            rotation=turn_of(picture).degrees,
        )

    def _tell_alive(self, kind: str = "alive") -> None:
        if time.monotonic() - self._told_s >= ALIVE_EVERY_S:
            self._tell(kind)

    def _record(self, decoder: Pictures, picture: Any) -> CodecRecord | None:
        if decoder.trail is not None:
            return decoder.trail.take(picture)
        if self._job.codec:
            self._report.num_without_motion += 1
            self._report.note("no encoder says how these pictures moved")
        return None

    def _tell_frame(self, image: np.ndarray, moment: PictureTime, record: CodecRecord | None) -> None:
        # Time of day by the clock of now: a long session must not keep the error of its first minute.
        wall_time_s = time.time() - moment.lag_s
        facts: dict[str, Any] = {"time_s": moment.time_s, "wall_time_s": wall_time_s, "lag_s": moment.lag_s}
        arrays = [image]
        if record is not None:
            said = {name: getattr(record, name) for name in ("frame_type", "num_pictures", "num_intra", "num_bytes")}
            facts["codec"] = said | {"blocks": None if record.known is None else record.known.shape}
            arrays += [one for one in (record.motion, record.known) if one is not None]
        self._tell("frame", *(np.ascontiguousarray(one).data for one in arrays), shape=image.shape, **facts)

    def clip(self, number: int, since_wall: float) -> None:
        """Cut what came since a time of day, and tell it; on another thread than the one that reads."""
        made = why = None
        try:
            made = None if self._ring is None else self._ring.cut(since_wall)
        except Exception as error:  # a stream that no file can hold has no clips, and goes on
            why = f"{type(error).__name__}: {error}"[:500]
        data = memoryview(b"" if made is None else made.data)
        kind = None if made is None else made.media_type
        self._tell("clip", data, number=number, size=len(data), media_type=kind, why=why)

    def _tell(self, kind: str, *data: memoryview, **facts: Any) -> None:
        with self._turn:
            if kind != "clip":  # which is no sign of a picture
                self._told_s = time.monotonic()
            text = json.dumps({"kind": kind, "counts": dataclasses.asdict(self._report), **facts}).encode()
            self._out.write(HEADER.pack(len(text)))
            self._out.write(text)
            for part in data:
                self._out.write(part.cast("B"))
            self._out.flush()


def main() -> None:
    """Do the job that stands on the standard input."""
    facts = json.loads(sys.stdin.buffer.readline())
    facts["size"] = None if facts["size"] is None else tuple(facts["size"])
    # Whatever prints must not get between the messages.
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    reader = LiveReader(Job(**facts), out)
    threading.Thread(target=_heed_the_parent, args=(reader,), daemon=True).start()
    with contextlib.suppress(BrokenPipeError):  # the parent has closed the source
        reader.run()
    # Nothing here is worth tidying up, and FFmpeg may hang while it tries.
    os._exit(0)


def _heed_the_parent(reader: LiveReader) -> None:
    """Cut the clips that it asks for, and leave with it."""
    while line := sys.stdin.buffer.readline():
        _, number, since_wall = line.split()
        with contextlib.suppress(BrokenPipeError):
            reader.clip(int(number), float(since_wall))
    os._exit(0)


if __name__ == "__main__":
    main()
