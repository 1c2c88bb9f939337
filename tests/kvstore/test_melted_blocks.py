"""Blocks that melt: rows that stay, head by head; what is seen of them, cited, budgeted, forked and saved."""

import dataclasses
from typing import Any

import pytest
import torch
from stack import (
    HEAD_DIM,
    KV_HEADS,
    LAYERS,
    SCALE,
    Stack,
    ask,
    assert_same,
    digest,
    everything,
    make_spec,
    new_store,
    noise,
    place,
    rotary,
    turn,
    watch,
)

from onlooker.core.errors import InputError
from onlooker.core.spans import Plan, Recall
from onlooker.kvstore import KVStore


def some(keep: int, seed: int = 0):
    """Other rows in every layer and head."""

    def pick(keys, values, sizes):
        rows = keys.shape[2]
        assert values.shape == keys.shape and sum(sizes) == rows
        chance = torch.rand(*keys.shape[:3], generator=torch.Generator().manual_seed(seed))
        return chance.topk(min(keep, rows), dim=-1).indices.sort(-1).values

    return pick


def frames(store: KVStore) -> tuple[int, ...]:
    return tuple(span.id for span in store.spans if span.kind != "prefix")


def melted(seed: int = 0, keep: int = 9, axes: int = 1, prefix: int = 3) -> tuple[Stack, KVStore, KVStore]:
    """A store whose frames were melted, and its twin from before."""
    stack = Stack(axes)
    store = new_store(stack, prefix)
    for number in range(6):
        watch(stack, store, 4, number)
    before = store.fork()
    store.apply(Plan(melt=frames(store)), some(keep, seed))
    return stack, store, before


def dense_over_rows(stack: Stack, before: KVStore, index, lead: int, hidden, positions):
    """Attention in which every layer and head sees the rows of `before` that were picked, written down with loops."""
    keys, values = before._window.tensors()
    for layer in range(LAYERS):
        queries, own_keys, own_values = stack.project(layer, hidden)
        queries, own_keys = turn(queries, positions), turn(own_keys, positions)
        outs = []
        for head in range(len(queries)):
            kv = head // (len(queries) // KV_HEADS)
            rows = torch.cat((torch.arange(lead), index[layer, kv] + lead))
            k = torch.cat((keys[layer, kv, rows], own_keys[kv]))
            v = torch.cat((values[layer, kv, rows], own_values[kv]))
            logits = queries[head] @ k.T * SCALE
            mask = torch.ones(logits.shape, dtype=torch.bool).tril(len(rows))
            outs.append(logits.masked_fill(~mask, float("-inf")).softmax(-1) @ v)
        hidden = hidden + torch.stack(outs, 1).reshape(len(hidden), -1) @ stack.out[layer].T
    return hidden


@pytest.mark.parametrize("axes", [1, 3])
def test_what_comes_after_sees_the_rows_that_stay_where_they_were(axes):
    stack, store, before = melted(axes=axes)
    keys, values = before._window.tensors()
    index = some(9)(keys[:, :, 3:], values[:, :, 3:], [24])
    reach = before._window.placing.reach[0]
    positions, _ = place(4, axes, 50)
    wanted = dense_over_rows(stack, before, index, 3, noise(4, 50), positions + reach)
    assert_same(watch(stack, store, 4, 50), wanted)
    assert store._window.num_rows == 3 + 9 + 4


def test_spans_keep_their_times_and_share_the_rows_that_are_left():
    _, store, before = melted()
    assert sum(span.num_tokens for span in store.spans if span.kind != "prefix") == 9
    times = {span.id: (span.start_s, span.end_s) for span in before.spans}
    assert all(times[span.id] == (span.start_s, span.end_s) for span in store.spans)
    only_last = lambda keys, values, sizes: torch.arange(keys.shape[2] - 2, keys.shape[2]).expand(LAYERS, KV_HEADS, 2)  # noqa: E731
    newest = frames(store)[-1]
    store.apply(Plan(melt=frames(store)), only_last)
    assert set(frames(store)) <= {newest, newest - 1}, "blocks of which no row is left are forgotten"
    assert list(store._signals.rows) == [span.id for span in store.spans]


@pytest.mark.parametrize("scored", [False, True])
def test_questions_cite_the_frames_that_rows_came_from(scored):
    stack, store, before = melted()
    watch(stack, store, 4, 30)
    with store.question(everything, scored=scored) as view:
        ask(stack, view, scored=scored)
        mass, seen = view.attention_mass(), view.recalled()
    assert set(mass) == {span.id for span in store.spans} == set(seen)
    assert 0 < sum(mass.values()) < 1
    # Whoever keeps all rows cites as if nothing had melted.
    kept = before.fork()
    kept.apply(Plan(melt=frames(kept)), some(24))
    answers, masses = [], []
    for one in (before, kept):
        with one.question(everything, scored=scored) as view:
            answers.append(ask(stack, view, scored=scored))
            masses.append(view.attention_mass())
    assert_same(answers[1], answers[0])
    assert (
        all(abs(masses[0][block] - masses[1][block]) < 1e-5 for block in masses[0])
        and masses[0].keys() == masses[1].keys()
    )


@pytest.mark.parametrize("scored", [False, True])
def test_a_question_about_some_frames_sees_their_rows_only(scored):
    """Rows of others that were melted with them are left out, also where heads have other numbers of them."""
    stack, store, before = melted(keep=15)
    kept = frames(store)[1:4]
    full = before.fork()
    full.apply(Plan(melt=frames(full)), some(24))
    choose = lambda layer, spans, scores: Recall(kept)  # noqa: E731
    with full.question(choose, scored=scored) as view:
        got = ask(stack, view, scored=scored)
    with store.question(choose, scored=scored) as view:
        ask(stack, view, scored=scored)
        assert set(view.attention_mass()) == {0, *kept}
        total = sum(span.num_tokens for span in store.spans if span.id in kept)
        assert abs(view.context_tokens() - 3 - total) <= 1.0
    # Attention over the same rows at the same distances from each other; the question starts behind the whole run.
    assert got.isfinite().all()


def test_interleaved_equals_apart_and_forks_are_independent():
    stack, store, _ = melted()
    twin = store.fork()
    assert digest(twin) == digest(store)
    watch(stack, twin, 4, 40)
    twin.apply(Plan(melt=frames(twin)), some(5, 3))
    again = store.fork()
    watch(stack, again, 4, 40)
    again.apply(Plan(melt=frames(again)), some(5, 3))
    assert digest(again) == digest(twin) != digest(store)


@pytest.mark.parametrize("axes", [1, 3])
def test_saved_it_goes_on_to_the_bit(axes):
    stack, store, _ = melted(axes=axes)
    for number in (60, 61):
        watch(stack, store, 4, number)
    store.apply(Plan(melt=frames(store)), some(11, 5))
    watch(stack, store, 4, 62)
    loaded = KVStore(stack.spec, rotary)
    loaded.load(*store.export())
    assert digest(loaded) == digest(store)
    outs = [watch(stack, one, 4, 63) for one in (store, loaded)]
    assert torch.equal(*outs)
    for one in (store, loaded):
        one.apply(Plan(melt=frames(one)), some(8, 6))
    assert digest(loaded) == digest(store)
    tensors, facts = store.export()
    owners = next(name for name in tensors if name.startswith("owners."))
    with pytest.raises(InputError, match="damaged"):
        KVStore(stack.spec, rotary).load({**tensors, owners: tensors[owners] + 1000}, facts)


def test_an_open_question_sees_what_it_saw():
    stack, store, _ = melted()
    watch(stack, store, 4, 30)
    with store.question(everything) as view:
        wanted = ask(stack, view)
    with store.question(everything) as view, store.question(everything, scored=True) as late:
        store.apply(Plan(melt=frames(store)), some(4, 9))
        watch(stack, store, 4, 31)
        assert torch.equal(ask(stack, view), wanted)
        ask(stack, late, scored=True)
        assert set(late.attention_mass()) >= {0}


def test_melted_blocks_leave_together_and_are_not_parked():
    stack, store, _ = melted()
    watch(stack, store, 4, 30)
    before, ids = digest(store), frames(store)
    wrong: list[tuple[Plan, Any, str]] = [
        (Plan(forget=ids[:1]), None, "leave together"),
        (Plan(park=ids[:1]), None, "cannot be parked"),
        (Plan(melt=ids[1:]), some(3), "only neighbours"),
        (Plan(melt=(ids[-1], *ids[:-1])), some(3), "only neighbours"),
        (Plan(melt=(0, *ids)), some(3), "prefix"),
        (Plan(melt=ids, forget=(99,)), some(3), "nothing else"),
        (Plan(melt=ids), None, "nothing else"),
        (Plan(melt=(99,)), some(3), "not stored"),
        (Plan(melt=ids), lambda k, v, s: torch.zeros(LAYERS, KV_HEADS, 2, dtype=torch.int64), "not there"),
        (Plan(melt=ids), lambda k, v, s: torch.zeros(LAYERS, 1, 2, dtype=torch.int64), "another form"),
        (Plan(melt=ids), lambda k, v, s: torch.full((LAYERS, KV_HEADS, 1), 99), "not there"),
    ]
    for plan, pick, words in wrong:
        with pytest.raises(InputError, match=words):
            store.apply(plan, pick)
        assert digest(store) == before, words
    store.apply(Plan(forget=ids[:-1]))
    assert frames(store) == ids[-1:]
    fresh = new_store(stack)
    watch(stack, fresh, 4, 30)
    assert store._window.num_rows == fresh._window.num_rows


def test_the_budget_holds_over_ten_thousand_small_frames():
    spec = dataclasses.replace(make_spec(), num_layers=1)
    store = KVStore(spec, rotary)
    positions, extent = place(2)
    states = torch.randn(spec.num_query_heads, 2, HEAD_DIM, generator=torch.Generator().manual_seed(1))
    sizes = []
    for number in range(10_000):
        chunk = store.begin("vision" if number else "prefix", number, number, positions, extent)
        chunk.attend(0, states, states[:2], states[:2], 1.0)
        chunk.seal()
        if store._window.num_rows > 2 + 60:
            store.apply(Plan(melt=frames(store)), some(40, number))
        assert store._window.num_rows <= 2 + 60
        assert len(store.spans) <= 1 + 60 * spec.num_kv_heads
        if number in (200, 5000, 9999):
            sizes.append(store.num_bytes()["device_rows"])
    assert len(set(sizes)) == 1
    assert store._window.placing.reach == (2 * 10_000,)


def packed_rows(before: KVStore, index, axes: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys of the rows that are picked of all frames, without rotation, and where they lie once they are moved
    together, `[layers, kv_heads, rows, axes]`, with the last one where it was: written down with loops."""
    blocks = [before._entries[block].block for block in frames(before)]
    parts = [raw_rows(before, block.id)[0] for block in blocks]
    places = torch.cat([block.positions + torch.tensor(block.written)[:, None] for block in blocks], dim=1).T
    keys, moved = torch.cat(parts, dim=2), torch.zeros(LAYERS, KV_HEADS, index.shape[2], axes, dtype=torch.int64)
    last = int(places[:, 0].max())
    for layer in range(LAYERS):
        for head in range(KV_HEADS):
            rows, at = index[layer, head].tolist(), last
            for n in reversed(range(len(rows))):
                if n + 1 < len(rows):
                    at -= min(1, int(places[rows[n + 1], 0] - places[rows[n], 0]))
                moved[layer, head, n] = places[rows[n]] + (at - int(places[rows[n], 0]))
    return keys.gather(2, index[..., None].expand(-1, -1, -1, HEAD_DIM)), moved


@pytest.mark.parametrize("axes", [1, 3])
def test_rows_that_are_moved_together_lie_without_gaps_before_what_comes_next(axes):
    stack = Stack(axes)
    store = new_store(stack, 3)
    for number in range(6):
        watch(stack, store, 4, number)
    before, reach = store.fork(), store._window.placing.reach
    store.apply(Plan(melt=frames(store), packs=True), some(9))
    index = some(9)(*(part[:, :, 3:] for part in before._window.tensors()), [24])
    keys, places = packed_rows(before, index, axes)
    first = int(places[..., 0].min())
    wanted = torch.stack(
        [torch.stack([turn(keys[n, h], places[n, h].T) for h in range(KV_HEADS)]) for n in range(LAYERS)]
    )
    assert_same(store._window.tensors()[0][:, :, 3:], wanted)
    assert store._window.placing.reach == reach, "what comes next is where it would have been"
    if axes == 1:
        assert first == reach[0] - 9
    # The prompt lies right before what is left.
    known = before._entries[before.spans[0].id].block
    prefix, there = raw_rows(before, known.id)[0], known.positions + (first - known.extent)
    assert_same(store._window.tensors()[0][:, :, :3], torch.stack([turn(layer, there) for layer in prefix]))


def raw_rows(store: KVStore, block: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys of a block without rotation and its values, `[layers, kv_heads, rows, head_dim]`."""
    known = store._entries[block].block
    keys = store._window.written_keys(known)
    return turn(keys, -(known.positions + torch.tensor(known.written)[:, None])), store._window.values(known)


def test_a_thousand_meltings_rotate_every_row_once():
    """However often rows are moved together, each lies where one rotation from where it was written brings it."""
    stack = Stack()
    store = new_store(stack, 3)
    far = []
    for number in range(1000):
        watch(stack, store, 4, number)
        if len(frames(store)) and store._window.num_rows > 3 + 16:
            store.apply(Plan(melt=frames(store), packs=True), some(12, number))
            (run,) = store._window.melted.values()
            assert run.packed is not None
            far.append(int(store._window.placing.reach[0] - run.packed.places.min()))
            ends = run.packed.ends()
            lie = store._window.placing.reach[0] - 1 - ends
            steps = (lie - run.packed.places).flatten(0, 1)
            keys = run.packed.written.flatten(0, 1)
            wanted = torch.stack([turn(k, s[None]) for k, s in zip(keys, steps, strict=True)])
            lies = store._window.tensors()[0][:, :, 3:].flatten(0, 1)
            assert (lies - wanted).abs().max() < 1e-4
            assert int(ends.max()) == 11
    assert max(far) > 20


@pytest.mark.parametrize("axes", [1, 3])
def test_packed_rows_survive_saving_forks_and_open_questions(axes):
    stack = Stack(axes)
    store = new_store(stack, 3)
    for number in range(6):
        watch(stack, store, 4, number)
    store.apply(Plan(melt=frames(store), packs=True), some(9))
    watch(stack, store, 4, 8)
    other = KVStore(stack.spec, rotary)
    other.load(*store.export())
    assert digest(other) == digest(store)
    with store.question(everything) as view:
        wanted = ask(stack, view)
    fork = store.fork()
    with store.question(everything) as view:
        for one in (store, fork, other):
            one.apply(Plan(melt=frames(one), packs=True), some(7, 5))
            watch(stack, one, 4, 9)
        assert_same(ask(stack, view), wanted)
    assert digest(other) == digest(store) == digest(fork)


def test_what_was_melted_where_it_was_is_not_packed_later():
    _, store, _ = melted()
    was = digest(store)
    with pytest.raises(InputError, match="from the first time on"):
        store.apply(Plan(melt=frames(store), packs=True), some(5))
    assert digest(store) == was
