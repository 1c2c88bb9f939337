"""Memories that promise a bound hold no more after ten thousand frames than after a thousand."""

import pytest
import torch
from stack import HEAD_DIM, KV_HEADS, LAYERS, QUERY_HEADS, make_spec, rotary

from onlooker.core import registry
from onlooker.core.contracts import MemoryPolicy
from onlooker.core.tokens import VisualTokens
from onlooker.core.unread import Unread
from onlooker.kvstore import KVStore

TOKENS = 4
BLOCKS = [
    "sliding_window:window_tokens=40",
    "deep_sink:window_frames=12,sink_frames=4",
    "streaming_vlm:vision_s=12",
    "infinipot_v:window_tokens=60,keep_tokens=40",
    "infinipot_v:window_tokens=60,keep_tokens=40,pack=true",
    pytest.param(
        "livevlm:keep_tokens=40,recent=4,chunk=4,num_queries=4,pack=true", marks=pytest.mark.proves("livevlm", 3)
    ),
    "participative:sink_frames=2,recent=2,top_tokens=24,num_queries=4,pack=true",
    "carriers:bank=12,recent=2,pack=true",
    "rekv:topk=4,window_tokens=40,max_parked=30",
    "rekv:topk=4,first=1,window_tokens=40,max_parked=30,thin=true",
    "retrieval_heads:window_tokens=40,max_parked=30,thin=true",
    "select_recent:recent=4,budget=4,max_parked=30",
    "video_streaming:clip=8,summary=2,max_parked=30",
]
HOLDING = [
    "last_frames:frames=8",
    "flash_vstream:form=star,clusters=6",
    "flash_vstream:form=csm_dam,clusters=6,details=2",
    "curvestream:frames=8",
    "streamforest:short_frames=6,event_frames=10",
    "scene_tiling:scenes=6,frames=4",
]


@pytest.mark.slow
@pytest.mark.parametrize("name", BLOCKS)
def test_a_bounded_memory_of_blocks_holds_no_more_after_ten_thousand_frames(name):
    memory, chance = registry.make("memory", name), torch.Generator().manual_seed(0)
    store = KVStore(make_spec(), rotary, num_queries=memory.num_queries)
    state, positions, early, late = memory.new_state(), torch.arange(TOKENS).view(1, -1), 0, 0
    for number in range(10_000):
        kind = "vision" if number else "prefix"
        chunk = store.begin(kind, float(number), float(number), positions, TOKENS)
        given = torch.randn(LAYERS, QUERY_HEADS + 2 * KV_HEADS, TOKENS, HEAD_DIM, generator=chance)
        for layer, part in enumerate(given):
            chunk.attend(layer, *part.split((QUERY_HEADS, KV_HEADS, KV_HEADS)), 1.0)
        span = chunk.seal()
        if not number:
            continue
        if memory.num_queries:
            memory.heed(span.id, store.queries(span.id), state)
        store.apply(memory.plan(store.spans, state), lambda *given: memory.pick(*given, state))
        held = sum(store.num_bytes().values()) + state.num_bytes()
        early = max(early, held) if number < 1000 else early
        late = max(late, held)
    # Of how many frames some row is left is a matter of chance where rows are picked, and each keeps a mean key.
    picks = type(memory).pick is not MemoryPolicy.pick
    assert late <= (1.1 * early if picks else early), f"{early} bytes in the first thousand frames, {late} later"


@pytest.mark.slow
@pytest.mark.parametrize("name", HOLDING)
def test_a_bounded_memory_of_tokens_holds_no_more_after_ten_thousand_frames(name):
    memory, chance = registry.make("memory", name), torch.Generator().manual_seed(0)
    state, early, late = memory.new_state(), 0, 0
    for number in range(10_000):
        features = torch.randn(16, 8, generator=chance) * 0.3 + (number // 40 % 7)
        tokens = VisualTokens.of_frame(features, (4, 4), number, float(number))
        memory.absorb(Unread(tokens, float(number), float(number)), state)
        held = state.num_bytes()
        early = max(early, held) if number < 1000 else early
        late = max(late, held)
    assert late <= 1.02 * early, f"{early} bytes in the first thousand frames, {late} later"
