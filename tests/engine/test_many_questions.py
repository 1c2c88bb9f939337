"""Many questions about one moment: the answers of single ones, what they share read once, and no mark left."""

import pytest
import torch
from moving_pictures import make_frames

from onlooker.core.errors import InputError
from onlooker.engine import Engine
from onlooker.kvstore import attention

QUESTIONS = [
    "what is happening in the video ?",
    "which shape left first ?",
    "how many objects are visible now ?",
    "what is at the left ?",
    "what is at the left ?",
]
METHODS = ("full", "sliding_window:window_tokens=20", "rekv:topk=2,recent=1,window_tokens=6", "last_frames:frames=3",
           "late_drop", "infinipot_v:window_tokens=20,keep_tokens=10")  # fmt: skip


def watched(model, memory, passes="plain"):
    session = Engine(model, encoder="full", compressor="identity", memory=memory, passes=passes).open()
    for frame in make_frames(6):
        session.push(frame)
    return session


def told(answers):
    return [(a.text, a.question, a.time_s, a.usage, a.finish, len(a.citations)) for a in answers]


@pytest.mark.parametrize("passes", ["plain", "packed"])
@pytest.mark.parametrize("memory", METHODS)
def test_answers_are_those_of_single_questions(tiny_model, memory, passes):
    session = watched(tiny_model, memory, passes)
    alone = [session.ask(question, max_new_tokens=6) for question in QUESTIONS]
    together = session.ask_many(QUESTIONS, max_new_tokens=6)
    assert told(together) == told(alone)
    for one, other in zip(alone, together, strict=True):
        for a, b in zip(one.citations, other.citations, strict=True):
            assert a.start_s == b.start_s and abs(a.share - b.share) < 1e-4
    assert told(session.ask_many(QUESTIONS, max_new_tokens=6, at_once=2)) == told(alone)
    if memory != "full":
        return
    earlier = session.ask_many(QUESTIONS[:2], max_new_tokens=4, at=session.time_s / 2)
    assert told(earlier) == told([session.ask(q, max_new_tokens=4, at=session.time_s / 2) for q in QUESTIONS[:2]])


def test_what_all_see_is_read_once_for_all(tiny_model, monkeypatch):
    """The products with the stream's keys: as many for five questions as for one."""
    session = watched(tiny_model, "full")
    rows = sum(span.num_tokens for span in session.store.spans)
    counts, product = [], attention._product

    def counted(left, right):
        counts.append(right.shape[-1] == rows)
        return product(left, right)

    monkeypatch.setattr(attention, "_product", counted)
    session.ask_many(QUESTIONS[:1], max_new_tokens=4)
    one = sum(counts)
    counts.clear()
    session.ask_many(QUESTIONS[:3], max_new_tokens=4)
    assert sum(counts) <= 2 * one < 3 * one


def test_a_question_among_streams_stays_with_its_own(tiny_model):
    """Questions of two streams in one step: each group sees its own past."""
    engine = Engine(tiny_model, encoder="full", compressor="identity", memory="full")
    sessions = [engine.open(), engine.open()]
    for number, session in enumerate(sessions):
        for frame in make_frames(5, seed=number):
            session.push(frame)
    wanted = [told(session.ask_many(QUESTIONS[:2], max_new_tokens=5)) for session in sessions]
    flying = [[session.submit(question) for question in QUESTIONS[:2]] for session in sessions]
    for _ in range(5):
        engine.step_requests([request for some in flying for request in some if not request.done])
    for some in flying:
        for request in some:
            request.cancel()
    assert [[r.answer().text for r in some] for some in flying] == [[one[0] for one in some] for some in wanted]


def test_a_bad_list_costs_nothing(tiny_model):
    session = watched(tiny_model, "full")
    before = session.stats()
    for bad, match in ((["what ?", " "], "question 2 of 2"), ("what ?", "a list of questions")):
        with pytest.raises(InputError, match=match):
            session.ask_many(bad)
    with pytest.raises(InputError, match="some at a time"):
        session.ask_many(["what ?"], at_once=0)
    with pytest.raises(InputError):
        session.ask_many(["what ?"], at=99.0)
    assert session.ask_many([]) == []
    assert session.stats().answers == before.answers and session.store.num_bytes()["device_views"] == 0


@pytest.mark.parametrize("counts", [(1, 1, 1), (4, 2, 1), (30, 30, 30)])
def test_together_equals_one_after_the_other(counts):
    torch.manual_seed(0)
    keys, values = torch.randn(2, 2, 37, 8)
    parts = []
    for number, count in enumerate(counts):
        tail = torch.randn(2, 2, count + number, 8)
        parts.append(attention.OnPast(torch.randn(4, count, 8), (tail[0], tail[1]), num_held=number))
    found = attention.attend_together(parts, keys, values, 0.3)
    for part, (out, weights) in zip(parts, found, strict=True):
        wanted, looks = attention.attend_context_and_tail(part.queries, (keys, values), part.tail, 0.3, part.num_held)
        assert torch.allclose(out, wanted, atol=1e-6) and torch.allclose(weights, looks, atol=1e-6)
