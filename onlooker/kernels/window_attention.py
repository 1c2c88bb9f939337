"""Attention within windows for packed steps: every token of a frame asks, or only the chosen ones.

A window has few tokens (64 in Qwen2.5-VL), which lie in several runs among the frame's. The kernel takes one window of
one head at a time: it reads keys and values where they are, once, and of the queries only the rows there are. Scores
of tokens that do not ask are computed for nothing, which costs less than sorting queries into windows would.
"""

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from onlooker.core.contracts.packed import QueryTokens
from onlooker.kernels.rows import Kernels, ValueRows, launched, power_of_two


class WindowTable(NamedTuple):
    """Which tokens attend to each other."""

    members: Tensor
    """Tokens of each window, int32 `[windows, most tokens]`, ascending; -1 fills windows with fewer."""
    slot: Tensor
    """Where each token stands in the flattened `members`, int64 `[tokens]`."""

    @classmethod
    def of(cls, number: Tensor) -> "WindowTable":
        """The table of the window of each token, int64 `[tokens]`, numbered from 0. Waits for the device."""
        counts, order = number.bincount(), number.argsort(stable=True)
        most, first = int(counts.max()), counts.cumsum(0) - counts
        within = torch.arange(len(number), device=number.device) - first[number[order]]
        slot = torch.empty_like(number)
        slot[order] = number[order] * most + within
        members = torch.full((len(counts) * most,), -1, dtype=torch.int32, device=number.device)
        members[slot] = torch.arange(len(number), dtype=torch.int32, device=number.device)
        return cls(members.view(-1, most), slot)


@dataclass(frozen=True, eq=False)
class WindowAttention:
    """Attention of all heads, heads side by side, each token within its window."""

    table: WindowTable
    num_heads: int
    scale: float

    def whole(self, queries: Tensor, keys: Tensor, values: Tensor, kernels: Kernels) -> Tensor:
        """All tokens ask: contiguous `[streams, tokens, dim]`. So are `queries`, `keys` and `values`, but for rows that
        may lie apart, at one distance through all streams."""
        if kernels is None:
            return self._plainly(queries, keys, values)
        return self._launch(queries, keys, values, values.stride(1), None, None)

    def some(self, queries: Tensor, keys: Tensor, values: ValueRows, asking: QueryTokens, kernels: Kernels) -> Tensor:
        """The tokens that are `asking` do: contiguous `[streams, queries, dim]`, as are `queries`; `keys` is `[streams,
        tokens, dim]`. Rows of both may lie apart, as above."""
        if kernels is not None:
            return self._launch(queries, keys, values.fresh, values.fresh.stride(0), values, asking)
        # Queries go to their places among all; a window is so small that the empty places cost little.
        where = asking.index[:, :, None].expand_as(queries)
        spread = torch.zeros_like(keys).scatter(1, where, queries)
        return self._plainly(spread, keys, values.fill(kernels)).gather(1, where)

    def _plainly(self, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        members = self.table.members
        place = members.clamp_min(0).flatten()
        q, k, v = (part[:, place].unflatten(1, members.shape).flatten(0, 1) for part in (queries, keys, values))
        q, k, v = (part.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for part in (q, k, v))
        there = (members >= 0).repeat(len(keys), 1)[:, None, None]
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=there, scale=self.scale).transpose(1, 2)
        return attended.reshape(len(keys), -1, keys.shape[2])[:, self.table.slot]

    def _launch(
        self,
        queries: Tensor,
        keys: Tensor,
        values: Tensor,
        value_stride: int,
        mixed: ValueRows | None,
        asking: QueryTokens | None,
    ) -> Tensor:
        from onlooker.kernels import _tower_triton

        kernel: Any = _tower_triton.attend_windows
        for part in (queries, keys, *([values] if mixed is None else [])):
            assert len(part) == 1 or part.stride(0) == part.shape[1] * part.stride(1), "streams must follow one another"
        streams, tokens, dim = keys.shape
        out = torch.empty(queries.shape, dtype=queries.dtype, device=queries.device)
        head_dim, (windows, size) = dim // self.num_heads, self.table.members.shape
        main = 1 << (head_dim.bit_length() - 1)
        addresses = None if mixed is None else mixed.stored.addresses
        assert (mixed is None) == (addresses is None), "kernels read what is stored by address"
        kernel[(windows, self.num_heads, streams)](
            queries,
            keys,
            values,
            out,
            self.table.members,
            self.table.members if asking is None else asking.rows,
            self.table.members if addresses is None else addresses,
            0 if asking is None else asking.first,
            tokens,
            0 if mixed is None else mixed.layer,
            self.scale * math.log2(math.e),
            queries.stride(1),
            keys.stride(1),
            value_stride,
            SOME=asking is not None,
            HEADS=self.num_heads,
            HEAD=head_dim,
            MAIN=main,
            REST=power_of_two(head_dim - main) if head_dim > main else 16,
            SIZE=size,
            N=power_of_two(size),
            **launched(keys.device),
        )
        return out
