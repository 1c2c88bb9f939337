"""Pictures, real video files and record lines of episodes, all in bounded memory."""

from collections.abc import Iterable, Iterator
from fractions import Fraction
from pathlib import Path

import numpy as np

from onlooker.core.errors import InputError
from onlooker.core.frame import Frame
from onlooker.core.records import Record, VideoRecord, to_json
from onlooker.world.raster import rasterise
from onlooker.world.scene import Scene
from onlooker.world.tables import render_tables


def frames(episode: Scene, fps: float, size: tuple[int, int] = (128, 128), chunk_frames: int = 16) -> Iterator[Frame]:
    """See `Scene.frames`. Raises `InputError` for a bad rate or size."""
    if not 0 < fps <= 240:
        raise InputError("frames per second must lie in 0..240", given=str(fps), do="use 1 to 30")
    if min(size) < 16:
        raise InputError("a picture needs 16 rows and columns or more", given=str(size), do="use (128, 128)")
    total = num_frames(episode, fps)
    for first in range(0, total, chunk_frames):
        times = np.arange(first, min(total, first + chunk_frames)) / fps
        images = rasterise(render_tables([episode], times[None]), *size).images[0].numpy()
        for image, time_s in zip(images, times, strict=True):
            yield Frame(image, float(time_s))


def num_frames(episode: Scene, fps: float) -> int:
    """Frames before the end of the episode: those at `k / fps < duration_s`."""
    return max(1, int(np.ceil(episode.duration_s * fps - 1e-9)))


def write_video(
    episode: Scene, path: str | Path, fps: float = 8.0, size: tuple[int, int] = (128, 128), *, crf: int = 18
) -> VideoRecord:
    """Write an H.264 file whose frame k is shown at `k / fps`, and return its record.

    `size` is (rows, cols), both even; a smaller `crf` is better and larger. Raises `InputError` for odd sizes.
    """
    import av

    rows, cols = size
    if rows % 2 or cols % 2:
        raise InputError("H.264 needs even rows and columns", given=str(size), do="add one")
    rate = Fraction(fps).limit_denominator(1000)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=rate)
        stream.width, stream.height, stream.pix_fmt = cols, rows, "yuv420p"
        stream.time_base = stream.codec_context.time_base = 1 / rate
        stream.options = {"crf": str(crf), "preset": "veryfast"}
        for index, frame in enumerate(frames(episode, float(rate), size)):
            picture = av.VideoFrame.from_ndarray(frame.image, format="rgb24")
            picture.pts, picture.time_base = index, 1 / rate
            container.mux(stream.encode(picture))
        container.mux(stream.encode(None))
    return video_record(episode, str(path), float(rate))


def video_record(episode: Scene, path: str = "", fps: float = 1.0) -> VideoRecord:
    """The record of an episode, whether or not a file of it exists."""
    return VideoRecord(episode.id, path, episode.duration_s, fps, source="synthetic", quiet=episode.quiet())


def write_records(path: str | Path, records: Iterable[Record]) -> int:
    """Write one JSON line per record and return how many."""
    num = 0
    with Path(path).open("w", encoding="utf-8", newline="\n") as file:
        for record in records:
            file.write(to_json(record) + "\n")
            num += 1
    return num
