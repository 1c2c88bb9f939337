"""Questions beside the stream: right, repeatable, and without a trace."""

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from stack import (
    HEAD_DIM,
    KV_HEADS,
    LAYERS,
    QUERY_HEADS,
    Stack,
    ask,
    assert_same,
    digest,
    everything,
    new_store,
    noise,
    packed_past,
    place,
    raw,
    watch,
)

from onlooker.core.errors import CapacityError, InputError
from onlooker.core.spans import Plan, Recall
from onlooker.kvstore import KVStore, PackedAttention
from onlooker.kvstore.signals import fold_queries, score_blocks, share_attention
from onlooker.memory.rekv import ReKV


def dense_answer(stack, store, blocks_by_layer, lengths=(4, 1, 1), seed=77):
    """What `ask` must give when layer l sees `blocks_by_layer[l]`: dense, all tokens at once, own arithmetic."""
    pasts, places = [], []
    for layer, blocks in enumerate(blocks_by_layer):
        past, reach = packed_past(store, blocks)
        pasts.append(past[layer])
        places.append(reach)
    hidden = torch.cat([noise(count, seed + i) for i, count in enumerate(lengths)])
    total, axes = sum(lengths), stack.spec.position_axes
    # Moving a layer's past down to end at zero changes no distance, and gives all layers one question position.
    shifted = [None if p is None else (p[0], p[1], p[2] - reach) for p, reach in zip(pasts, places, strict=True)]
    return stack.dense(hidden, torch.arange(total).expand(axes, -1), shifted)


@pytest.fixture(params=[1, 3])
def stack(request):
    return Stack(request.param)


@pytest.fixture
def store(stack):
    store = new_store(stack)
    for number in range(9):
        watch(stack, store, 3 + number % 3, number)
    store.apply(Plan(park=(1, 2, 3)))
    watch(stack, store, 4, 20)
    return store


def test_everything_resident_needs_no_copy_and_equals_dense(stack, store):
    resident = list(store._window.blocks)
    with store.question(lambda layer, spans, scores: Recall(tuple(resident))) as view:
        assert view.num_bytes() == 0
        got = ask(stack, view)
        wanted, _ = dense_answer(stack, store, [resident] * LAYERS)
        assert_same(got, wanted)
        assert view.recalled() == dict.fromkeys(resident, LAYERS)


def test_recalling_parked_blocks_equals_dense(stack, store):
    with store.question(everything) as view:
        wanted, _ = dense_answer(stack, store, [[span.id for span in store.spans]] * LAYERS)
        assert_same(ask(stack, view), wanted)


def test_layers_of_unequal_length_and_prompts_of_many_tokens(stack, store):
    chosen = [[0, 2, 5, 9], [0, 1, 3, 4, 8, 10], [0]]
    assert len(chosen) == LAYERS
    with store.question(lambda layer, spans, scores: Recall(tuple(chosen[layer])), scored=True) as view:
        got = ask(stack, view, (70, 5, 1, 1), scored=True)
        wanted, _ = dense_answer(stack, store, chosen, (70, 5, 1, 1))
        assert_same(got, wanted)
        assert view.recalled()[0] == LAYERS and view.recalled()[5] == 1


def test_layers_may_see_different_blocks_without_scores(stack, store):
    chosen = [[0, 2, 5, 9], [0, 2, 5, 9], [0]]
    assert len(chosen) == LAYERS
    with store.question(lambda layer, spans, scores: Recall(tuple(chosen[layer])), layered=True) as view:
        assert view.attention_mass() == {}
        got = ask(stack, view, (70, 5, 1, 1))
        wanted, _ = dense_answer(stack, store, chosen, (70, 5, 1, 1))
        assert_same(got, wanted)
        assert view.recalled() == {0: LAYERS, 2: 2, 5: 2, 9: 2}
        rows = view.segment(*place(1, stack.spec.position_axes)).rows()
        assert rows is not None and rows.past_counts is not None, "packed passes take it"
    with store.question(everything, layered=True) as same:
        wanted, _ = dense_answer(stack, store, [[span.id for span in store.spans]] * LAYERS)
        assert_same(ask(stack, same), wanted)


@pytest.mark.proves("rekv", 1)
def test_rekv_with_everything_retrieved_equals_full():
    stack = Stack()
    full, parked = new_store(stack), new_store(stack)
    policy = ReKV(topk=100, recent=1, window_tokens=10**6)
    state = policy.new_state()
    for number in range(8):
        watch(stack, full, 4, number)
        watch(stack, parked, 4, number)
        parked.apply(policy.plan(parked.spans, state))
    parked.apply(Plan(park=(1, 2, 3, 4)))
    with (
        full.question(everything) as plain,
        parked.question(lambda layer, spans, scores: policy.recall(spans, scores, state), scored=True) as found,
    ):
        assert_same(ask(stack, found, scored=True), ask(stack, plain))


def test_attention_mass_is_that_of_the_dense_stack(stack, store):
    resident = list(store._window.blocks)
    with store.question(lambda layer, spans, scores: Recall(tuple(resident))) as view:
        assert view.attention_mass() == {}
        ask(stack, view, (4,))
        _, shares = dense_answer(stack, store, [resident] * LAYERS, (4,))
        counts = [store._entries[block].span.num_tokens for block in resident]
        wanted = torch.stack(shares).mean(0).split(counts)
        mass = view.attention_mass()
        assert list(mass) == resident
        assert_same(torch.tensor(list(mass.values())), torch.stack([w.sum() for w in wanted]))
        ask(stack, view, (1, 1))
        assert 0 < sum(view.attention_mass().values()) < 1


def test_needle_ranks_first_in_every_layer():
    stack, needle = Stack(), 4
    store = new_store(stack, prefix=0)
    for number in range(9):
        chunk = store.begin("vision", number, number, *place(5))
        for layer in range(LAYERS):
            keys = torch.randn(KV_HEADS, 5, HEAD_DIM, generator=torch.Generator().manual_seed(number * 10 + layer))
            chunk.attend(layer, keys.repeat_interleave(2, 0), keys, keys, 1.0)
        chunk.seal()
    ranked = {}

    def choose(layer, spans, scores):
        ranked[layer] = spans[int(scores.argmax())].id
        return everything(layer, spans, scores)

    with store.question(choose, scored=True) as view:
        retrieval = view.retrieval(*place(2))
        for layer in range(LAYERS):
            direction = raw(store, needle)[0][layer].mean(1)
            queries = (direction * 5).repeat_interleave(QUERY_HEADS // KV_HEADS, 0)[:, None].expand(-1, 2, -1)
            own = torch.randn(KV_HEADS, 2, HEAD_DIM)
            retrieval.attend(layer, queries, own, own, 1.0)
    assert ranked == dict.fromkeys(range(LAYERS), needle)


@pytest.mark.proves("rekv", 2)
def test_folded_scores_equal_expanded_ones(store):
    groups = QUERY_HEADS // KV_HEADS
    queries = torch.randn(QUERY_HEADS, 6, HEAD_DIM)
    rows = list(store._signals.rows.values())
    for layer in range(LAYERS):
        got = score_blocks(store._signals.means[layer][rows], fold_queries(queries, KV_HEADS))
        blocks = [raw(store, span.id)[0][layer] for span in store.spans]
        wide = torch.stack([keys.mean(1).repeat_interleave(groups, 0).flatten() for keys in blocks])
        assert_same(got, wide @ queries.mean(1).flatten())


def test_shares_equal_those_of_expanded_heads(store):
    groups = QUERY_HEADS // KV_HEADS
    queries = torch.randn(QUERY_HEADS, 6, HEAD_DIM)
    for rows in (list(store._signals.rows.values()), [1, 4, 5]):
        means = store._signals.means[1]
        keys = means[rows].view(-1, KV_HEADS, HEAD_DIM).repeat_interleave(groups, 1)
        shares = torch.einsum("htd,bhd->htb", queries, keys).mul(0.3).softmax(-1)
        assert_same(share_attention(means[rows], queries, KV_HEADS, 0.3), shares.amax(1).sum(0))


def test_shares_find_what_one_token_of_one_head_looks_for():
    means = torch.randn(50, KV_HEADS * HEAD_DIM, generator=torch.Generator().manual_seed(0))
    wanted = means[31].view(KV_HEADS, HEAD_DIM)[1] * 3
    queries = (-wanted / 11).repeat(QUERY_HEADS, 12, 1)  # many weak voices against it drown it in a mean
    queries[2, 7] = wanted  # head 2 is the first of the second key-value head
    assert share_attention(means, queries, KV_HEADS, 1.0).argmax() == 31
    assert score_blocks(means, fold_queries(queries, KV_HEADS)).argmax() != 31


@pytest.mark.parametrize("scored", [False, True])
def test_asking_twice_gives_the_same_answer_and_the_same_bytes(stack, store, scored):
    before, answers = digest(store), []
    policy = ReKV(topk=3, recent=2)
    for _ in range(2):
        with store.question(
            lambda layer, spans, scores: (
                policy.recall(spans, scores, policy.new_state()) if scored else everything(0, spans, None)
            ),
            scored=scored,
        ) as view:
            answers.append(ask(stack, view, scored=scored))
    assert torch.equal(*answers)
    assert digest(store) == before
    assert store.num_bytes()["device_views"] == 0


@pytest.mark.parametrize("form", ["resident", "gathered", "scored", "late"])
def test_an_open_view_sees_the_same_whatever_the_stream_does(stack, store, form):
    resident = tuple(store._window.blocks)

    def choose(layer, spans, scores):
        return Recall(resident) if form in ("resident", "late") else everything(layer, spans, scores)

    def opened():
        return store.question(choose, scored=form in ("scored", "late"))

    scored = form in ("scored", "late")
    with opened() as view:
        wanted = ask(stack, view, scored=scored)
    views = [opened(), opened()]
    half = None
    if form == "scored":  # one of them has found its context before the stream goes on
        half = views.pop()
        stack.extend(
            noise(3, 127),
            PackedAttention([(half.retrieval(torch.arange(3).expand(stack.spec.position_axes, -1), 3), 3)]),
        )
    for number in range(30, 34):
        watch(stack, store, 4, number)
        store.apply(Plan(forget=(store.spans[4].id,)))
    store.apply(Plan(forget=(store.spans[6].id,), park=(store.spans[7].id,)))
    store.apply(Plan(forget=(store.spans[1].id, store.spans[2].id)))
    for number in range(40, 90):
        watch(stack, store, 9, number)
        if number % 3:
            store.apply(Plan(forget=(store.spans[-8].id,)))
    for view in views:
        assert torch.equal(ask(stack, view, scored=scored), wanted)
        assert store.num_bytes()["device_views"] > 0
        view.close()
    if half is not None:
        assert torch.equal(ask(stack, half), wanted)
        half.close()
    assert store.num_bytes()["device_views"] == 0


@pytest.mark.parametrize("act", ["append", "evict", "slide", "grow", "squeeze", "close"])
def test_no_single_act_of_the_stream_disturbs_an_open_view(act):
    stack = Stack()
    store = new_store(stack)
    for number in range(24):
        watch(stack, store, 4, number)
        if number > 3:
            store.apply(Plan(forget=(store.spans[1].id,)))
    arena = store._window.arena
    with store.question(everything) as view:
        wanted = ask(stack, view)
    with store.question(everything) as view:
        assert view.num_bytes() == 0, "this view reads the stream's own rows"
        if act in ("evict", "squeeze"):
            store.apply(Plan(forget=(store.spans[1 if act == "evict" else 2].id,)))
        elif act == "close":
            store.close()
        elif act == "append":
            watch(stack, store, 1, 90)
        else:
            assert store._window.head * 2 > 30 or act == "grow"
            room = arena.capacity - store._window.tail
            watch(stack, store, room + (1 if act == "slide" else 200), 90)
            assert (store._window.arena.capacity == arena.capacity) == (act == "slide")
        assert (store._window.arena is arena) == (act == "append")
        assert torch.equal(ask(stack, view), wanted)


def test_at_and_since_equal_a_store_that_never_had_the_others():
    stack = Stack()
    store, short = new_store(stack), new_store(stack)
    for number in range(8):
        watch(stack, store, 4, number)
        if number <= 4:
            watch(stack, short, 4, number)
    with (
        store.question(everything, visible=(0.0, 4.0)) as view,
        short.question(everything) as wanted,
    ):
        assert [span.id for span in view.spans] == [span.id for span in wanted.spans]
        assert_same(ask(stack, view), ask(stack, wanted))
    fork = store.fork()
    fork.apply(Plan(forget=(1, 2, 3)))
    with (
        store.question(everything, visible=(3.0, 99.0)) as view,
        fork.question(everything) as wanted,
    ):
        assert view.spans[0].kind == "prefix"
        assert_same(ask(stack, view), ask(stack, wanted))


def test_wrong_recalls_and_closed_views_are_refused(stack, store):
    with pytest.raises(InputError, match="may not see"):
        store.question(lambda *_: Recall((0, 99)))
    with pytest.raises(InputError, match="ascend"):
        store.question(lambda *_: Recall((0, 3, 2)))
    with pytest.raises(InputError, match="may not see"):
        store.question(lambda *_: Recall((0, 10)), visible=(0.0, 4.0))
    view = store.question(lambda *_: Recall((5,)))
    assert view.recalled() == dict.fromkeys((0, 5), LAYERS), "the prefix is always there"
    view.close()
    view.close()
    with pytest.raises(InputError, match="closed"):
        ask(stack, view)
    with store.question(everything, scored=True) as view, pytest.raises(InputError, match="retrieval"):
        ask(stack, view)


def test_a_question_on_an_empty_store_answers():
    stack = Stack()
    store = new_store(stack, prefix=0)
    for scored in (False, True):
        with store.question(everything, scored=scored) as view:
            wanted = stack.offline(
                torch.cat([noise(n, 77 + i) for i, n in enumerate((4, 1, 1))]), torch.arange(6)[None]
            )
            assert_same(ask(stack, view, scored=scored), wanted)
            assert view.attention_mass() == {} and view.recalled() == {}


def test_a_context_that_does_not_fit_is_refused_and_leaves_the_stream_alone():
    stack = Stack()
    store = new_store(stack, device_budget_bytes=80_000)
    for number in range(20):
        watch(stack, store, 5, number)
        store.apply(Plan(park=(number + 1,)))
    before = digest(store)
    with pytest.raises(CapacityError, match="beside the stream"):
        store.question(everything)
    assert digest(store) == before and store.num_bytes()["device_views"] == 0


def test_half_precision_stays_close():
    stack = Stack()
    exact = new_store(stack)
    for number in range(5):
        watch(stack, exact, 4, number)
    half = KVStore(dataclasses.replace(stack.spec, dtype=torch.bfloat16), exact.rotary)
    for span in exact.spans:
        chunk = half.begin(span.kind, 0.0, 0.0, *place(span.num_tokens))
        keys, values = raw(exact, span.id)
        for layer in range(LAYERS):
            queries = keys[layer].repeat_interleave(2, 0).bfloat16()
            chunk.attend(layer, queries, keys[layer].bfloat16(), values[layer].bfloat16(), 0.3)
        chunk.seal()
    queries, keys = torch.randn(QUERY_HEADS, 3, HEAD_DIM), torch.randn(KV_HEADS, 3, HEAD_DIM)
    with exact.question(everything) as fine, half.question(everything) as coarse:
        wanted = fine.segment(*place(3)).attend(0, queries, keys, keys, 0.3)
        got = coarse.segment(*place(3)).attend(0, queries.bfloat16(), keys.bfloat16(), keys.bfloat16(), 0.3)
    torch.testing.assert_close(got.float(), wanted, rtol=0.05, atol=0.05)


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_random_lives_equal_a_naive_store(data):
    """Blocks come, are parked and forgotten at random; questions stay open meanwhile. The naive store is raw copies."""
    stack = Stack()
    store = new_store(stack, prefix=data.draw(st.sampled_from([0, 2, 7])))
    copies = {span.id: raw(store, span.id) for span in store.spans}
    held: list = []
    for number in range(data.draw(st.integers(3, 14))):
        past, reach = packed_past(store, list(store._window.blocks))
        count = data.draw(st.integers(1, 6))
        out = watch(stack, store, count, number)
        wanted, _ = stack.dense(noise(count, number), place(count)[0] + reach, past)
        assert_same(out, wanted)
        copies[store.spans[-1].id] = raw(store, store.spans[-1].id)
        if data.draw(st.booleans()):
            ids = [span.id for span in store.spans]
            chosen = tuple(sorted(data.draw(st.sets(st.sampled_from(ids))))) if ids else ()
            view = store.question(lambda *_, chosen=chosen: Recall(chosen))
            context = sorted({*chosen, *view._prefix})
            held.append((view, dense_answer(stack, store, [context] * LAYERS)[0]))
        free = [span for span in store.spans if span.kind != "prefix"]
        fates = data.draw(st.lists(st.sampled_from(["keep", "park", "forget"]), min_size=len(free), max_size=len(free)))
        park = tuple(s.id for s, fate in zip(free, fates, strict=True) if fate == "park" and s.tier.value == "device")
        forget = tuple(s.id for s, fate in zip(free, fates, strict=True) if fate == "forget")
        store.apply(Plan(park, forget))
        copies = {block: both for block, both in copies.items() if block not in forget}
        assert [span.id for span in store.spans] == list(copies) == list(store._signals.rows)
        assert [s.id for s in store.spans if s.tier.value == "device"] == list(store._window.blocks)
        for block, (keys, values) in copies.items():
            assert torch.equal(raw(store, block)[0], keys) and torch.equal(raw(store, block)[1], values)
        means = store._signals.export()
        for place_, (keys, _) in enumerate(copies.values()):
            torch.testing.assert_close(means[:, place_], keys.mean(2).flatten(1))
        if held and data.draw(st.booleans()):
            view, wanted = held.pop(0)
            assert_same(ask(stack, view), wanted)
            view.close()
    for view, wanted in held:
        assert_same(ask(stack, view), wanted)
