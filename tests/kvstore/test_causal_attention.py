"""Attention of a chunk to all before it and itself, written out or fused, against its definition in float64."""

import pytest
import torch
from stack import (
    HEAD_DIM,
    KV_HEADS,
    QUERY_HEADS,
    SCALE,
    Stack,
    assert_same,
    make_spec,
    new_store,
    noise,
    packed_past,
    place,
    rotary,
    turn,
    watch,
)

from onlooker.kernels.packed_attention import attend_plainly
from onlooker.kvstore import PackedAttention
from onlooker.kvstore.attention import MOST_LOGITS, attend_causally, causal_mask


def defined(queries, keys, values):
    """Each query of each head sees the keys up to its own place, which ends with the last query on the last key."""
    queries, keys, values = queries.double(), keys.double(), values.double()
    keys, values = (part.repeat_interleave(QUERY_HEADS // KV_HEADS, 0) for part in (keys, values))
    logits = queries @ keys.transpose(1, 2) * SCALE
    seen = torch.ones(logits.shape[1:], dtype=torch.bool).tril(keys.shape[1] - queries.shape[1])
    return (logits.masked_fill(~seen, -torch.inf).softmax(-1) @ values).transpose(0, 1)


@pytest.mark.parametrize(("num_queries", "num_keys"), [(1, 1), (1, 9), (5, 5), (21, 700), (300, 1000)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_causal_attention_is_as_defined(num_queries, num_keys, dtype):
    torch.manual_seed(num_keys)
    queries = torch.randn(QUERY_HEADS, num_queries, HEAD_DIM, dtype=dtype)
    # As in an arena: rows in the middle of more of them.
    keys, values = (torch.randn(KV_HEADS, num_keys + 7, HEAD_DIM, dtype=dtype)[:, 3:-4] for _ in range(2))
    mask = causal_mask(make_spec(dtype=dtype), num_queries, num_keys)
    found = attend_causally(queries, keys, values, mask, SCALE)
    close = {"atol": 2e-6, "rtol": 0} if dtype == torch.float32 else {"atol": 2e-2, "rtol": 0}
    torch.testing.assert_close(found.double(), defined(queries, keys, values), **close)


def test_the_sizes_above_are_on_both_sides_of_the_choice():
    assert QUERY_HEADS * 21 * 700 <= MOST_LOGITS < QUERY_HEADS * 300 * 1000


# ------------------------------------------------------------------------------- blocks whose tokens all see each other


def read_together(stack, store, num_tokens, number):
    positions, extent = place(num_tokens, stack.spec.position_axes, number)
    chunk = store.begin("vision", float(number), float(number), positions, extent, causal=False)
    out = stack.extend(noise(num_tokens, number), PackedAttention([(chunk, num_tokens)]))
    chunk.seal()
    return out


def defined_together(stack, store, num_tokens, number):
    """The same block by dense arithmetic: every token sees all of the past and all of the block."""
    past, reach = packed_past(store, [span.id for span in store.spans])
    positions = place(num_tokens, stack.spec.position_axes, number)[0] + reach
    hidden = noise(num_tokens, number)
    for layer in range(stack.spec.num_layers):
        queries, keys, values = stack.project(layer, hidden)
        old_keys, old_values, old_positions = past[layer]
        keys = torch.cat((turn(old_keys, old_positions), turn(keys, positions)), dim=1)
        values = torch.cat((old_values, values), dim=1)
        groups = QUERY_HEADS // KV_HEADS
        logits = turn(queries, positions) @ keys.repeat_interleave(groups, 0).transpose(1, 2) * SCALE
        seen = logits.softmax(-1) @ values.repeat_interleave(groups, 0)
        hidden = hidden + seen.transpose(0, 1).reshape(num_tokens, -1) @ stack.out[layer].T
    return hidden


@pytest.mark.parametrize("axes", [1, 3])
def test_a_block_whose_tokens_all_see_each_other_is_as_defined(axes):
    stack = Stack(axes)
    store = new_store(stack)
    watch(stack, store, 5, 1)
    wanted = defined_together(stack, store, 7, 2)
    assert_same(read_together(stack, store, 7, 2), wanted)
    causal = new_store(stack)
    watch(stack, causal, 5, 1)
    assert not torch.allclose(watch(stack, causal, 7, 2), wanted, atol=1e-3)
    watch(stack, store, 4, 3)  # what follows sees it as any block
    assert [span.num_tokens for span in store.spans] == [3, 5, 7, 4]


def test_such_a_block_is_the_same_from_the_tables_of_packed_passes():
    stack = Stack()
    plain, packed = new_store(stack), new_store(stack)
    for store in (plain, packed):
        watch(stack, store, 5, 1)
    wanted = read_together(stack, plain, 6, 2)
    chunk = packed.begin("vision", 2.0, 2.0, *place(6, 1, 2), causal=False)
    rows, hidden = chunk.rows(), noise(6, 2)
    assert not rows.causal and rows.part(0, 6) is rows
    with pytest.raises(AssertionError, match="one pass"):
        rows.part(0, 3)
    angles = rotary(chunk.places())
    for layer in range(stack.spec.num_layers):
        attended = attend_plainly(layer, *stack.project(layer, hidden), SCALE, rows, angles)
        hidden = hidden + attended.reshape(6, -1) @ stack.out[layer].T
    chunk.seal()
    assert_same(hidden, wanted)
    torch.testing.assert_close(packed.export()[0], plain.export()[0], rtol=1e-4, atol=1e-4)
