"""Records survive JSON, errors teach, frames are checked, and none of the three needs torch."""

import dataclasses
import subprocess
import sys

import numpy as np
import pytest

from onlooker.core import errors
from onlooker.core.errors import InputError, OnlookerError
from onlooker.core.frame import Frame
from onlooker.core.records import QueryRecord, ReplyRecord, VideoRecord, from_json, to_json

RECORDS = [
    VideoRecord("v1", "clip.mp4", 12.5, 25.0, side=({"t": 1.0, "kind": "cut"},), quiet=((0.0, 2.0), (3.5, 4.0))),
    QueryRecord("q1", "v1", "pocket", "count", "now", 3.0, "How many?", "two"),
    QueryRecord(
        "q2",
        "v1",
        "pocket",
        "order",
        "past",
        9.0,
        "Wer ging zuerst, \u201edas Rote\u201c?",
        "red",
        options=("red", "blue"),
        context=(-5.0, None),
        evidence=((1.0, 2.0),),
        windows=((9.0, 10.0),),
        test_points=({"t": 9.5, "expect": True},),
        links=("q1",),
        meta={"seed": 3},
    ),
    ReplyRecord("q1", 3.2, "two\nof them", score=0.5, latency={"first_token_s": 0.2}),
]


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: record.type)
def test_a_record_survives_json(record) -> None:
    line = to_json(record)
    assert "\n" not in line and from_json(line) == record
    assert to_json(from_json(line)) == line


@pytest.mark.parametrize(
    "line",
    [
        *("", "{", "[]", "3", "null", '{"type": "video"}', '{"type": "movie"}', '{"id": "q"}'),
        to_json(RECORDS[0])[:-1] + ', "colour": 1}',
    ],
)
def test_a_line_that_is_no_record_is_refused(line: str) -> None:
    with pytest.raises(InputError) as caught:
        from_json(line)
    assert caught.value.do


def test_records_are_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        RECORDS[0].id = "other"  # type: ignore[misc]


def test_an_error_says_what_what_was_given_and_what_to_do() -> None:
    error = InputError("the door is shut", given="door=3", do="open it")
    assert str(error) == "the door is shut; given: door=3; try: open it"
    assert (error.what, error.given, error.do) == ("the door is shut", "door=3", "open it")
    assert str(OnlookerError("it rains")) == "it rains"
    assert isinstance(error, ValueError)


def test_every_error_has_an_exit_code_of_its_own() -> None:
    family = [c for c in vars(errors).values() if isinstance(c, type) and issubclass(c, OnlookerError)]
    codes = [c.exit_code for c in family]
    assert len(family) >= 7 and len(set(codes)) == len(codes) and 0 not in codes
    assert all(f"exit code {c.exit_code}" in (c.__doc__ or "") for c in family if c is not OnlookerError)


def picture(*shape: int, dtype: type = np.uint8) -> np.ndarray:
    return np.zeros(shape, dtype)


def test_a_frame_carries_its_time() -> None:
    frame = Frame(picture(4, 6, 3), 1.5, wall_time_s=1e9)
    assert (frame.time_s, frame.wall_time_s) == (1.5, 1e9)
    assert Frame(picture(1, 1, 3), 0).time_s == 0


@pytest.mark.parametrize(
    ("image", "time_s"),
    [
        (picture(4, 6), 0.0),
        (picture(4, 6, 4), 0.0),
        (picture(3, 4, 6), 0.0),
        (picture(4, 6, 3, dtype=np.float32), 0.0),
        ([[1, 2, 3]], 0.0),
        (None, 0.0),
        (picture(0, 6, 3), 0.0),
        (picture(4, 0, 3), 0.0),
        (picture(4, 6, 3), -0.1),
        (picture(4, 6, 3), float("nan")),
        (picture(4, 6, 3), float("inf")),
    ],
)
def test_a_wrong_frame_is_refused(image, time_s: float) -> None:
    with pytest.raises(InputError) as caught:
        Frame(image, time_s)
    assert caught.value.given and caught.value.do


def test_frames_records_and_errors_do_not_need_torch() -> None:
    code = (
        "import sys, onlooker.core.frame, onlooker.core.records, onlooker.core.errors, onlooker.core.registry\n"
        "import onlooker.compress\n"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
