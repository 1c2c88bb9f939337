"""Every public argument of frames, engines, sessions and queues: what is wrong is refused by name."""

import fractions
import io

import numpy as np
import pytest
from moving_pictures import make_frames

import onlooker
from onlooker.core.errors import InputError, SessionClosed
from onlooker.core.frame import Frame
from onlooker.engine import Engine
from onlooker.engine.scheduler import Scheduler
from onlooker.engine.slo import SLO
from onlooker.respond import Rule

PICTURE = np.zeros((56, 56, 3), np.uint8)
HALF = "\ud83d"
WRONG_NUMBERS = ("1", None, True, [1], b"1", 1j, float("nan"), float("inf"), -1, 10**400, np.array([1.0]))


@pytest.mark.parametrize("wrong", WRONG_NUMBERS, ids=ascii)
def test_the_time_of_a_frame(wrong):
    with pytest.raises(InputError, match="time_s"):
        Frame(PICTURE, wrong)
    if wrong is not None and wrong != -1:
        with pytest.raises(InputError, match="wall_time_s"):
            Frame(PICTURE, 0.0, wrong)


@pytest.mark.parametrize("right", [0, 1.5, np.float32(1.5), np.int64(3), fractions.Fraction(3, 2)], ids=repr)
def test_any_real_number_is_a_time(right):
    frame = Frame(PICTURE, right, right)
    assert frame.time_s == float(right) and type(frame.time_s) is float and type(frame.wall_time_s) is float


@pytest.mark.parametrize(
    "wrong", [{"longest_side": 0}, {"longest_side": "x"}, {"quality": 0}, {"quality": 101}], ids=str
)
def test_a_jpeg(wrong):
    with pytest.raises(InputError, match=next(iter(wrong))):
        Frame(PICTURE, 0.0).jpeg(**wrong)
    assert Frame(PICTURE, 0.0).jpeg(longest_side=8).startswith(b"\xff\xd8")


@pytest.mark.parametrize(
    "wrong",
    [
        {"layout": "spread"}, {"device_budget_bytes": "1"}, {"device_budget_bytes": 0}, {"host_budget_bytes": 1.5},
        {"host_budget_bytes": True}, {"passes": "fast"}, {"encoder": 5}, {"compressor": None}, {"memory": ["full"]},
    ],
    ids=str,
)  # fmt: skip
def test_an_engine(tiny_model, wrong):
    with pytest.raises(InputError, match=next(iter(wrong))):
        Engine(tiny_model, **wrong)


def test_an_engine_of_a_name_says_how_to_load_it():
    with pytest.raises(InputError, match="from_pretrained"):
        Engine("pocket")


@pytest.mark.parametrize(
    "wrong",
    [{"most_frames": 0}, {"most_frames": "1"}, {"most_tokens": 0}, {"picture": (0, 5)}, {"picture": ("a", 5)}],
    ids=str,
)
def test_preparing(plain, wrong):
    with pytest.raises(InputError, match=next(iter(wrong))):
        plain.prepare(**wrong)


@pytest.mark.parametrize("wrong", ["", " \n", None, 5, b"what", f"what {HALF}?", f"{HALF}"], ids=ascii)
def test_the_words_of_a_question(plain, wrong):
    session = plain.open()
    session.push(Frame(PICTURE, 0.0))
    for ask in (session.ask, session.submit, session.stream):
        with pytest.raises(InputError, match="question") as refused:
            ask(wrong)
        str(refused.value).encode()  # it can be printed
    with pytest.raises(InputError, match="prompt"):
        Rule("rule", wrong)
    assert session.ask("is that a \U0001f600 ?", max_new_tokens=1).finish


def test_a_question_longer_than_the_model_can_place(plain):
    session = plain.open()
    session.push(Frame(PICTURE, 0.0))
    most = plain.model.spec.max_positions
    for question, options in (("x " * most, {}), ("what ?", {"max_new_tokens": most})):
        with pytest.raises(InputError, match="positions"):
            session.submit(question, decoding=onlooker.engine.Decoding(**options))


@pytest.mark.parametrize(
    "wrong",
    [
        {"name": 5}, {"name": "two words"}, {"name": HALF}, {"prompt": 5}, {"every_s": "1"}, {"every_s": -1},
        {"every_s": True}, {"policy": "threshold"}, {"policy": 5},
    ],
    ids=ascii,
)  # fmt: skip
def test_a_rule(wrong):
    with pytest.raises(InputError, match=next(iter(wrong))):
        Rule(**{"name": "rule", "prompt": "Is it red?"} | wrong)


def test_what_is_handed_to_a_step(tiny_model, plain):
    other = Engine(tiny_model, memory="full")
    session, frame = plain.open(), Frame(PICTURE, 0.0)
    for wrong in (PICTURE, None, "frame"):
        with pytest.raises(InputError, match="frames"):
            session.push(wrong)
    session.push(frame)
    request = session.submit("what ?")
    with pytest.raises(InputError, match="own engine"):
        other.step([(session, Frame(PICTURE, 1.0))])
    with pytest.raises(InputError, match="own engine"):
        other.step([], [request])
    with pytest.raises(InputError, match="takes rules"):
        session.watch(["star: is there a star?"])
    assert session.stats().frames == 1


def test_a_scheduler_and_its_lanes(plain):
    scheduler = Scheduler(plain, SLO(workers=1))
    for wrong in ("1", 0, -1, True, float("nan"), 10**6):
        with pytest.raises(InputError, match="fps"):
            scheduler.open(wrong)
    queue, left, frames = scheduler.open(), scheduler.open(), make_frames(4)
    with pytest.raises(InputError, match="takes frames"):
        queue.submit(PICTURE)
    queue.submit(frames[0])
    queue.session.close()
    left.close()
    for gone in (queue, left):
        with pytest.raises(SessionClosed):
            gone.submit(frames[1])
    open_still = scheduler.open()
    scheduler.close()
    for act in (
        lambda: open_still.submit(frames[1]),
        scheduler.open,
        lambda: scheduler.adopt(plain.open()),
        lambda: scheduler.ask(open_still, "what ?"),
    ):
        for _ in range(2):
            with pytest.raises(SessionClosed) as refused:
                act()
    assert len(refused.traceback) < 12


def test_an_offer_in_the_moment_in_which_the_scheduler_closes(plain):
    scheduler = Scheduler(plain, SLO(workers=1))
    queue = scheduler.open()
    assert scheduler.resizer is not None
    scheduler.resizer.shutdown()
    with pytest.raises(SessionClosed):
        queue.submit(Frame(PICTURE, 0.0))


@pytest.mark.parametrize(
    "wrong",
    [
        {"fps": 2**2000}, {"fps": "1"}, {"fps": 0}, {"fps": True}, {"size": 5}, {"size": (0, 1)}, {"aspect": "wide"},
        {"start_s": "x"}, {"start_s": -1}, {"end_s": 0}, {"end_s": "x"}, {"on_damage": "cry"}, {"threads": -1},
        {"threads": 1.5}, {"timeout_s": 0}, {"timeout_s": "x"},
    ],
    ids=lambda wrong: next(iter(wrong)),
)  # fmt: skip
def test_opening_a_video(wrong):
    file = io.BytesIO(Frame(PICTURE, 0.0).jpeg())
    with pytest.raises(InputError, match=next(iter(wrong))):
        onlooker.open_video(file, **wrong)
