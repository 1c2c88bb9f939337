"""`livevlm` and `participative`: the rows that the newest queries choose, against plain loops."""

import math

import pytest
import torch

from onlooker.core.errors import InputError
from onlooker.core.spans import Span
from onlooker.memory.livevlm import LiveVLM
from onlooker.memory.participative import Participative

LAYERS, QUERY_HEADS, HEADS, DIM = 2, 4, 2, 8


def some(rows, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(2, LAYERS, HEADS, rows, DIM, generator=generator)


def asks(tokens, seed=0):
    return torch.randn(LAYERS, QUERY_HEADS, tokens, DIM, generator=torch.Generator().manual_seed(100 + seed)) * 3


def looks(keys, queries):
    """Mean attention on each row, one number at a time."""
    out = [[[0.0] * keys.shape[2] for _ in range(HEADS)] for _ in range(LAYERS)]
    for layer in range(LAYERS):
        for head in range(QUERY_HEADS):
            for query in queries[layer, head]:
                logits = [float(query @ key) / math.sqrt(DIM) for key in keys[layer, head // 2]]
                total = sum(math.exp(one - max(logits)) for one in logits)
                for row, one in enumerate(logits):
                    out[layer][head // 2][row] += math.exp(one - max(logits)) / total / (2 * queries.shape[2])
    return out


def buckets_by_hand(scores, places, total, keep, size, sinks):
    """Sinks first, then falling scores where the bucket has room, then falling scores."""
    order = sorted(range(len(scores)), key=lambda row: -scores[row])
    chosen, filled = list(order[: round(sinks * keep)]), {}
    number = keep // size
    for row in order:
        bucket = places[row] * number // total
        filled.setdefault(bucket, [])
        if len(filled[bucket]) < size:
            filled[bucket].append(row)
    roomy = [row for row in order if any(row in rows for rows in filled.values())]
    for row in [*roomy, *order]:
        if len(chosen) < keep and row not in chosen:
            chosen.append(row)
    return sorted(chosen)


@pytest.mark.parametrize(("size", "sinks"), [(1, 0.1), (1, 0.0), (3, 0.25), (12, 1.0)])
def test_rows_stay_by_attention_and_by_time(size, sinks):
    """Twice in a row: what is left of the first melting competes with what came after it, at its own time."""
    policy = LiveVLM(keep_tokens=12, recent=2, num_queries=3, bucket=size, sinks=sinks)
    state = policy.new_state()
    keys, values = some(30)
    policy.heed(9, asks(3), state)
    first = policy.pick(keys, values, [10, 10, 10], state)
    scores = looks(keys, asks(3))
    for layer in range(LAYERS):
        for head in range(HEADS):
            wanted = buckets_by_hand(scores[layer][head], list(range(30)), 30, 12, size, sinks)
            assert first[layer, head].tolist() == wanted
    more = some(20, seed=1)
    index = first[..., None].expand(-1, -1, -1, DIM)
    keys, values = (
        torch.cat([old.gather(2, index), new], dim=2) for old, new in zip((keys, values), more, strict=True)
    )
    policy.heed(11, asks(2, seed=1), state)
    second = policy.pick(keys, values, [12, 10, 10], state)
    scores = looks(keys, asks(2, seed=1))
    for layer in range(LAYERS):
        for head in range(HEADS):
            places = [*first[layer, head].tolist(), *range(30, 50)]
            assert second[layer, head].tolist() == buckets_by_hand(scores[layer][head], places, 50, 12, size, sinks)


def spans_of(count, size=5, first=1):
    return [
        Span(0, "prefix", 3, 0.0, 0.0),
        *(Span(first + n, "vision", size, float(n), float(n)) for n in range(count)),
    ]


@pytest.mark.proves("livevlm", 1)
def test_with_room_for_all_and_all_pages_it_keeps_and_reads_everything():
    policy, state = LiveVLM(keep_tokens=1000, recent=2, ratio=1.0), LiveVLM().new_state()
    for count in range(1, 40):
        spans = spans_of(count)
        assert policy.plan(spans, state).melt == ()
        assert policy.recall(spans, torch.rand(len(spans)), state).blocks == tuple(span.id for span in spans)


def test_a_share_of_the_frames_is_read():
    policy = LiveVLM(recent=2, ratio=0.4)
    spans, scores = spans_of(12), torch.zeros(13)
    scores[[3, 5, 8, 9]] = torch.tensor([0.3, 0.9, 0.5, 0.4])
    assert policy.recall(spans, scores, policy.new_state()).blocks == (0, 3, 5, 8, 9, 11, 12)
    assert LiveVLM(recent=2, ratio=0.0).recall(spans, scores, policy.new_state()).blocks == (0, 11, 12)
    assert policy.recall(spans[:2], scores[:2], policy.new_state()).blocks == (0, 1)


def test_melting_starts_when_the_past_is_too_long_and_counts_what_stays():
    policy, spans = LiveVLM(keep_tokens=12, recent=2, chunk=2), spans_of(4)
    state = policy.new_state()
    assert policy.plan(spans, state).melt == ()  # ten rows of the past
    assert policy.plan(spans_of(5), state).melt == (1, 2, 3)
    left = [Span(0, "prefix", 3, 0.0, 0.0), *(Span(n, "vision", 4, 0.0, 0.0) for n in (1, 2, 3))]
    assert policy.plan([*left, *spans_of(6)[4:]], state).melt == (), "a chunk at a time"
    assert policy.plan([*left, *spans_of(7)[4:]], state).melt == (1, 2, 3, 4, 5)


def test_participants_are_the_rows_with_the_largest_products():
    policy = Participative(sink_frames=1, recent=2, top_tokens=7, num_queries=3)
    state = policy.new_state()
    for n in range(4):
        policy.heed(n, asks(3, seed=n), state)
    keys, values = some(20)
    found = policy.pick(keys, values, [10, 10], state)
    for layer in range(LAYERS):
        for head in range(HEADS):
            totals = [
                sum(float(q @ key) for n in (2, 3) for h in (2 * head, 2 * head + 1) for q in asks(3, seed=n)[layer, h])
                for key in keys[layer, head]
            ]
            assert found[layer, head].tolist() == sorted(sorted(range(20), key=lambda row: -totals[row])[:7])


def test_what_lies_between_melts_and_the_ends_stay():
    policy = Participative(sink_frames=2, recent=3, top_tokens=9)
    state = policy.new_state()
    assert policy.plan(spans_of(6), state).melt == ()
    assert policy.plan(spans_of(7), state).melt == (3, 4)
    with pytest.raises(InputError, match="room between"):
        Participative(top_tokens=0)
    with pytest.raises(InputError, match="at least 1"):
        LiveVLM(bucket=0)
