"""The pruner that listens to the video's encoder."""

from fractions import Fraction

import av
import numpy as np
import torch

from onlooker import models
from onlooker.compress.codec import Codec
from onlooker.core.tokens import VisualTokens
from onlooker.engine import Engine
from onlooker.video import open_video


def frame(number, said=None, dim=8):
    extras = {} if said is None else {"codec": said}
    made = torch.Generator().manual_seed(number)
    return VisualTokens.of_frame(torch.randn(16, dim, generator=made), (4, 4), number, float(number), extras)


def said(moved=(), new=(), camera=(0.0, 0.0)):
    rows = torch.zeros(16, 4)
    rows[:, :2], rows[:, 3] = torch.tensor(camera), 1.0
    rows[list(moved), 1] += 0.05
    rows[list(new), 3] = 0.0
    return rows


def test_what_moved_and_what_is_new_stays():
    method = Codec(keep=3)
    kept = method.compress(frame(1, said(moved=(6, 11), new=(2,))), method.new_state())
    assert kept.slot.tolist() == [2, 6, 11]


def test_the_motion_of_the_camera_counts_for_nothing():
    method = Codec(keep=2)
    kept = method.compress(frame(1, said(moved=(6, 11), camera=(0.3, -0.2))), method.new_state())
    assert kept.slot.tolist() == [6, 11]


def test_where_nothing_is_said_change_decides_and_it_is_counted():
    method, state = Codec(keep=2), Codec().new_state()
    first = frame(1)
    method.compress(first, state)
    features = first.features.clone()
    features[[4, 9]] = -features[[4, 9]]
    kept = method.compress(VisualTokens.of_frame(features, (4, 4), 2, 2.0), state)
    assert kept.slot.tolist() == [4, 9] and state.num_fallbacks is not None and int(state.num_fallbacks) == 2


def test_an_engine_hands_on_what_the_encoder_said(tmp_path):
    """A real clip: the square that moves over a standing ground keeps its tokens."""
    path, ground = tmp_path / "a.mp4", np.random.default_rng(0).integers(0, 255, (16, 16, 3), dtype=np.uint8)
    ground = ground.repeat(16, 0).repeat(16, 1)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=5, options={"g": "100", "bf": "0"})
        stream.width = stream.height = 256
        stream.pix_fmt = "yuv420p"
        for index in range(8):
            image = ground.copy()
            image[64:128, 32 + 8 * index : 96 + 8 * index] = ground[:64, :64]
            one = av.VideoFrame.from_ndarray(image, format="rgb24").reformat(format="yuv420p")
            one.pts, one.time_base = index, Fraction(1, 5)
            container.mux(stream.encode(one))
        container.mux(stream.encode())
    engine = Engine(models.load("pocket-naive"), encoder="full", compressor="codec:keep=8", memory="full")
    assert engine.hears_codec and not Engine(models.load("pocket-naive")).hears_codec
    with engine.open(trace=True) as session, open_video(path, fps=None, codec=True) as source:
        kept = []
        for shown in source:
            session.push(shown)
            assert session.trace is not None
            kept.append(torch.as_tensor(session.trace.kept).reshape(8, 8))
        state = session.states["compressor"]
        assert session.hears_codec and session.stats().frames_unsaid == 1
    assert int(state.num_fallbacks) == 1, "nothing leads to the first picture"
    inside = torch.stack(kept[1:])[:, 1:5].float().sum((1, 2))
    assert inside.mean() > 6, inside  # of 8; by chance it would be 4
