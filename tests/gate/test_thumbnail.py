"""Thumbnails of the last frames: which are tiled, where, and what the compressor behind keeps of them."""

import numpy as np
import torch

from onlooker import models
from onlooker.compress import Thumbnail as Sampled
from onlooker.core.contracts import MemoryView
from onlooker.core.frame import Frame
from onlooker.core.tokens import VisualTokens
from onlooker.engine import Engine
from onlooker.gate import Thumbnail


def grey(level, size=(8, 12)):
    return np.full((*size, 3), level, np.uint8)


def looks(gate, levels):
    state = gate.new_state()
    return [gate.look(Frame(grey(level), float(n)), MemoryView(), state) for n, level in enumerate(levels)]


def test_the_last_frames_are_tiled_in_reading_order():
    shown = looks(Thumbnail(every=4, side=2, apart=1), range(0, 120, 10))
    assert [isinstance(one, np.ndarray) for one in shown] == [False, False, False, True] * 3
    thumbnail = shown[7]
    assert thumbnail.shape == (8, 12, 3)
    assert [int(thumbnail[row, col, 0]) for row, col in ((0, 0), (0, 11), (7, 0), (7, 11))] == [40, 50, 60, 70]


def test_tiles_lie_apart_and_the_newest_is_the_last():
    shown = looks(Thumbnail(every=8, side=2, apart=2), range(0, 160, 10))[15]
    assert [int(shown[row, col, 0]) for row, col in ((0, 0), (0, 11), (7, 0), (7, 11))] == [100, 120, 140, 150]


def test_a_picture_of_another_size_begins_anew():
    gate, state = Thumbnail(every=4, side=2, apart=1), Thumbnail().new_state()
    for n in range(3):
        gate.look(Frame(grey(10), float(n)), MemoryView(), state)
    shown = gate.look(Frame(grey(90, (20, 20)), 3.0), MemoryView(), state)
    assert isinstance(shown, np.ndarray) and shown.shape == (20, 20, 3) and (shown == 90).all()


def test_every_place_is_sampled_in_time_and_thumbnails_are_kept_whole():
    method, seen, counts = Sampled(every=8, sampled=4), set(), []
    state = method.new_state()
    for number in range(48):
        out = method.compress(VisualTokens.of_frame(torch.zeros(16, 4), (4, 4), number, float(number)), state)
        counts.append(len(out))
        if number % 8 != 7:
            seen |= set(out.slot.tolist())
    assert counts == ([4] * 7 + [16]) * 6 and seen == set(range(16))


def test_gate_and_compressor_agree_on_the_thumbnail():
    """In an engine the frame that is kept whole is the one that was tiled."""
    engine = Engine(
        models.load("pocket-naive"), gate="thumbnail:every=3", encoder="full", compressor="thumbnail:every=3"
    )
    with engine.open() as session:
        taken = [session.push(Frame(grey(20 * n, (128, 128)), float(n))) for n in range(6)]
    assert [event.tokens_kept for event in taken] == [8, 8, 64] * 2
