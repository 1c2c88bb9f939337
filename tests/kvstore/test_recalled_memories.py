"""`streamingtom`, `video_streaming` and `carriers` in a store, against plain derivations."""

import itertools

import pytest
import torch
from stack import LAYERS, SCALE, Stack, ask, assert_same, everything, new_store, noise, packed_past, raw, turn, watch
from test_questions import dense_answer

from onlooker.core import registry
from onlooker.core.errors import InputError
from onlooker.core.spans import Plan
from onlooker.memory.carriers import Carriers
from onlooker.memory.streamingtom import StreamingTOM
from onlooker.memory.video_streaming import VideoStreaming


def kept(store):
    return [span.id for span in store.spans]


def watched(policy, frames, *, size=3, notes=(), **settings):
    """A stream under a policy, and its twin that keeps everything on the device."""
    stack = Stack()
    store, twin, state = new_store(stack, **settings), new_store(stack), policy.new_state()
    for number in range(frames):
        kind = "text" if number in notes else "vision"
        watch(stack, store, size + number % 3, number, kind)
        watch(stack, twin, size + number % 3, number, kind)
        store.apply(policy.plan(store.spans, state), lambda k, v, sizes: policy.pick(k, v, sizes, state))
    return stack, store, twin, state


def scored(stack, store, policy, state):
    """The answer, and what each layer recalled."""
    seen = []

    def choose(layer, spans, scores):
        seen.append(list(policy.recall(spans, scores, state).blocks))
        return policy.recall(spans, scores, state)

    with store.question(choose, scored=True, scoring=policy.scoring()) as view:
        return ask(stack, view, scored=True), seen


def question_scores(stack, store, layer, seen, cosine):
    """The bare question's mean query against every block's mean raw key in one layer, head by head, from scratch."""
    past, reach = zip(*(packed_past(store, blocks) for blocks in seen), strict=True)
    hidden = noise(3, 77 + 50)
    for before in range(layer):
        queries, keys, values = stack.project(before, hidden)
        places = torch.arange(3)[None] + reach[before]
        old_keys, old_values, old_places = past[before][before]
        keys = torch.cat((turn(old_keys, old_places), turn(keys, places)), 1).repeat_interleave(2, 0)
        values = torch.cat((old_values, values), 1).repeat_interleave(2, 0)
        logits = turn(queries, places) @ keys.transpose(1, 2) * SCALE
        mask = torch.ones(logits.shape[1:], dtype=torch.bool).tril(logits.shape[2] - 3)
        out = logits.masked_fill(~mask, float("-inf")).softmax(-1) @ values
        hidden = hidden + out.transpose(0, 1).reshape(3, -1) @ stack.out[before].T
    mean = stack.project(layer, hidden)[0].mean(1)
    scores = {}
    for block in kept(store):
        key = raw(store, block)[0][layer].mean(1).repeat_interleave(2, 0)  # [query_heads, dim]
        score = float((mean * key).sum())
        if cosine:
            of_groups = mean.view(2, 2, -1).mean(1).flatten()
            score = float(torch.cosine_similarity(of_groups, raw(store, block)[0][layer].mean(1).flatten(), dim=0))
        scores[block] = score
    return scores


@pytest.mark.parametrize("codec", ["exact", "int4"])
def test_groups_are_found_by_cosine_within_a_budget_of_tokens(codec):
    policy = StreamingTOM(recall_tokens=17, recent=1, window_tokens=9)
    settings = {} if codec == "exact" else {"host_codec": registry.make("codec", "int4")}
    stack, store, _, state = watched(policy, 16, **settings)
    assert sum(span.tier.value == "host" for span in store.spans) >= 13, "all but the window is parked"
    answer, seen = scored(stack, store, policy, state)
    sizes = {span.id: span.num_tokens for span in store.spans}
    for layer in range(LAYERS):
        room, wanted = 17 - sizes[16], [0, 16]
        # What is scored are the means of raw keys as they were computed, before any codec.
        _, exact, _, _ = watched(policy, 16)
        scores = question_scores(stack, exact if layer == 0 else store, layer, seen, cosine=True)
        ranked = sorted((block for block in scores if 0 < block < 16), key=lambda block: -scores[block])
        for block in ranked:
            room -= sizes[block]
            if room < 0:
                break
            wanted.append(block)
        if codec == "exact" or layer == 0:
            assert seen[layer] == sorted(wanted)
    assert_same(answer, dense_answer(stack, store, seen)[0])
    assert len({tuple(blocks) for blocks in seen}) > 1, "each layer chooses for itself"


def test_with_room_for_all_groups_it_is_full():
    policy = StreamingTOM(recall_tokens=10_000, recent=0, window_tokens=9)
    stack, store, _, state = watched(policy, 9)
    answer, seen = scored(stack, store, policy, state)
    assert seen == [kept(store)] * LAYERS
    assert_same(answer, dense_answer(stack, store, [kept(store)] * LAYERS)[0])


def test_clips_leave_their_last_frames_and_hand_them_on():
    """Clips of four frames with summaries of two: the next clip reads the last summary, and nothing older."""
    policy = VideoStreaming(clip=4, summary=2, topk=1)
    stack, store, _, state = watched(policy, 18)
    tiers = {span.id: span.tier.value for span in store.spans}
    assert [block for block, tier in tiers.items() if tier == "host"] == [3, 4, 7, 8, 11, 12]
    assert [block for block, tier in tiers.items() if tier == "device"] == [0, 15, 16, 17, 18]
    answer, seen = scored(stack, store, policy, state)
    for layer in range(LAYERS):
        scores = question_scores(stack, store, layer, seen, cosine=False)
        best = max([(3, 4), (7, 8), (11, 12)], key=lambda clip: sum(scores[block] for block in clip) / 2)
        assert seen[layer] == [0, *best, 15, 16, 17, 18]
    assert_same(answer, dense_answer(stack, store, seen)[0])


def test_propagation_is_what_a_clip_reads():
    """With it a clip's keys depend on the summary before; without, only on the prompt and the clip itself."""
    with_it, alone = VideoStreaming(clip=4, summary=2), VideoStreaming(clip=4, summary=2, propagate=False)
    stack, store, _, _ = watched(alone, 8)
    fresh = new_store(stack)
    for number in range(4, 8):
        watch(stack, fresh, 3 + number % 3, number)
    last = kept(store)[-1]
    assert_same(raw(store, last)[0], raw(fresh, kept(fresh)[-1])[0])
    _, handed, _, _ = watched(with_it, 8)
    assert (raw(handed, last)[0][1:] - raw(store, last)[0][1:]).abs().max() > 1e-3


def test_notes_and_a_capped_bank():
    policy = VideoStreaming(clip=4, summary=1, topk=9, max_parked=3)
    _, store, _, state = watched(policy, 30, notes=(1, 5, 13))
    assert [span.id for span in store.spans if span.tier.value == "host"] == [14, 16, 20] or state.num_parked == 3
    assert sum(span.tier.value == "host" for span in store.spans) == 3
    with pytest.raises(InputError, match="some of its frames"):
        VideoStreaming(clip=4, summary=4)


def test_carriers_are_the_last_rows_of_the_least_alike_frames():
    """Frame by frame by hand: which carriers are left, and what a question sees."""
    policy = Carriers(bank=4, tokens=1, recent=2)
    stack, store, _, state = watched(policy, 14)
    # By hand, in a store of which every decision is replayed on lists.
    replay, bank, looks = new_store(stack), [], {}
    for number in range(14):
        watch(stack, replay, 3 + number % 3, number)
        newest = number + 1
        values = replay._window.arena.values
        start = replay._window.row_of(newest)
        looks[newest] = values[0, :, start : start + 3 + number % 3].mean(1).flatten().clone()
        if newest <= 2:
            continue
        old, aged = list(bank), newest - 2
        bank.append(aged)
        if len(bank) > 4:
            alike = [float(torch.cosine_similarity(looks[a], looks[b], dim=0)) for a, b in itertools.pairwise(bank)]
            del bank[alike.index(max(alike))]
        rows = [n for n, block in enumerate(old) if block in bank]
        rows += [len(old) + 3 + (aged - 1) % 3 - 1] if aged in bank else []
        index = torch.tensor(rows).expand(LAYERS, 2, -1).contiguous()
        replay.apply(Plan(melt=(*old, aged)), lambda k, v, sizes, index=index: index)
    assert kept(store) == [0, *bank, 13, 14] == kept(replay)
    with store.question(everything) as one, replay.question(everything) as other:
        assert_same(ask(stack, one), ask(stack, other))
    assert [span.num_tokens for span in store.spans][1:-2] == [1] * 4 and state.rows == [1] * 4


def test_a_carrier_of_all_tokens_in_a_large_bank_is_full():
    policy = Carriers(bank=99, tokens=99, recent=1)
    stack, store, twin, _ = watched(policy, 9)
    assert kept(store) == kept(twin)
    with store.question(everything) as one, twin.question(everything) as other:
        assert_same(ask(stack, one), ask(stack, other))


def test_a_full_bank_grows_no_more():
    policy = Carriers()
    stack = Stack()
    store, state, sizes = new_store(stack), policy.new_state(), set()
    for number in range(300):
        watch(stack, store, 4, number)
        store.apply(policy.plan(store.spans, state), lambda k, v, n: policy.pick(k, v, n, state))
        if number > 150:
            sizes.add((store._window.num_rows, state.num_bytes()))
    assert len(sizes) == 1
