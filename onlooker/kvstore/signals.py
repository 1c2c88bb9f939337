"""One row per block of what policies may be told about it: the mean raw key of every layer."""

from collections.abc import Sequence

import torch
from torch import Tensor

from onlooker.core.contracts import ModelSpec
from onlooker.core.spans import Scoring, Span
from onlooker.kvstore.arena import allocate

LEAST_ROWS = 16


class Signals:
    """Mean raw keys, float32 `[layers, rows, kv_heads * head_dim]`, one row per block that is still remembered.

    Rows are only appended; room is regained by moving to a fresh table, so an open question may keep the old one.
    """

    def __init__(self, spec: ModelSpec) -> None:
        self._spec = spec
        self.rows: dict[int, int] = {}
        self._end = 0
        self.means = self._table(LEAST_ROWS)
        self._used = torch.zeros(LEAST_ROWS, dtype=torch.bool)

    def bytes_after_reserve(self) -> int:
        """Bytes of the table once `reserve` has been called."""
        rows = self.means.shape[1] if self._end < self.means.shape[1] else self._next_size()
        return rows * self._row_bytes()

    def reserve(self) -> None:
        """Make sure that one more row fits."""
        if self._end == self.means.shape[1]:
            table, kept = self._table(self._next_size()), len(self.rows)
            index = torch.tensor(list(self.rows.values()), dtype=torch.int64, device=self.means.device)
            table[:, :kept] = self.means.index_select(1, index)
            self.means, self._end = table, kept
            self.rows = dict(zip(self.rows, range(kept), strict=True))
            self._used = torch.arange(table.shape[1]) < kept

    def add(self, block: int, raw_keys: Tensor) -> None:
        """Take in a block: its raw keys `[layers, kv_heads, tokens, head_dim]`. Call `reserve` before."""
        torch.mean(
            raw_keys, dim=2, dtype=torch.float32, out=self.means[:, self._end].unflatten(1, raw_keys.shape[1::2])
        )
        self.rows[block] = self._end
        self._used[self._end] = True
        self._end += 1

    def forget(self, block: int) -> None:
        """Drop a block's row."""
        self._used[self.rows.pop(block)] = False

    def rows_of(self, spans: Sequence[Span]) -> "slice | Tensor":
        """Where the rows of some spans lie as the table is now: of a run of neighbours, perhaps with the prefix before
        it. A slice where they lie side by side, else int64 `[spans]` on the device."""
        lead = int(len(spans) > 1 and spans[0].kind == "prefix")
        if len(spans) == lead:
            return slice(0, 0)
        first, last = self.rows[spans[lead].id], self.rows[spans[-1].id] + 1
        before = self.rows[spans[0].id] if lead else first
        if last - before == len(spans):
            return slice(before, last)
        index = self._used[first:last].nonzero().flatten() + first
        index = torch.cat([torch.tensor([before] * lead, dtype=torch.int64), index])
        return index.to(self.means.device)

    def export(self) -> Tensor:
        """The rows in use, in stream order, `[layers, blocks, kv_heads * head_dim]`."""
        index = torch.tensor(list(self.rows.values()), dtype=torch.int64, device=self.means.device)
        return self.means.index_select(1, index)

    def load(self, blocks: list[int], means: Tensor) -> None:
        """Take over what `export` gave for these blocks."""
        self.means = self._table(max(LEAST_ROWS, len(blocks) * 3 // 2))
        self.means[:, : len(blocks)] = means
        self.rows, self._end = dict(zip(blocks, range(len(blocks)), strict=True)), len(blocks)
        self._used = torch.arange(self.means.shape[1]) < len(blocks)

    def num_bytes(self) -> int:
        """Bytes of the table."""
        return self.means.nbytes

    def _next_size(self) -> int:
        return max(LEAST_ROWS, (len(self.rows) + 1) * 3 // 2)

    def _row_bytes(self) -> int:
        return self._spec.num_layers * self._spec.num_kv_heads * self._spec.head_dim * 4

    def _table(self, rows: int) -> Tensor:
        spec = self._spec
        return allocate((spec.num_layers, rows, spec.num_kv_heads * spec.head_dim), torch.float32, spec.device)


def tell_scores(scoring: Scoring, means: Tensor, queries: Tensor, num_kv_heads: int, scale: float) -> Tensor:
    """What a policy is told of one layer: scores of the blocks whose mean keys are `[blocks, H * D]`, on the CPU; or
    the raw queries `[Hq, tokens, D]` themselves, where they are."""
    if scoring == "queries":
        return queries
    if scoring == "mean":
        return score_blocks(means, fold_queries(queries, num_kv_heads)).cpu()
    if scoring == "cosine":
        return torch.cosine_similarity(means, fold_queries(queries, num_kv_heads)[None], dim=1).cpu()
    if scoring == "heads":
        return last_shares(means, queries, num_kv_heads, scale).cpu()
    return share_attention(means, queries, num_kv_heads, scale).cpu()


def fold_queries(queries: Tensor, num_kv_heads: int) -> Tensor:
    """Mean query over tokens, query heads summed within their key-value head: `[Hq, tokens, D]` to float32 `[H * D]`.

    Its dot product with a block's mean key equals that of the expanded heads exactly: key heads are only repeated.
    """
    mean = queries.float().mean(1)
    return mean.view(num_kv_heads, -1, mean.shape[-1]).sum(1).flatten()


def score_blocks(means: Tensor, folded: Tensor) -> Tensor:
    """Dot products of a folded query `[H * D]` with mean keys of one layer, `[blocks, H * D]`; float32 `[blocks]`."""
    return means @ folded


def last_shares(means: Tensor, queries: Tensor, num_kv_heads: int, scale: float) -> Tensor:
    """How each head of the last of the queries `[Hq, tokens, D]` shares its attention among mean keys of one layer,
    `[blocks, H * D]`; float32 `[Hq, blocks]`."""
    keys = means.unflatten(1, (num_kv_heads, -1)).transpose(0, 1)
    last = queries[:, -1].float().unflatten(0, (num_kv_heads, -1))
    return (last @ keys.transpose(1, 2) * scale).softmax(-1).flatten(0, 1)


def share_attention(means: Tensor, queries: Tensor, num_kv_heads: int, scale: float) -> Tensor:
    """Queries `[Hq, tokens, D]` share their attention among mean keys of one layer, `[blocks, H * D]`: of each block
    the largest share that any token gives it, added over query heads; float32 `[blocks]`.

    A block that few tokens of one head look for stands out, where a mean over tokens and heads would drown it.
    """
    keys = means.unflatten(1, (num_kv_heads, -1))
    total = means.new_zeros(len(means))
    for head, queries_of_head in enumerate(queries.float().unflatten(0, (num_kv_heads, -1)).unbind(0)):
        shares = (queries_of_head @ keys[:, head].T * scale).softmax(-1)
        total += shares.amax(1).sum(0)
    return total
