"""Simulated crowds on a real engine: who joins when, what fails, and where the time goes."""

import dataclasses
import math

import numpy as np
import pytest

from onlooker.cli.bench_streams import stall_lines
from onlooker.cli.crowd import Crowd
from onlooker.cli.trial import Cost, Demand, Longest, Trial
from onlooker.cli.verdict import by_cost, find_most, judge
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
    assert trial.holds and trial.failed == 0 and not trial.broke and trial.step_ms_a_frame > 0
    assert trial.questions > 3 and trial.first_token_p95_s is not None and trial.first_token_p95_s < 60
    assert 1 <= trial.frames_a_step * trial.steps <= 2 * 3 * 4 + 3
    assert math.isfinite(trial.frame_lag_p95_s) and trial.busy > 0
    assert trial.longest is not None and 0 < trial.longest.seconds < 60 and 0 <= trial.longest.at_s < 4
    assert trial.compiled == () and trial.device_allocations == 0 and trial.unready_s >= 0


def test_a_trial_tells_what_stopped_it():
    def row(**more) -> dict:
        return dataclasses.asdict(Trial(40, False, 0.9, 2.0, None, None, 7, 0, 0, 9, 7.0, 0.9, **more))

    stopped = Longest(1.93, 2.1, 28, 4, "0.31 s of looking for garbage; compiled attend_rows")
    quiet = Longest(0.1, 1.0, 16, 0, "")
    assert stall_lines([row(longest=quiet), row(longest=None)]) == []
    (line, waiting) = stall_lines([row(longest=stopped, unready_s=0.8)])
    assert line == (
        "40 streams: a step took 1.93 s at 2.1 s, with 28 frames and 4 questions "
        "(0.31 s of looking for garbage; compiled attend_rows)"
    )
    assert waiting.startswith("40 streams: 0.80 s in which")
    (line,) = stall_lines([row(longest=dataclasses.replace(stopped, why=""))])
    assert line.endswith("(no known cause)")


def test_failed_frames_are_counted_and_nothing_holds_with_one(tiny_model):
    """A memory that grows until its budget is used up: the frames after that are nobody's."""
    engine = make_engine(tiny_model, "full", device_budget_bytes=60_000)
    crowd = Crowd(engine, Demand(fps=4.0, questions_per_minute=0, **EASY), PICTURES, 4)
    trial = crowd.trial(1)
    assert trial.failed > 0 and not trial.holds and trial.broke[0] == "device memory"
    roomy = Crowd(make_engine(tiny_model, "full"), Demand(fps=4.0, questions_per_minute=0, **EASY), PICTURES, 4)
    assert roomy.trial(1).holds


def test_one_failed_frame_among_hundreds_is_one_too_many(engine, monkeypatch):
    """Of so many frames that the 95th percentile does not see it; a second, no more than a slow machine takes."""
    crowd = Crowd(engine, Demand(fps=5.0, questions_per_minute=0, **EASY | {"trial_s": 16.0}), PICTURES, 100)
    plan, calls = type(engine.memory).plan, []

    def fail_once(self, spans, state):
        calls.append(state)
        if len(calls) == 30:
            raise ZeroDivisionError("once")
        return plan(self, spans, state)

    monkeypatch.setattr(type(engine.memory), "plan", fail_once)
    trial = crowd.trial(1)
    assert trial.failed == 1 and len(calls) > 60
    assert trial.failures == {"ZeroDivisionError": 1} and trial.broke[0] == "failed frames (ZeroDivisionError)"
    assert trial.frame_lag_p95_s < 60 and not trial.holds


def test_streams_that_do_not_fit_end_the_search_with_memory_as_the_limit(tiny_model):
    # Every stream has seen a frame more than the one before it: so many join until one's memory is full.
    engine = make_engine(tiny_model, "full", device_budget_bytes=250_000)
    demand = Demand(questions_per_minute=0, **EASY)
    crowd = Crowd(engine, demand, PICTURES, 2)
    told = []
    best, trials = find_most(crowd, 1, 64, 60.0, told.append)
    assert best is not None and 1 <= best.streams < 64 and told == trials
    broken = [trial for trial in trials if not trial.holds]
    assert broken and broken[0].failed > 0 and not math.isfinite(broken[0].frame_lag_p95_s)
    assert len(engine.sessions) == len(crowd._sessions), "whoever could not join is gone"
    verdict = judge(best, trials, 64)
    assert verdict.why == "device memory" and verdict.fewer_than is not None and verdict.streams == best.streams
    crowd.close()


def test_only_a_limit_that_was_reached_is_called_one():
    def trial(streams: int, *broke: str) -> Trial:
        return Trial(streams, not broke, 0.1, 0.2, None, None, 0, 0, 0, 1, 1.0, 0.5, broke=broke)

    held = trial(40)
    found = judge(held, [held, trial(42, "frame lag", "first token")], 64)
    assert (found.streams, found.fewer_than, found.why, found.reached) == (40, 42, "frame lag", True)
    assert "the limit is frame lag" in found.told
    early = judge(held, [held, trial(80, "first token")], 100)
    assert not early.reached and "at least 40" in early.told and "first token" in early.told
    asked = judge(held, [held], 40)
    assert not asked.reached and asked.fewer_than is None and "--most" in asked.why and "at least 40" in asked.told
    late = judge(held, [held], 512)
    assert not late.reached and "--seconds" in late.why and "no limit was reached" in late.told
    none = judge(None, [trial(4, "frame lag"), trial(1, "device memory")], 64)
    assert none.streams == 0 and none.fewer_than == 1 and none.reached and none.why == "device memory"
    everything = judge(held, [held, trial(44, "device memory"), trial(42, "frame lag")], 64)
    assert everything.why == "frame lag", "the fewest that did not hold say why"


def test_cost_is_told_at_the_batch_that_it_has():
    costs = [Cost(1, 12.0, 12.0), Cost(16, 48.0, 3.0)]
    assert by_cost(costs, Demand(fps=2.0), 0.25) == {"frames_a_step": 16, "streams": pytest.approx(125.0)}
    assert by_cost([], Demand(), 0.0) == {}


def test_steps_are_costed_frame_by_frame_and_stage_by_stage(engine):
    crowd = Crowd(engine, Demand(**EASY), PICTURES, 100)
    for frames in (1, 4):
        cost = crowd.cost(frames, repeats=3)
        assert cost is not None and cost.frames == frames and cost.frame_ms == pytest.approx(cost.step_ms / frames)
        assert {"encode", "prefill", "memory"} <= set(cost.stage_ms) <= _stages() and not engine.stages.profile
        assert all(ms >= 0 for ms in cost.stage_ms.values())
    alone = crowd.question_alone()
    assert alone["first_token_ms"] > 0
    assert crowd.history_s >= 1.0


def test_costs_that_do_not_fit_are_left_out(tiny_model):
    engine = make_engine(tiny_model, "full", device_budget_bytes=60_000)
    crowd = Crowd(engine, Demand(**EASY), PICTURES, 4)
    assert crowd.cost(64) is None


def _stages() -> set[str]:
    return {"preprocess", "encode", "project", "compress", "prefill", "memory"}
