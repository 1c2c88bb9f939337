"""What the stream sees while it is watched."""

import dataclasses

import pytest
import torch
from stack import (
    Stack,
    assert_same,
    digest,
    everything,
    make_spec,
    new_store,
    noise,
    packed_past,
    place,
    raw,
    rotary,
    turn,
    watch,
    written,
)

from onlooker.core.errors import CapacityError, InputError
from onlooker.core.spans import Plan, Tier
from onlooker.kvstore import KVStore, PackedAttention


@pytest.mark.parametrize("axes", [1, 3])
def test_frame_by_frame_equals_one_offline_forward(axes):
    stack = Stack(axes)
    store = KVStore(stack.spec, rotary)
    lengths = [3, 5, 1, 4, 6, 2, 7]
    outs, places, reach = [], [], 0
    for number, count in enumerate(lengths):
        outs.append(watch(stack, store, count, number, "vision" if number else "prefix"))
        positions, extent = place(count, axes, number)
        places.append(positions + reach)
        reach += extent
    hidden = torch.cat([noise(count, number) for number, count in enumerate(lengths)])
    assert_same(torch.cat(outs), stack.offline(hidden, torch.cat(places, 1)))


def test_two_interleaved_stores_in_one_pass_equal_separate_ones():
    stack = Stack()
    apart = [KVStore(stack.spec, rotary), KVStore(stack.spec, rotary)]
    together = [KVStore(stack.spec, rotary), KVStore(stack.spec, rotary)]
    for number in range(6):
        counts = (2 + number % 3, 5 - number % 4)
        wanted = [watch(stack, s, c, number * 2 + i) for i, (s, c) in enumerate(zip(apart, counts, strict=True))]
        chunks = [s.begin("vision", number, number, *place(c)) for s, c in zip(together, counts, strict=True)]
        hidden = torch.cat([noise(c, number * 2 + i) for i, c in enumerate(counts)])
        got = stack.extend(hidden, PackedAttention(list(zip(chunks, counts, strict=True))))
        for chunk in chunks:
            chunk.seal()
        assert_same(got, torch.cat(wanted))


@pytest.mark.proves("streamingllm", 1)
@pytest.mark.parametrize(("axes", "prefix", "frames"), [(1, 3, 2500), (3, 3, 600), (1, 0, 600), (1, 9, 600)])
def test_sliding_window_equals_fresh_attention_over_kept_raw_keys(axes, prefix, frames):
    stack = Stack(axes)
    store = new_store(stack, prefix)
    for number in range(frames):
        count = 1 + number % 5
        resident = list(store._window.blocks)
        checked = number % 83 == 0 or number > frames - 10
        past, reach = packed_past(store, resident) if checked else (None, 0)
        out = watch(stack, store, count, number)
        if checked:
            positions, _ = place(count, axes, number)
            wanted, _ = stack.dense(noise(count, number), positions + reach, past)
            assert_same(out, wanted)
        window = [span.id for span in store.spans if span.kind != "prefix"]
        if len(window) > 8:
            store.apply(Plan(forget=tuple(window[: 1 + number % 2])))
    assert max(store._window.placing.reach) > 1000
    assert len(store.spans) <= 9 + (prefix > 0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_ten_thousand_moves_leave_written_keys_bit_identical(dtype):
    """The prefix moves at every frame, and lies at the end as if it had moved once."""
    spec = dataclasses.replace(make_spec(), num_layers=1, dtype=dtype)
    store = KVStore(spec, rotary)
    positions, extent = place(2)
    states = torch.randn(spec.num_query_heads, 2, spec.head_dim, generator=torch.Generator().manual_seed(0)).to(dtype)
    before = None
    for number in range(10_000):
        chunk = store.begin("vision" if number else "prefix", number, number, positions, extent)
        chunk.attend(0, states, states[:2], states[:2], 1.0)
        chunk.seal()
        before = before or written(store, 0)
        if number > 3:
            store.apply(Plan(forget=(store.spans[1].id,)))
    assert before is not None and store._window.offsets[0] == ((10_000 - 4) * extent,)
    assert all(torch.equal(one, other) for one, other in zip(written(store, 0), before, strict=True))
    lies = store._window.tensors()[0][:, :, :2]
    wanted = turn(states[:2].float(), positions + store._window.offsets[0][0])[None]
    torch.testing.assert_close(lies.float(), wanted, rtol=1e-2 if dtype == torch.bfloat16 else 1e-5, atol=1e-2)


def test_forgetting_from_the_middle_packs_the_rest():
    stack = Stack()
    store = new_store(stack)
    for number in range(8):
        watch(stack, store, 3 + number % 3, number)
    kept = {span.id: raw(store, span.id) for span in store.spans if span.id not in (2, 5, 6)}
    store.apply(Plan(forget=(2, 6), park=(5,)))
    assert [span.id for span in store.spans] == [0, 1, 3, 4, 5, 7, 8]
    assert [span.id for span in store.spans if span.tier is Tier.HOST] == [5]
    for block, (keys, values) in kept.items():
        assert torch.equal(raw(store, block)[0], keys) and torch.equal(raw(store, block)[1], values)
    past, reach = packed_past(store, list(kept))
    wanted, _ = stack.dense(noise(4, 50), place(4)[0] + reach, past)
    assert_same(watch(stack, store, 4, 50), wanted)


def test_forgetting_all_frames_leaves_the_prefix_working():
    stack = Stack()
    store = new_store(stack)
    for number in range(5):
        watch(stack, store, 3, number)
    store.apply(Plan(forget=(1, 2, 3, 4, 5)))
    fresh = new_store(stack)
    assert_same(watch(stack, store, 4, 9), watch(stack, fresh, 4, 9))


def test_park_is_bit_identical_and_shares_nothing():
    stack = Stack()
    store = new_store(stack)
    for number in range(4):
        watch(stack, store, 3, number)
    before = [raw(store, block) for block in (1, 2)]
    store.apply(Plan(park=(1, 2)))
    for number in range(4, 30):
        watch(stack, store, 3, number)
    for block, (keys, values) in zip((1, 2), before, strict=True):
        assert torch.equal(raw(store, block)[0], keys) and torch.equal(raw(store, block)[1], values)
    assert store.num_bytes()["host_rows"] == 2 * 3 * stack.spec.kv_bytes_per_token


def test_abort_leaves_no_trace():
    stack = Stack()
    store = new_store(stack)
    watch(stack, store, 4, 0)
    before = digest(store)
    chunk = store.begin("vision", 1.0, 1.0, *place(6))
    stack.extend(noise(6, 5), PackedAttention([(chunk, 6)]))
    chunk.abort()
    chunk.abort()
    assert digest(store) == before
    with pytest.raises(InputError, match="no longer open"):
        chunk.seal()


@pytest.mark.parametrize(
    ("plan", "words"),
    [
        (Plan(forget=(99,)), "not stored"),
        (Plan(forget=(2, 2)), "twice"),
        (Plan(park=(2,), forget=(2,)), "twice"),
        (Plan(forget=(0,)), "prefix"),
        (Plan(park=(0,)), "prefix"),
        (Plan(park=(1,)), "parked already"),
    ],
)
def test_wrong_plans_are_refused_and_nothing_is_done(plan, words):
    stack = Stack()
    store = new_store(stack)
    for number in range(3):
        watch(stack, store, 3, number)
    store.apply(Plan(park=(1,)))
    before = digest(store)
    with pytest.raises(InputError, match=words):
        store.apply(plan)
    assert digest(store) == before


def test_wrong_requests_are_refused():
    store = new_store(Stack())
    with pytest.raises(InputError, match="first block"):
        store.begin("prefix", 0.0, 0.0, *place(2))
    with pytest.raises(InputError, match="each axis"):
        store.begin("vision", 0.0, 0.0, *place(2, axes=3))
    chunk = store.begin("vision", 0.0, 0.0, *place(2))
    with pytest.raises(InputError, match="still open"):
        store.begin("vision", 0.0, 0.0, *place(2))
    with pytest.raises(InputError, match="chunk is open"):
        store.apply(Plan(forget=(0,)))
    chunk.abort()


def test_device_budget_is_refused_before_anything_is_written():
    stack = Stack()
    store = new_store(stack, device_budget_bytes=60_000)
    number = 0
    with pytest.raises(CapacityError, match=r"bytes needed, 60000 allowed; try: raise"):
        for number in range(200):
            before = digest(store)
            watch(stack, store, 5, number)
            assert sum(size for name, size in store.num_bytes().items() if name.startswith("device")) <= 60_000
    assert digest(store) == before and number > 5
    store.apply(Plan(forget=(1, 2)))
    watch(stack, store, 5, number)


def test_host_budget_is_refused_before_anything_is_moved():
    stack = Stack()
    store = new_store(stack, host_budget_bytes=2 * 4 * stack.spec.kv_bytes_per_token)
    for number in range(5):
        watch(stack, store, 4, number)
    before = digest(store)
    with pytest.raises(CapacityError, match="host memory"):
        store.apply(Plan(park=(1, 2, 3)))
    assert digest(store) == before
    store.apply(Plan(park=(1, 2)))
    store.apply(Plan(park=(3,), forget=(1,)))
    assert [span.id for span in store.spans if span.tier is Tier.HOST] == [2, 3]


def test_a_host_budget_set_later_holds_also_in_a_fork_and_after_loading():
    stack = Stack()
    store = new_store(stack)
    for number in range(5):
        watch(stack, store, 4, number)
    store.host_budget_bytes = 4 * stack.spec.kv_bytes_per_token
    twin = store.fork()
    assert twin.host_budget_bytes == store.host_budget_bytes
    for one in (store, twin):
        with pytest.raises(CapacityError, match="host memory"):
            one.apply(Plan(park=(1, 2)))
    store.host_budget_bytes = None
    store.apply(Plan(park=(1, 2)))
    with pytest.raises(CapacityError, match="host memory"):
        twin.apply(Plan(park=(1, 2)))
    twin.apply(Plan(park=(1,)))
    with pytest.raises(CapacityError, match="host budget"):
        twin.load(*store.export())


@pytest.mark.proves("streamingllm", 2)
@pytest.mark.parametrize(("budget", "frames"), [(None, 10_000), (20_000, 1001)])
def test_bytes_stay_constant_from_frame_100_on(budget, frames):
    spec = dataclasses.replace(make_spec(), num_layers=1)
    store = KVStore(spec, rotary, device_budget_bytes=budget)
    positions, extent = place(2)
    nothing = torch.zeros(spec.num_query_heads, 2, spec.head_dim)
    sizes = []
    for number in range(frames):
        chunk = store.begin("vision" if number else "prefix", number, number, positions, extent)
        chunk.attend(0, nothing, nothing[:2], nothing[:2], 1.0)
        chunk.seal()
        if number >= 20:
            store.apply(Plan(forget=(store.spans[1].id,)))
        if number in (100, 1000, frames - 1):
            sizes.append(store.num_bytes())
    assert len(sizes) >= 2
    assert all(size == sizes[0] for size in sizes)


@pytest.mark.parametrize("count", [1, 7, 30])
def test_a_sliding_window_has_room_for_an_eighth_more_than_it_needs(count):
    stack = Stack()
    store = new_store(stack, 5)
    most, moved, capacity = 0, 0, 0
    for number in range(400):
        arena, head = store._window.arena, store._window.head
        watch(stack, store, count, number)
        most = max(most, store._window.num_rows)
        moved += store._window.head < head or store._window.arena is not arena
        capacity = store._window.arena.capacity
        while sum(span.num_tokens for span in store.spans) > 300:
            store.apply(Plan(forget=(store.spans[1].id,)))
    assert most <= capacity <= max(most * 9 // 8, 64)
    assert moved <= 20 + 400 * count / (most / 8 - count), "rows are moved once for every eighth that comes"


def test_export_load_and_fork_continue_bit_for_bit():
    stack = Stack(3)
    store = new_store(stack)
    for number in range(9):
        watch(stack, store, 4, number)
    store.apply(Plan(park=(1, 2)))
    store.apply(Plan(park=(4,), forget=(3, 1)))
    loaded, twin = KVStore(stack.spec, rotary), store.fork()
    loaded.load(*store.export())
    assert digest(loaded) == digest(twin) == digest(store)
    outs = [watch(stack, s, 5, 70) for s in (store, loaded, twin)]
    assert torch.equal(outs[0], outs[1]) and torch.equal(outs[0], outs[2])
    assert digest(loaded) == digest(twin) == digest(store)
    before = digest(store)
    watch(stack, twin, 5, 71)
    twin.apply(Plan(forget=(2, 5)))
    assert digest(store) == before
    with pytest.raises(InputError, match="another model"):
        KVStore(Stack(1).spec, rotary).load(*store.export())
    with pytest.raises(CapacityError, match="host budget"):
        KVStore(stack.spec, rotary, host_budget_bytes=10).load(*store.export())


def test_a_store_works_in_and_out_of_inference_mode():
    stack = Stack()
    store = KVStore(stack.spec, rotary)
    with torch.inference_mode():
        watch(stack, store, 3, 0, "prefix")
        for number in range(4):
            watch(stack, store, 3, number)
    store.apply(Plan(forget=(1,)))
    watch(stack, store, 3, 9)
    store.apply(Plan(forget=(3,)))
    store.close()
    assert not store.spans


@pytest.mark.parametrize("axes", [1, 3])
@pytest.mark.parametrize("reading", [False, True])
def test_a_run_leaves_from_behind_anchors_without_moving_what_comes_after(axes, reading):
    """Sinks and old text stay, frames behind them go one by one: only what stays in front is rotated anew."""
    stack = Stack(axes)
    store = new_store(stack)
    for number in range(12):
        watch(stack, store, 3 + number % 2, number)
    anchors = [0, 1, 2, 5]  # the prefix, two sinks, and later a note between frames
    for number, gone in enumerate(([3], [4], [6, 7], [2, 8])):
        view = store.question(everything) if reading else None
        seen = None if view is None else view._contexts[0].keys.clone()
        before = {span.id: raw(store, span.id) for span in store.spans}
        behind = [span.id for span in store.spans if span.id > max(gone)]
        arena, rows = store._window.arena, {block: store._window.row_of(block) for block in behind}
        offsets = {block: store._window.offsets[block] for block in behind}
        store.apply(Plan(forget=tuple(gone)))
        anchors = [block for block in anchors if block not in gone]
        assert [span.id for span in store.spans] == [*(n for n in anchors if n < max(gone)), *behind]
        for block in (span.id for span in store.spans):
            assert all(torch.equal(a, b) for a, b in zip(raw(store, block), before[block], strict=True))
        assert {block: store._window.offsets[block] for block in behind} == offsets, "they keep their rotation"
        if view is None:
            assert store._window.arena is arena and rows == {b: store._window.row_of(b) for b in behind}
        else:
            assert seen is not None and torch.equal(view._contexts[0].keys, seen)
            view.close()
        past, reach = packed_past(store, [span.id for span in store.spans])
        wanted, _ = stack.dense(noise(4, 50 + number), place(4, axes, 50 + number)[0] + reach, past)
        assert_same(watch(stack, store, 4, 50 + number), wanted)


@pytest.mark.parametrize("axes", [1, 3])
def test_raw_keys_are_told_without_their_rotation(axes):
    """Also of the prefix, which lies rotated elsewhere once it has moved."""
    stack = Stack(axes)
    store = new_store(stack)
    for number in range(6):
        watch(stack, store, 4, number)
    store.apply(Plan(forget=(1, 2)))
    for span in store.spans:
        torch.testing.assert_close(store.raw_keys(span.id), raw(store, span.id)[0], rtol=1e-4, atol=1e-5)
        mean = store._signals.means[:, store._signals.rows[span.id]]
        torch.testing.assert_close(store.raw_keys(span.id).mean(2).flatten(1), mean, rtol=1e-4, atol=1e-5)
