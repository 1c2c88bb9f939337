"""Attention of a chunk to all before it and itself, written out or fused, against its definition in float64."""

import pytest
import torch
from stack import HEAD_DIM, KV_HEADS, QUERY_HEADS, SCALE, make_spec

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
