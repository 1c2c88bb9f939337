"""How much rows are looked at by a few queries."""

import torch
from torch import Tensor


def in_groups(queries: Tensor, kv_heads: int) -> Tensor:
    """Queries `[query_heads, tokens, head_dim]` by the key head they look at, `[kv_heads, heads * tokens, dim]`."""
    return queries.reshape(kv_heads, -1, queries.shape[-1])


def attention_on(keys: Tensor, queries: Tensor) -> Tensor:
    """Attention of queries `[kv_heads, n, dim]` on keys `[kv_heads, rows, dim]` of one layer, all of which they see:
    mean over the queries, float32 `[kv_heads, rows]`."""
    logits = queries.float() @ keys.float().transpose(1, 2) * keys.shape[-1] ** -0.5
    return logits.softmax(-1).mean(1)


def products_on(keys: Tensor, queries: Tensor) -> Tensor:
    """Products of queries `[kv_heads, n, dim]` and keys `[kv_heads, rows, dim]`, summed over the queries, float32
    `[kv_heads, rows]`."""
    return torch.einsum("hnd,hrd->hr", queries.float(), keys.float())


def by_buckets(looks: Tensor, bucket: Tensor, count: int, size: int, sinks: int) -> Tensor:
    """Rows to keep by `looks`, float32 `[heads, rows]`, and the bucket of each: the first `sinks` of all, then such as
    are among the first `size` of their bucket, then the rest; int64 `[heads, count]`, ascending."""
    rows = torch.arange(looks.shape[1], device=looks.device)
    best = looks.argsort(dim=1, descending=True, stable=True)
    of_best = bucket.gather(1, best)
    order = of_best.argsort(dim=1, stable=True)  # by bucket, and in it by falling score
    grouped = of_best.gather(1, order)
    start = torch.searchsorted(grouped, grouped)  # where its bucket begins
    late = torch.zeros_like(best).scatter_(1, best.gather(1, order), len(rows) * (rows - start >= size).long())
    late.scatter_(1, best[:, :sinks], -len(rows))
    late += torch.empty_like(best).scatter_(1, best, rows.expand_as(best))
    return late.topk(count, dim=1, largest=False).indices.sort(-1).values
