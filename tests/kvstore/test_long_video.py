"""Blocks of one long video move by an offset per axis, and what is held is read by the question itself."""

import dataclasses
import random

import pytest
import torch
from stack import (
    LAYERS,
    SCALE,
    Stack,
    assert_same,
    digest,
    everything,
    new_store,
    noise,
    packed_past,
    place,
    raw,
    rotary,
    turn,
    watch,
)

from onlooker.core.spans import Plan, Recall
from onlooker.kvstore import Held, KVStore, PackedAttention
from onlooker.kvstore.blocks import Block, Entry

AXES = 3
TEXT = torch.arange(4).expand(AXES, -1), 4


def look(stack: Stack, store: KVStore, clock: int | None, number: int, num_tokens: int = 4):
    """Read one block of noise, a moment of a long video if it has a clock, else text."""
    if clock is None:
        positions, extent = torch.arange(num_tokens).expand(AXES, -1), num_tokens
    else:
        positions, extent = place(num_tokens, AXES, number)
        extent += number % 3  # the camera turns now and then
    chunk = store.begin("text" if clock is None else "vision", number, number, positions, extent, clock)
    out = stack.extend(noise(num_tokens, number), PackedAttention([(chunk, num_tokens)]))
    chunk.seal()
    return out


def laid_out(store: KVStore, blocks: list[int]):
    """Positions of blocks from zero, written down from the rule, and where they end."""
    parts, reach, video = [], 0, None
    for name in blocks:
        block = store._entries[name].block
        if block.clock is None:
            parts.append(block.positions + reach)
            reach, video = reach + block.extent, None
            continue
        video = video or (reach, block.clock)
        ahead = block.clock - video[1]
        parts.append(block.positions + torch.tensor([[video[0] + ahead], [video[0]], [video[0]]]))
        reach = max(reach, video[0] + ahead + 1, video[0] + block.extent)
    return parts, reach


def dense_past(store: KVStore, blocks: list[int]):
    parts, reach = laid_out(store, blocks)
    keys, values = (torch.cat([raw(store, name)[i] for name in blocks], dim=2) for i in range(2))
    places = torch.cat(parts, dim=1)
    return [(keys[layer], values[layer], places) for layer in range(LAYERS)], reach


def test_a_long_video_equals_one_offline_forward_with_a_time_axis_of_its_own():
    stack = Stack(AXES)
    store, outs = new_store(stack, 0), []
    clocks = [None, 0, 1, 4, 30, None, None, 32, 33, 33, 90]
    for number, clock in enumerate(clocks):
        outs.append(look(stack, store, clock, number))
    places, reach = laid_out(store, list(range(len(clocks))))
    assert store._window.placing.reach == (reach,) * AXES
    hidden = torch.cat([noise(4, number) for number in range(len(clocks))])
    assert_same(torch.cat(outs), stack.offline(hidden, torch.cat(places, 1)))


@pytest.mark.parametrize("prefix", [3, 0])
def test_a_sliding_window_equals_a_video_that_begins_where_the_window_does(prefix):
    stack, chance = Stack(AXES), random.Random(prefix)
    store = new_store(stack, prefix)
    clock = 0
    for number in range(300):
        clock += chance.choice([0, 1, 1, 4, 25])
        past = dense_past(store, [span.id for span in store.spans])[0] if store.spans else [None] * LAYERS
        out = look(stack, store, clock, number)
        if number % 7 == 0:
            places, end = laid_out(store, [span.id for span in store.spans])
            wanted, _ = stack.dense(noise(4, number), places[-1], past)
            assert_same(out, wanted)
            ends = store._window.placing.reach
            first = store._window.offsets[store.spans[0].id]
            assert all(b - a == end for a, b in zip(first, ends, strict=True)), "it ends where a fresh one would"
        window = [span.id for span in store.spans if span.kind != "prefix"]
        if len(window) > 8:
            store.apply(Plan(forget=tuple(window[: 1 + number % 2])))


def test_text_in_the_middle_begins_another_video():
    """Whatever leaves, the rest keeps its distances; once only the newest video is left, it is as a fresh one."""
    stack = Stack(AXES)
    store = new_store(stack)
    for number, clock in enumerate([0, 5, 9, None, 12, 15, 60]):
        look(stack, store, clock, number)
    for _ in range(4):
        store.apply(Plan(forget=(store.spans[1].id,)))
    kept = [span.id for span in store.spans]
    past, _ = dense_past(store, kept)
    out = look(stack, store, 61, 50)
    wanted, _ = stack.dense(noise(4, 50), laid_out(store, [*kept, store.spans[-1].id])[0][-1], past)
    assert_same(out, wanted)


def test_the_newest_leave_as_if_they_had_never_come():
    stack = Stack(AXES)
    store = new_store(stack)
    for number, clock in enumerate([0, 5, None, 12, 15]):
        look(stack, store, clock, number)
    for back in (1, 2, 3):
        twin = store.fork()
        before = digest(twin)
        for number, clock in enumerate([22, 40, None][:back]):
            look(stack, twin, clock, 20 + number)
        twin.apply(Plan(forget=tuple(span.id for span in twin.spans[-back:])))
        twin._next_id = store._next_id
        assert digest(twin) == before
        assert twin._window.placing.reach == store._window.placing.reach


def test_saved_and_loaded_it_goes_on_to_the_bit():
    stack = Stack(AXES)
    store = new_store(stack)
    for number, clock in enumerate([0, 5, None, 12, 15, 20]):
        look(stack, store, clock, number)
    store.apply(Plan(park=(1,), forget=(2,)))
    twin = KVStore(stack.spec, rotary)
    twin.load(*store.export())
    forked = store.fork()
    outs = [look(stack, each, 31, 40) for each in (store, twin, forked)]
    assert torch.equal(outs[0], outs[1]) and torch.equal(outs[0], outs[2])
    assert digest(store) == digest(twin)


def asked(stack: Stack, view, num_held: int, scored: bool = False):
    """A question's last hidden states: retrieval, what is held, a prompt and one token."""
    outs = []
    if scored:
        stack.extend(noise(4, 90), PackedAttention([(view.retrieval(*TEXT), 4)]))
    for number in range(num_held):
        outs.append(stack.extend(noise(4, 60 + number), PackedAttention([(view.held_segment(), 4)])))
    for number, count in enumerate((4, 1)):
        segment = view.segment(torch.arange(count).expand(AXES, -1), count)
        outs.append(stack.extend(noise(count, 70 + number), PackedAttention([(segment, count)])))
    return torch.cat(outs), view.attention_mass()


@pytest.mark.parametrize("clocks", [(44,), (None,), (44, 47)])
@pytest.mark.parametrize("recall", ["resident", "some", "scored"])
def test_what_is_held_is_read_as_if_it_were_stored(clocks, recall):
    """Seen, placed and cited alike, though not a bit of the store has changed."""
    stack = Stack(AXES)
    store = new_store(stack)
    for number in range(6):
        look(stack, store, 7 * number, number)
    store.apply(Plan(park=(2,)))
    scored, newest = recall == "scored", store.spans[-1].id

    def choose(layer, spans, scores):
        names = [span.id for span in spans]
        if recall == "resident":
            return Recall(tuple(n for n in names if n != 2))
        # Another oldest block in each layer, so that each sees a video of another length.
        kept = {0, 1 + layer, 4} | {n for n in names if n >= newest} if scored else {0, 2, 5} | set(names[7:])
        return Recall(tuple(n for n in names if n in kept))

    held, before = [], digest(store)
    for number, clock in enumerate(clocks):
        positions, extent = place(4, AXES, 60 + number) if clock is not None else TEXT
        held.append(Held(60.0, 61.0, positions, extent, clock))
    with store.question(choose, scored=scored, held=held) as view:
        got, mass = asked(stack, view, len(held), scored)
        assert [span.id for span in view.held_spans] == [store._next_id + n for n in range(len(held))]
        assert view.recalled()[store._next_id] == LAYERS
    assert digest(store) == before

    stored = store.fork()
    for number, one in enumerate(held):
        chunk = stored.begin("vision", 60.0, 61.0, one.positions, one.extent, one.clock)
        out = stack.extend(noise(4, 60 + number), PackedAttention([(chunk, 4)]))
        chunk.seal()
        if recall == "resident":
            assert_same(got[4 * number : 4 * number + 4], out)
    if recall == "resident":
        with stored.question(choose) as view:
            wanted, wanted_mass = asked(stack, view, 0)
        assert_same(got[4 * len(held) :], wanted)
        assert mass.keys() == wanted_mass.keys()
        assert all(abs(mass[block] - wanted_mass[block]) < 1e-5 for block in mass)
    else:
        # What is held attends to what the question sees, not to all that is resident: against the rule written down.
        chosen = [choose(layer, store.spans, None).blocks for layer in range(LAYERS)]
        for one, name in zip(held, range(100, 200), strict=False):
            block = Block(name, 4, one.extent, one.positions, one.clock)
            store._entries[name] = Entry(dataclasses.replace(store.spans[-1], id=name), block)
        past, places = [], []
        for layer, blocks in enumerate(chosen):
            parts, reach = laid_out(store, [*blocks, *range(100, 100 + len(held))])
            keys, values = (torch.cat([raw(store, block)[i] for block in blocks], dim=2) for i in range(2))
            seen = torch.cat(parts[: len(blocks)], 1)
            past.append((keys[layer], values[layer], seen))
            tail = [torch.arange(count).expand(AXES, -1) + reach for count in (4, 1)]
            tail[1] = tail[1] + 4
            places.append(torch.cat([*parts[len(blocks) :], *tail], 1))
        hidden = torch.cat([noise(4, 60 + n) for n in range(len(held))] + [noise(4, 70), noise(1, 71)])
        assert_same(got, dense_by_layer(stack, hidden, places, past))


def dense_by_layer(stack: Stack, hidden, places, past):
    """`Stack.dense` where a layer has positions of its own."""
    for layer in range(LAYERS):
        queries, keys, values = stack.project(layer, hidden)
        keys = torch.cat((turn(past[layer][0], past[layer][2]), turn(keys, places[layer])), dim=1)
        values = torch.cat((past[layer][1], values), dim=1)
        groups = len(queries) // len(keys)
        logits = turn(queries, places[layer]) @ keys.repeat_interleave(groups, 0).transpose(1, 2) * SCALE
        mask = torch.ones(logits.shape[1:], dtype=torch.bool).tril(logits.shape[2] - logits.shape[1])
        attended = logits.masked_fill(~mask, float("-inf")).softmax(-1) @ values.repeat_interleave(groups, 0)
        hidden = hidden + attended.transpose(0, 1).reshape(len(hidden), -1) @ stack.out[layer].T
    return hidden


def test_blocks_without_a_clock_lie_as_they_always_did():
    stack = Stack(AXES)
    store = new_store(stack)
    for number in range(4):
        watch(stack, store, 3, number)
    _, reach = packed_past(store, [span.id for span in store.spans])
    with store.question(everything) as view:
        assert view._contexts[0].reach == (reach,) * AXES
