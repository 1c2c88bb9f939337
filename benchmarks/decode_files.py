"""A file decoded by one reading and in pieces side by side: seconds of video decoded in a second.

    python -m benchmarks.decode_files film.mp4 --workers 1,2,4,8,16 --fps 1 --size 448

Without a file a noisy 1080p clip of `--seconds` is encoded first. One reading lets the decoder use its own threads (by
frame); pieces use one thread each. The frames are the same (tests/video/test_video_parallel.py).
"""

import argparse
import json
import tempfile
import time
from fractions import Fraction
from pathlib import Path

import numpy as np

from onlooker.core import provenance
from onlooker.video import open_video
from onlooker.video.parallel import cores


def make_film(path: Path, seconds: int, encoded_s: int = 20) -> Path:
    """30 pictures a second of noise that moves, a keyframe every two seconds; what was encoded comes again and again
    until the film is long enough."""
    import av

    chance = np.random.default_rng(0)
    noise = chance.integers(0, 255, (270, 480, 3), dtype=np.uint8).repeat(4, 0).repeat(4, 1)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=30, options={"preset": "veryfast", "g": "60"})
        stream.width, stream.height, stream.pix_fmt = 1920, 1080, "yuv420p"
        packets = []
        for number in range(30 * min(seconds, encoded_s)):
            frame = av.VideoFrame.from_ndarray(np.roll(noise, 3 * number, axis=1), format="rgb24")
            frame.pts, frame.time_base = number, Fraction(1, 30)
            packets += stream.encode(frame)
        packets += stream.encode()
        taken = [(bytes(one), one.pts, one.dts, one.is_keyframe, one.time_base) for one in packets]
        for round_ in range(-(-seconds // encoded_s)):
            for data, pts, dts, is_keyframe, time_base in taken:
                packet = av.Packet(data)
                later = round(round_ * encoded_s / time_base)
                packet.pts, packet.dts, packet.time_base = pts + later, dts + later, time_base
                packet.is_keyframe, packet.stream = is_keyframe, stream
                container.mux(packet)
    return path


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", nargs="?", type=Path)
    parser.add_argument("--seconds", type=int, default=240)
    parser.add_argument("--workers", default="1,2,4,8,16")
    parser.add_argument("--fps", type=float, default=1.0)
    parser.add_argument("--size", type=int, default=448)
    parser.add_argument("--out", default="", help="add the rows to this file")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = given.file or make_film(Path(folder) / "film.mp4", given.seconds)
        for workers in map(int, given.workers.split(",")):
            began = time.perf_counter()
            with open_video(path, fps=given.fps, size=(given.size, given.size), workers=workers) as source:
                count = sum(1 for _ in source)
                length_s = source.info.duration_s or 0.0
            took = time.perf_counter() - began
            row = {
                "bench": "decode_files", "file": path.name, "seconds": length_s, "workers": workers, "frames": count,
                "took_s": round(took, 3), "times_real": round(length_s / took, 1),
                "cores": cores(), "commit": provenance.commit(),
            }  # fmt: skip
            print(json.dumps(row), flush=True)
            if given.out:
                with Path(given.out).open("a", encoding="utf-8") as out:
                    out.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
