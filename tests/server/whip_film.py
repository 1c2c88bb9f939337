"""A film without an end, by FFmpeg: `whip_film.py ADDRESS FORMAT [OPTION=VALUE ...]`, H.264, ten pictures a second.

A program of its own: FFmpeg holds Python's lock while it waits for the answer to its offer.
"""

import itertools
import sys
import time

import av

from onlooker.world import make_episode


def main(address: str, form: str, *options: str) -> None:
    episode = list(make_episode(4, "test", duration_s=4.0).frames(fps=10))
    with av.open(address, "w", format=form, options=dict(one.split("=", 1) for one in options)) as out:
        video = out.add_stream("libx264", rate=10, options={"tune": "zerolatency", "profile": "baseline", "g": "10"})
        video.width, video.height, video.pix_fmt = 128, 128, "yuv420p"
        for number, frame in enumerate(itertools.cycle(episode)):
            picture = av.VideoFrame.from_ndarray(frame.image, format="rgb24")
            picture.pts = number
            out.mux(video.encode(picture))
            time.sleep(0.1)


main(*sys.argv[1:])
