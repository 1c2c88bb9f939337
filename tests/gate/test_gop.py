"""The gate that listens to the video's encoder, on clips that really went through one."""

from fractions import Fraction

import av
import numpy as np
import pytest

from onlooker.core.contracts import MemoryView
from onlooker.core.errors import InputError
from onlooker.core.frame import Frame
from onlooker.gate import Gop
from onlooker.video import open_video

ROWS, COLS = 144, 192
GROUND = np.random.default_rng(0).integers(0, 255, (18, 24, 3), dtype=np.uint8).repeat(8, 0).repeat(8, 1)


def clip(path, moves_from=8, moves_to=12, num=20, codec="libx264", **options):
    """A square that stands on a ground, moves for a while, and stands again; five pictures a second."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=5, options={"g": "100", "bf": "0"} | options)
        stream.width, stream.height, stream.pix_fmt = COLS, ROWS, "yuv420p" if codec != "mjpeg" else "yuvj420p"
        for index in range(num):
            image, left = GROUND.copy(), 30 + 6 * min(max(index - moves_from, 0), moves_to - moves_from)
            image[60:92, left : left + 32] = (250, 240, 10)
            frame = av.VideoFrame.from_ndarray(image, format="rgb24").reformat(format=stream.pix_fmt)
            frame.pts, frame.time_base = index, Fraction(1, 5)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def seen(gate, path, codec=True):
    """Which pictures are encoded, and the gate's state."""
    state, last, found = gate.new_state(), None, []
    with open_video(path, fps=None, codec=codec) as source:
        for number, frame in enumerate(source):
            if gate.look(frame, MemoryView((), last), state):
                found.append(number)
                last = frame.time_s
    return found, state


def test_only_what_moved_is_encoded(tmp_path):
    found, state = seen(Gop(), clip(tmp_path / "a.mp4"))
    assert found[0] == 0 and set(range(9, 13)) <= set(found), found
    assert not set(range(2, 9)) & set(found) and not set(range(14, 20)) & set(found), found
    assert state.num_fallbacks == 1  # the first picture: nothing leads to it


def test_where_the_encoder_says_nothing_the_pixels_decide_and_it_is_counted(tmp_path):
    found, state = seen(Gop(threshold=40.0), clip(tmp_path / "a.avi", codec="mjpeg"))
    assert found == [0, 9, 10, 11, 12] and state.num_fallbacks == 20


def test_a_picture_without_a_past_is_judged_by_its_pixels(tmp_path):
    found, state = seen(Gop(), clip(tmp_path / "a.mp4", g="4", sc_threshold="0"))
    assert state.num_fallbacks == 5 and {9, 10, 11, 12} <= set(found) and len(found) < 9, found


def test_small_steps_add_up():
    """No step is far enough by itself."""
    from onlooker.core.codec import CodecRecord

    gate, known = Gop(motion=0.01, unknown=1.0), np.ones((2, 2), np.float32)
    state, last, found = gate.new_state(), None, []
    for number in range(9):
        said = CodecRecord("P", 1, 0, 100, np.full((2, 2, 2), 0.003, np.float32), known if number else None)
        if gate.look(Frame(GROUND, float(number), codec=said), MemoryView((), last), state):
            found.append(number)
            last = float(number)
    assert found == [0, 3, 6]


def test_a_burst_of_bytes_is_seen():
    from onlooker.core.codec import CodecRecord

    gate, state, still, found = Gop(), Gop().new_state(), np.zeros((2, 2, 2), np.float32), []
    for number, size in enumerate([100, 100, 110, 900, 100]):
        said = CodecRecord("P", 1, 0, size, still, np.ones((2, 2), np.float32))
        if gate.look(Frame(GROUND, float(number), codec=said), MemoryView((), 0.0 if number else None), state):
            found.append(number)
    assert found == [0, 3]


def test_settings_out_of_range():
    for wrong in ({"motion": -1.0}, {"unknown": 2.0}, {"burst": 0.5}, {"threshold": 300.0}):
        with pytest.raises(InputError):
            Gop(**wrong)
