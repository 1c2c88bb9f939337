"""Memories of blocks, carried out by a store: what a question sees of them is as defined."""

import pytest
import torch
from stack import LAYERS, Stack, ask, assert_same, everything, new_store, watch
from test_questions import dense_answer

from onlooker.core.errors import InputError
from onlooker.core.spans import Span
from onlooker.memory.deep_sink import DeepSink
from onlooker.memory.select_recent import SelectRecent


def kept(store):
    return [span.id for span in store.spans]


@pytest.mark.parametrize("axes", [1, 3])
def test_deep_sinks_lie_right_before_the_newest_blocks(axes):
    """Contiguous positions over what is left, read where it lies: nothing is copied for a question."""
    stack = Stack(axes)
    store, policy = new_store(stack), DeepSink(window_frames=7, sink_frames=3)
    state = policy.new_state()
    for number in range(40):
        watch(stack, store, 2 + number % 3, number, "text" if number % 9 == 8 else "vision")
        store.apply(policy.plan(store.spans, state))
    assert kept(store) == [0, 1, 2, 3, 37, 38, 39, 40]
    with store.question(everything) as view:
        assert view.num_bytes() == 0
        wanted, _ = dense_answer(stack, store, [kept(store)] * LAYERS)
        assert_same(ask(stack, view), wanted)


def test_a_deep_sink_without_sinks_is_a_sliding_window():
    stack = Stack()
    store, policy = new_store(stack), DeepSink(window_frames=4, sink_frames=0)
    state = policy.new_state()
    for number in range(9):
        watch(stack, store, 3, number)
        store.apply(policy.plan(store.spans, state))
    assert kept(store) == [0, 6, 7, 8, 9]
    with pytest.raises(InputError, match="one block more"):
        DeepSink(window_frames=4, sink_frames=4)


def test_all_of_the_past_without_a_bar_is_everything():
    stack = Stack()
    full, store = new_store(stack), new_store(stack)
    policy = SelectRecent(recent=100, budget=100, bar=0)
    parks = SelectRecent(recent=2, budget=100, bar=0, first=0)
    state = policy.new_state()
    for number in range(9):
        for one in (full, store):
            watch(stack, one, 4, number)
        store.apply(policy.plan(store.spans, state))
    store.apply(parks.plan(store.spans, parks.new_state()))
    assert len([span for span in store.spans if span.tier.value == "host"]) == 7

    def choose(layer, spans, scores):
        return parks.recall(spans, scores, state)

    with (
        full.question(everything) as plain,
        store.question(choose, scored=True, scoring="shares") as one,
    ):
        assert_same(ask(stack, one, scored=True), ask(stack, plain))


def test_a_past_that_is_looked_at_less_than_the_present_stays_away():
    spans = [Span(0, "prefix", 3, 0.0, 0.0), *(Span(n, "vision", 4, float(n), float(n)) for n in range(1, 30))]
    policy, scores = SelectRecent(recent=3, budget=2, first=1), torch.full((30,), 0.1)
    scores[27:] = torch.tensor([0.2, 0.4, 0.6])
    assert policy.recall(spans, scores, policy.new_state()).blocks == (0, 1, 27, 28, 29)
    scores[[5, 9, 12]] = torch.tensor([0.5, 0.39, 0.7])
    assert policy.recall(spans, scores, policy.new_state()).blocks == (0, 1, 5, 12, 27, 28, 29)
    scores[9] = 0.8
    assert policy.recall(spans, scores, policy.new_state()).blocks == (0, 1, 9, 12, 27, 28, 29)
    half = SelectRecent(recent=3, budget=9, first=1, bar=0.5)
    scores[20] = 0.2
    assert half.recall(spans, scores, half.new_state()).blocks == (0, 1, 5, 9, 12, 20, 27, 28, 29)
