"""The video's encoder chooses what the published Cacher computes anew."""

from fractions import Fraction

import av
import numpy as np
import pytest
import torch

from onlooker import models
from onlooker.core.errors import ModelError
from onlooker.encode import STCPublished
from onlooker.engine import Engine
from onlooker.video import open_video


@pytest.fixture(scope="module")
def model():
    return models.load("pocket-naive")


def frame(model, seed):
    picture = np.random.default_rng(seed).integers(0, 255, (128, 128, 3), dtype=np.uint8)
    (pixels,) = model.preprocess([picture])
    return model.tower(tuple(pixels.shape)), model.embed_patches(pixels[None])


def said(tower, moved=(), known=1.0):
    rows = torch.zeros(tower.num_tokens, 4)
    rows[:, 3] = known
    rows[list(moved), 0] = 0.05
    return rows


@torch.no_grad()
def recomputed(method, tower, hidden, state):
    found = method.encode(tower, hidden, [state]).recomputed
    return (found[0] > 0).nonzero().flatten().tolist()


def test_what_moved_since_the_reference_is_computed_anew(model):
    """Motion adds up until the next whole frame; of patches that stood still none is in front of one that moved."""
    method = STCPublished(interval=4, recompute_ratio=0.02, selection="codec")
    tower, first = frame(model, 0)
    _, second = frame(model, 1)
    count, state = method.recomputed_tokens(tower), method.new_state()
    moved = list(range(10, 10 + count))
    state.said = said(tower)
    assert len(recomputed(method, tower, first, state)) == tower.num_tokens, "the reference is whole"
    for number, now in enumerate((moved, [], [])):
        state.said = said(tower, now)
        assert recomputed(method, tower, second, state) == moved, f"frame {number}"
    assert state.num_fallbacks == 0
    state.said = said(tower)
    assert len(recomputed(method, tower, second, state)) == tower.num_tokens, "the fifth frame is whole again"
    assert state.moved is None


def test_where_nothing_is_said_the_patches_choose_and_it_is_counted(model):
    tower, first = frame(model, 0)
    _, second = frame(model, 1)
    asked, plain = (STCPublished(selection=name) for name in ("codec", "patch"))
    states = [asked.new_state(), plain.new_state()]
    for hidden in (first, second):
        found = [recomputed(method, tower, hidden, state) for method, state in zip((asked, plain), states, strict=True)]
        assert found[0] == found[1]
    assert states[0].num_fallbacks == 1


def test_no_steps_of_fixed_shape(model):
    tower, _ = frame(model, 0)
    with pytest.raises(ModelError, match="selection"):
        STCPublished(selection="codec").plan(tower)


def test_an_engine_hands_on_what_was_said(model, tmp_path):
    path, ground = tmp_path / "a.mp4", np.random.default_rng(0).integers(0, 255, (16, 16, 3), dtype=np.uint8)
    ground = ground.repeat(8, 0).repeat(8, 1)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=5, options={"g": "100", "bf": "0"})
        stream.width = stream.height = 128
        stream.pix_fmt = "yuv420p"
        for index in range(6):
            one = av.VideoFrame.from_ndarray(np.roll(ground, 4 * index, 1), format="rgb24").reformat(format="yuv420p")
            one.pts, one.time_base = index, Fraction(1, 5)
            container.mux(stream.encode(one))
        container.mux(stream.encode())
    engine = Engine(model, encoder="stc_published:selection=codec", compressor="identity", memory="last_frames")
    assert engine.hears_codec
    with engine.open() as session, open_video(path, fps=None, codec=True) as source:
        for shown in source:
            session.push(shown)
        state = session.states["encoder"]
    assert state.num_fallbacks == 0 and state.said is not None and float(state.said[:, 3].mean()) > 0.5
