"""A frame and a question cost the same whatever the length of the stream behind them. Counted, not timed."""

import sys
import tracemalloc

import pytest
import torch
from stack import HEAD_DIM, KV_HEADS, LAYERS, QUERY_HEADS, Stack, new_store, place

from onlooker.core.spans import Plan, Recall
from onlooker.core.unread import Unread
from onlooker.memory.full import Full
from onlooker.memory.last_frames import LastFrames
from onlooker.memory.rekv import ReKV
from onlooker.memory.sliding_window import SlidingWindow

SHORT, LONG = 300, 3000
TOKENS = 2
OTHERS = 10_000
"""Bytes that other threads of this process (a server that tests share) may take meanwhile; a copied list has more."""
KEYS = torch.randn(KV_HEADS, TOKENS, HEAD_DIM)
QUERIES = torch.randn(QUERY_HEADS, TOKENS, HEAD_DIM)


def work_of(act) -> tuple[int, int]:
    """Calls of functions, and the most memory held at once (copies of lists and dicts are single calls)."""
    calls = 0

    def count(frame, event, arg):
        nonlocal calls
        calls += event in ("call", "c_call")

    tracemalloc.start()
    sys.setprofile(count)
    try:
        act()
    finally:
        sys.setprofile(None)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    return calls, peak


def push(store, policy, state, number: int) -> None:
    chunk = store.begin("vision", float(number), float(number), *place(TOKENS))
    chunk._written = LAYERS  # attention over the window is not what is counted
    chunk.seal()
    store.apply(policy.plan(store.spans, state))


def grown(policy, blocks: int):
    store, state = new_store(Stack()), policy.new_state()
    for number in range(blocks):
        push(store, policy, state, number)
    return store, state


def look(store, policy, state, visible=None) -> None:
    def choose(layer, spans, scores):
        return policy.recall(spans, scores, state)

    with store.question(choose, visible=visible, scored=policy.scores_layers) as view:
        if policy.scores_layers:
            retrieval = view.retrieval(*place(TOKENS))
            for layer in range(LAYERS):
                retrieval.attend(layer, QUERIES, KEYS, KEYS, 1.0)
        view.recalled()


BOUNDED = {
    "rekv": ReKV(topk=4, recent=2, window_tokens=20),
    "rekv first": ReKV(topk=4, recent=2, first=2, window_tokens=20, max_parked=10_000),
    "rekv full": ReKV(topk=4, recent=2, first=1, window_tokens=20, max_parked=250),
    "sliding_window": SlidingWindow(window_tokens=20),
}


@pytest.mark.parametrize("policy", BOUNDED.values(), ids=BOUNDED)
def test_of_memories_that_are_bounded_on_the_device(policy):
    work: dict[str, list[tuple[int, int]]] = {}
    for blocks in (SHORT, LONG):
        store, state = grown(policy, blocks)
        for name, visible in (("look", None), ("past", (blocks / 2, blocks / 2 + 40.0)), ("late", (1.0, 1e9))):
            work.setdefault(name, []).append(work_of(lambda v=visible, s=store, t=state: look(s, policy, t, v)))
        numbers = range(blocks, blocks + 64)  # so many that a move of all rows is among them in both
        frames = [work_of(lambda n=number, s=store, t=state: push(s, policy, t, n)) for number in numbers]
        work.setdefault("frame", []).append(tuple(map(max, zip(*frames, strict=True))))
        work.setdefault("fork", []).append(work_of(state.fork))
    for name, ((calls, peak), (more_calls, more_peak)) in work.items():
        assert more_calls <= 1.6 * calls + 60, f"{name}: {calls} calls became {more_calls}"
        assert more_peak <= 1.6 * peak + 20_000, f"{name}: {peak} bytes became {more_peak}"


def test_of_frames_that_are_read_at_the_question():
    policy, state, works = LastFrames(frames=5), LastFrames(frames=5).new_state(), []
    for number in range(LONG):
        note = Unread(torch.arange(TOKENS), float(number), float(number), "text")
        if number in (SHORT, LONG - 1):
            works.append(work_of(lambda note=note: policy.absorb(note, state.fork())))
        policy.absorb(note, state)
    few, many = works
    assert many[0] <= 1.6 * few[0] + 20 and many[1] <= 1.6 * few[1] + OTHERS


def test_a_plan_sees_all_spans_without_a_copy_of_them():
    works = []
    for blocks in (SHORT, LONG):
        store, _ = grown(Full(), blocks)
        works.append(work_of(lambda s=store: (s.spans[-1], s.spans[5:], s.spans[: len(s.spans) // 2], len(s.spans))))
        assert store.spans[3].id == 3
        store.apply(Plan(forget=(3,)))
        assert store.spans[3].id == 4
        with store.question(lambda layer, spans, scores: Recall((0, 4))) as view:
            store.apply(Plan(forget=(4,)))
            assert view.spans[3].id == 4, "a question sees the memory as it was"
    assert works[1][0] <= 1.6 * works[0][0] + 20 and works[1][1] <= 1.6 * works[0][1] + OTHERS
