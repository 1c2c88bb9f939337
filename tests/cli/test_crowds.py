"""Simulated crowds on a real engine: who joins when, what fails, and where the time goes."""

import math

import numpy as np
import pytest

from onlooker.cli.bench_load import _limit
from onlooker.cli.crowd import Crowd, Demand, Trial, find_most
from onlooker.engine import Engine

EASY = {"frame_lag_s": 60.0, "first_token_s": 60.0, "trial_s": 2.5, "answer_tokens": 4}
PICTURES = list(np.random.default_rng(0).integers(0, 256, (20, 56, 56, 3), dtype=np.uint8))


def make_engine(model, memory, **more) -> Engine:
    return Engine(
        model, encoder="stc_published:interval=4,recompute_ratio=0.25", compressor="identity", memory=memory, **more
    )


@pytest.fixture
def engine(tiny_model) -> Engine:
    return make_engine(tiny_model, "sliding_window:window_tokens=40")


def test_streams_join_one_frame_apart_with_a_full_memory(engine):
    crowd = Crowd(engine, Demand(**EASY), PICTURES, 100)
    crowd.trial(1)
    (first,) = crowd._sessions
    began = first.frames
    crowd.trial(5)
    frames = [session.frames for session in crowd._sessions]
    shown = [frames[0] - began, *(frames[n] - began - n for n in range(1, 5))]
    assert len(frames) == 5 and all(taken >= 0 for taken in shown)
    # They do not all compute the same frame whole: with an interval of four, four streams in a row have four phases.
    fresh = Crowd(engine, Demand(**EASY), PICTURES, 100)
    while len(fresh._sessions) < 5:
        fresh._join(fresh._sessions[-1], fresh._next[-1])
    ages = [session.states["encoder"].export()[1]["age"] for session in fresh._sessions]
    assert sorted(ages[:4]) == sorted(set(ages)) and ages[4] == ages[0]
    assert [session.frames - fresh._sessions[0].frames for session in fresh._sessions] == [0, 1, 2, 3, 4]
    crowd.trial(2)
    assert len(crowd._sessions) == 2 and crowd._sessions[0] is first, "the others hold no memory in a smaller trial"
    tokens = [sum(span.num_tokens for span in session.store.spans) for session in fresh._sessions]
    assert max(tokens) - min(tokens) <= 2 and fresh.context_tokens == tokens[0], "every memory has its size"
    held = [sum(session.stats().memory_bytes.values()) for session in fresh._sessions]
    assert sum(fresh.bytes_by_kind.values()) == held[0] and max(held) <= 1.2 * min(held)
    assert fresh.stream_bytes == pytest.approx(1.1 * held[0], abs=1)
    for each in (crowd, fresh):
        each.close()
    assert not fresh._sessions and not engine.sessions


def test_a_trial_counts_what_it_did(engine):
    crowd = Crowd(engine, Demand(fps=2.0, questions_per_minute=120, **EASY), PICTURES, 100)
    trial = crowd.trial(3)
    assert trial.holds and trial.failed == 0 and not trial.stage_ms.keys() - {"rest", *_stages()}
    assert trial.questions > 3 and trial.first_token_p95_s is not None and trial.first_token_p95_s < 60
    assert 1 <= trial.frames_a_step * trial.steps <= 2 * 3 * 4 + 3
    assert math.isfinite(trial.frame_lag_p95_s) and trial.busy > 0


def test_failed_frames_are_counted_and_nothing_holds_with_one(tiny_model):
    """A memory that grows until its budget is used up: the frames after that are nobody's."""
    engine = make_engine(tiny_model, "full", device_budget_bytes=60_000)
    crowd = Crowd(engine, Demand(fps=4.0, questions_per_minute=0, **EASY), PICTURES, 4)
    trial = crowd.trial(1)
    assert trial.failed > 0 and not trial.holds
    roomy = Crowd(make_engine(tiny_model, "full"), Demand(fps=4.0, questions_per_minute=0, **EASY), PICTURES, 4)
    assert roomy.trial(1).holds


def test_one_failed_frame_among_hundreds_is_one_too_many(engine, monkeypatch):
    """Of so many frames that the 95th percentile does not see it."""
    crowd = Crowd(engine, Demand(fps=40.0, questions_per_minute=0, **EASY), PICTURES, 100)
    plan, calls = type(engine.memory).plan, []

    def fail_once(self, spans, state):
        calls.append(state)
        if len(calls) == 30:
            raise ZeroDivisionError("once")
        return plan(self, spans, state)

    monkeypatch.setattr(type(engine.memory), "plan", fail_once)
    trial = crowd.trial(1)
    assert trial.failed == 1 and len(calls) > 60
    assert trial.frame_lag_p95_s < 60 and not trial.holds


def test_streams_that_do_not_fit_end_the_search_with_memory_as_the_limit(tiny_model):
    # Every stream has seen a frame more than the one before it: so many join until one's memory is full.
    engine = make_engine(tiny_model, "full", device_budget_bytes=400_000)
    demand = Demand(questions_per_minute=0, **EASY)
    crowd = Crowd(engine, demand, PICTURES, 2)
    told = []
    best, trials = find_most(crowd, 1, 64, 60.0, told.append)
    assert best is not None and 1 <= best.streams < 64 and told == trials
    broken = [trial for trial in trials if not trial.holds]
    assert broken and broken[0].failed > 0 and not math.isfinite(broken[0].frame_lag_p95_s)
    assert len(engine.sessions) == len(crowd._sessions), "whoever could not join is gone"
    assert _limit(best, trials, 64, 1000) == "memory"
    crowd.close()


def test_the_limit_has_a_name():
    def trial(streams: int, holds: bool, failed: int = 0) -> Trial:
        return Trial(streams, holds, 0.1, 0.2, None, None, 0, 0, 0, 1, 1.0, 0.5, failed=failed)

    held = trial(4, True)
    assert _limit(held, [held, trial(8, False)], 64, 1000) == "time"
    assert _limit(held, [held], 4, 1000) == "asked for no more"
    assert _limit(held, [held], 64, 4) == "memory"
    assert _limit(held, [held, trial(8, False), trial(6, False, 2)], 64, 1000) == "memory"
    assert _limit(None, [trial(1, False)], 64, 1000) == "time"


def test_the_rest_is_what_no_frame_was_the_reason_of(engine):
    rests = []
    for questions in (0, 600):
        crowd = Crowd(engine, Demand(fps=2.0, questions_per_minute=questions, **EASY), PICTURES, 100)
        trial = crowd.trial(2, by_stage=True)
        crowd.close()
        assert {"rest", "encode", "prefill", "memory"} <= set(trial.stage_ms) <= {"rest", *_stages()}
        assert all(ms >= 0 for ms in trial.stage_ms.values())
        rests.append(trial.stage_ms["rest"])
    assert rests[1] > 2 * rests[0] and not engine.profile


def _stages() -> set[str]:
    return {"preprocess", "encode", "project", "compress", "prefill", "memory"}
