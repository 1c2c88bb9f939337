"""Frames in order, questions in their place: replay shows a system the past and nothing else."""

from types import SimpleNamespace

import pytest
from scripted_items import Honest, frames_of, item, many, query

from onlooker.core.errors import InputError
from onlooker.core.records import VideoRecord
from onlooker.engine import Engine
from onlooker.evals import controls
from onlooker.evals.item import Item
from onlooker.evals.replay import replay
from onlooker.evals.systems import EngineSystem, Said, System, Watcher


def texts(outcomes):
    return {outcome.query.id: [reply.text for reply in outcome.replies] for outcome in outcomes}


def test_a_question_sees_every_frame_up_to_its_time_and_no_later_one():
    outcomes = replay(Honest(), [item("a", asks=(0.5, 3.0, 3.5, 9.5), answers=("x",) * 4)])
    # A picture at the very time of the question belongs to its past.
    assert texts(outcomes) == {"a-0": ["20 1"], "a-1": ["41 4"], "a-2": ["41 4"], "a-3": ["83 10"]}


def test_one_pass_serves_all_questions_of_a_video():
    opened = []

    class Counting(Honest):
        def open(self, item):
            opened.append(item.video.id)
            return super().open(item)

    replay(Counting(), many(3))
    assert opened == ["v00", "v01", "v02"]


@pytest.mark.parametrize("parallel", [1, 3, 20])
def test_side_by_side_equals_one_by_one(parallel):
    items = [item(f"v{n}", 5 + n, asks=(1.5, 4.5)) for n in range(7)]
    assert texts(replay(Honest(), items, parallel=parallel)) == texts(replay(Honest(), items, parallel=1))


def test_a_broken_video_fails_its_later_questions_only():
    outcomes = replay(Honest(), [item("a", break_at=4.0), item("b")])
    failures = {outcome.query.id: outcome.failure for outcome in outcomes}
    assert failures["a-0"] == "" and "the disk is gone" in failures["a-1"] and failures["b-1"] == ""


def test_a_video_that_ends_early_is_a_failure():
    (early, late) = replay(Honest(), [item("a", seconds=4, asks=(2.5, 60.0))])
    assert early.failure == "" and "the video ended at 3.0 s" in late.failure and late.reply is None


def test_a_question_before_the_first_frame_is_a_failure(tiny_model):
    engine = Engine(tiny_model, encoder="full", compressor="identity", memory="full")
    late_start = Item(
        VideoRecord("a", "", 9.0, 1.0), (query("a", 0, 0.5), query("a", 1, 4.5)),
        lambda fps: (frame for frame in frames_of(9, fps) if frame.time_s >= 2),
    )  # fmt: skip
    first, second = replay(engine, [late_start])
    assert "before the first frame" in first.failure and second.failure == ""


def test_polls_happen_at_test_points_and_on_the_way():
    request = query(
        "a", 0, 1.0, answer_type="proactive", windows=((6.0, 8.0),), options=("yes", "no"),
        test_points=({"t": 3.3, "expect": "no"}, {"t": 6.5, "expect": "yes"}),
        meta={"poll_every_s": 2.0, "poll_until_s": 8.0},
    )  # fmt: skip
    (outcome,) = replay(controls.Oracle(), [item("a", queries=[request])])
    assert [(r.t, r.text) for r in outcome.replies] == [
        (3.0, "no"),
        (3.3, "no"),
        (5.0, "no"),
        (6.5, "yes"),
        (7.0, "yes"),
    ]
    assert {reply.kind for reply in outcome.replies} == {"poll"}


def test_a_request_that_ends_with_the_first_yes_is_followed_by_the_question():
    request = query(
        "a", 0, 1.0, "boom", answer_type="proactive", windows=((4.0, 8.0),), tolerance=2.0, question="Say boom.",
        meta={"phrase": "boom", "poll": "now?", "poll_every_s": 1.0, "poll_until_s": 9.0, "flags": ["until_yes"]},
    )  # fmt: skip
    (outcome,) = replay(controls.Oracle(), [item("a", queries=[request])])
    assert [(r.t, r.kind, r.text) for r in outcome.replies][-2:] == [(6.0, "poll", "yes"), (6.0, "unprompted", "boom")]


def test_a_dialogue_shows_the_systems_own_words():
    asked = []

    class Recorder(System):
        def open(self, item):
            class One(Watcher):
                def watch(self, frame):
                    pass

                def answer(self, question):
                    asked.append(question.text)
                    return Said(f"reply {len(asked)}")

            return One()

    chain = [query("a", n, 3.5, history="own", group="c", question=f"q{n}") for n in range(3)]
    replay(Recorder(), [item("a", queries=chain)])
    assert asked[0] == "q0" and "Question: q0\nAnswer: reply 1\n" in asked[1] and "Answer: reply 2" in asked[2]


def test_in_real_time_lag_costs_frames_and_answers_see_less(monkeypatch):
    now_s = 0.0
    monkeypatch.setattr("onlooker.evals.replay.time", SimpleNamespace(perf_counter=lambda: now_s))

    class Slow(Honest):
        def watch_all(self, arrivals):
            nonlocal now_s
            now_s += 0.15
            return super().watch_all(arrivals)

    quick = replay(Honest(), [item("a", asks=(2.05, 2.55))], fps=20.0, pace="realtime", parallel=1)
    videos = []
    slow = replay(Slow(), [item("a", asks=(2.05, 2.55))], fps=20.0, pace="realtime", parallel=1, on_video=videos.append)
    seen = [int(outcome.replies[0].text.split()[1]) for outcome in (quick[0], slow[0])]
    assert seen[0] == 42 and seen[1] < 20
    assert videos[0].stats["lag_s"] > 1 and videos[0].stats["dropped"] > 0


def test_an_engine_answers_the_same_in_every_run_and_counts_tokens(tiny_model):
    items = [item(f"v{n}", 4, asks=(1.5, 3.5)) for n in range(3)]
    engine = Engine(tiny_model, encoder="full", compressor="random:keep=2", memory="full")
    videos = []
    first = replay(engine, items, parallel=3, on_video=videos.append)
    again = replay(EngineSystem(engine), items, parallel=1)
    assert texts(first) == texts(again)
    assert videos[0].stats["tokens_kept"] == 8 and videos[0].stats["tokens_seen"] == 16
    assert videos[0].stats["tokens_read"] > 8 and videos[0].stats["held"]
    reply = first[0].replies[0]
    assert reply.meta["frames"] == 2 and reply.latency["total"] >= reply.latency["first"] > 0


def test_text_only_never_sees_the_video(tiny_model):
    engine = Engine(tiny_model, encoder="full", compressor="identity", memory="full")
    system = controls.TextOnly(EngineSystem(engine))
    one = item("a", asks=(1.5,), answers=("x",))
    other = Item(one.video, one.queries, lambda fps: (type(f)(255 - f.image, f.time_s) for f in frames_of(10, fps)))
    outcomes = replay(system, [one])
    assert outcomes[0].failure == "" and outcomes[0].replies[0].meta["frames"] == 1
    assert texts(outcomes) == texts(replay(system, [other]))


def test_an_engine_that_peeks_is_caught(tiny_model):
    engine = Engine(tiny_model, encoder="full", compressor="identity", memory="full")
    assert violations_of(engine) == 0
    assert violations_of(controls.Peeking(EngineSystem(engine), 3.0)) > 0


def violations_of(system):
    from onlooker.evals.causality import violations

    return len(violations(system, many(1)))


def test_a_full_session_is_a_failure_of_its_own_video(tiny_model):
    engine = Engine(tiny_model, encoder="full", compressor="identity", memory="full", device_budget_bytes=40_000)
    outcomes = replay(engine, [item("a", 10, asks=(0.5, 9.5))])
    assert outcomes[0].failure == "" and "frame at" in outcomes[1].failure


def test_a_bad_question_fails_alone(tiny_model):
    engine = Engine(tiny_model, encoder="full", compressor="identity", memory="full")
    queries = [query("a", 0, 2.5, question=" "), query("a", 1, 2.5)]
    empty, fine = replay(engine, [item("a", queries=queries)])
    assert "needs words" in empty.failure and fine.failure == ""
    with pytest.raises(InputError):
        engine.open().ask("what?")
